"""Looks at one VM by all rules, and tells of each episode once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from agentvm_kernel.anomalies import AnomalySettings, Rule
from agentvm_kernel.observe.anomaly.judges import JUDGES, Finding, Judge
from agentvm_kernel.observe.anomaly.moment import Moment, Moments
from agentvm_kernel.observe.anomaly.reading import Contact, Reading


@dataclass(frozen=True)
class Anomaly:
    """Something unusual has begun.

    Attributes:
        rule: By which rule.
        time: When that was seen, on the readings' clock.
        value: What was compared with the rule's threshold.
        about: Which host it is about, where it is about one: the guest's word for it.
    """

    rule: Rule
    time: float
    value: float
    about: str = ""


class _Episode:
    """Whether what a rule says is going on: it is over only when it has not been seen for a while."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.judge: Judge = JUDGES[rule.kind](rule)
        self._seen: float | None = None

    def begins(self, moment: Moment) -> Finding | None:
        """Return what is found where it begins at this moment."""
        finding = self.judge.look(moment)
        if finding.is_on:
            was_on, self._seen = self._seen is not None, moment.time
            return None if was_on else finding
        if self._seen is not None and moment.time - self._seen >= self.rule.calm:
            self._seen = None
        return None


class Detector:
    """Looks at one VM.

    Args:
        settings: The rules.
    """

    def __init__(self, settings: AnomalySettings) -> None:
        self._moments = Moments(settings.mining_names, settings.usual_ports)
        self._episodes = [_Episode(rule) for rule in settings.effective()]

    def look(self, reading: Reading, contacts: Iterable[Contact] = ()) -> list[Anomaly]:
        """Return what has begun.

        Args:
            reading: What was measured.
            contacts: Connections that began or ended since the reading before.
        """
        moment = self._moments.take(reading, contacts)
        if moment is None:
            return []
        found = ((episode.rule, episode.begins(moment)) for episode in self._episodes)
        return [Anomaly(rule, moment.time, finding.value, finding.about) for rule, finding in found if finding]
