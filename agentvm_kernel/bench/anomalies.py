"""``agentvm bench anomalies``: what the detector finds in traces of which it is known what goes on in them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from agentvm_kernel.anomalies import AnomalySettings, Severity
from agentvm_kernel.bench.bed import Say
from agentvm_kernel.bench.figures import Figure, Series
from agentvm_kernel.bench.traces import traces
from agentvm_kernel.observe.anomaly.detector import Detector
from agentvm_kernel.observe.anomaly.reading import Reading
from agentvm_kernel.observe.anomaly.trace import Trace

Seen = tuple[float, str, Severity]
Watch = Callable[[Trace], list[Seen]]

_CALM: Final = 60.0

SIGNS: Final = {
    "miner": {"unattended-cpu", "mining-cpu", "mining-name"},
    "exfiltration": {"bulk-upload", "slow-upload", "unusual-upload"},
    "slow exfiltration": {"slow-upload", "unusual-upload"},
    "fork bomb": {"process-storm"},
    "port scan": {"port-scan", "refused-connections"},
    "beacon": {"beacon"},
    "refused-connection storm": {"refused-connections"},
    "output flood": {"output-flood"},
    "disk fill": {"disk-fill"},
}
"""Which rules are right about an attack: to be alarmed by something else does not count."""


@dataclass
class Score:
    """What was found.

    Attributes:
        delays: Seconds from the beginning of each attack that was found until it was, by kind.
        missed: Names of attacks that were not found, by kind.
        false: Alarms where there was nothing: trace, rule, severity.
        hours: How long there was nothing to be found, hours of a VM.
    """

    delays: dict[str, list[float]] = field(default_factory=dict)
    missed: dict[str, list[str]] = field(default_factory=dict)
    false: list[tuple[str, str, Severity]] = field(default_factory=list)
    hours: float = 0.0

    @property
    def found(self) -> int:
        """How many attacks were found."""
        return sum(map(len, self.delays.values()))

    @property
    def attacks(self) -> int:
        """How many there were."""
        return self.found + sum(map(len, self.missed.values()))

    @property
    def detection_rate(self) -> float:
        """Which share of the attacks was found."""
        return self.found / self.attacks

    def false_rate(self, *severities: Severity) -> float:
        """Return the false alarms of an hour of a VM.

        Args:
            severities: Of these; by default of all.
        """
        return sum(not severities or severity in severities for *_, severity in self.false) / self.hours


def detect(trace: Trace) -> list[Seen]:
    """Return what the rules that ship with this package see in a trace."""
    detector = Detector(AnomalySettings())
    return [
        (anomaly.time, anomaly.rule.name, anomaly.rule.severity)
        for reading, contacts in trace.steps
        for anomaly in detector.look(reading, contacts)
    ]


def naive(trace: Trace) -> list[Seen]:
    """Return what fixed thresholds see that are held against each second by itself, each told once a minute."""
    told: dict[str, float] = {}
    seen: list[Seen] = []
    for (before, _), (now, _) in zip(trace.steps, trace.steps[1:], strict=False):
        for rule in _over(before, now):
            if now.time - told.get(rule, -_CALM) >= _CALM:
                seen.append((now.time, rule, "warning"))
            told[rule] = now.time
    return seen


def _over(before: Reading, now: Reading) -> Iterable[str]:
    seconds = max(now.time - before.time, 0.1)
    rates = {
        "unattended-cpu": (0.0 if now.executing else max(now.cpu_percent, now.cpu_wanted), 95),
        "bulk-upload": ((now.network_sent - before.network_sent) / seconds, 10e6),
        "refused-connections": ((now.refused - before.refused) / seconds, 3),
        "output-flood": ((now.output - before.output) / seconds, 10e6),
        "disk-fill": ((now.disk_space - before.disk_space) / seconds, 16e6),
        "process-storm": ((now.processes - before.processes) / seconds, 200),
    }
    return [rule for rule, (value, threshold) in rates.items() if value > threshold]


def score(watch: Watch, over: Iterable[Trace]) -> Score:
    """Return what something finds in traces.

    Args:
        watch: It.
        over: The traces.
    """
    result = Score()
    for trace in over:
        seen = watch(trace)
        begins = trace.begins
        if begins is None:
            result.hours += trace.hours
            result.false += [(trace.name, rule, severity) for _, rule, severity in seen]
            continue
        result.hours += begins / 3600
        result.false += [(trace.name, rule, severity) for time, rule, severity in seen if time < begins]
        right = [time - begins for time, rule, _ in seen if time >= begins and rule in SIGNS[trace.kind]]
        if right:
            result.delays.setdefault(trace.kind, []).append(min(right))
        else:
            result.missed.setdefault(trace.kind, []).append(trace.name)
    return result


def run(say: Say) -> list[Figure]:
    """Let the detector, and fixed thresholds, look at all traces.

    Args:
        say: Told what is going on.
    """
    say("looking at traces", None)
    over = traces()
    ours, theirs = score(detect, over), score(naive, over)
    figures = [
        _beside("attacks found", "%", 100 * ours.detection_rate, 100 * theirs.detection_rate),
        _beside("false alarms, all", "per VM-hour", ours.false_rate(), theirs.false_rate()),
        _beside(
            "false alarms that the notebook is told of", "per VM-hour", ours.false_rate("warning", "critical"),
            theirs.false_rate("warning", "critical"),
        ),
    ]  # fmt: skip
    for kind in SIGNS:
        found, missed = ours.delays.get(kind, []), ours.missed.get(kind, [])
        share = 100 * len(found) / max(1, len(found) + len(missed))
        others, lost = theirs.delays.get(kind, []), theirs.missed.get(kind, [])
        their_share = 100 * len(others) / max(1, len(others) + len(lost))
        figures.append(_beside(f"{kind}: found", "%", share, their_share))
        if found:
            baseline = Series("fixed thresholds", "s", others) if others else None
            figures.append(Figure(Series(f"{kind}: until it is found", "s", found), baseline))
    return figures


def _beside(name: str, unit: str, ours: float, theirs: float) -> Figure:
    return Figure(Series(name, unit, [ours]), Series("fixed thresholds", unit, [theirs]))


def describe(result: Score) -> str:
    """Say what was missed and what was a false alarm, for tests and for who changes rules."""
    delays = {kind: round(statistics.median(found), 1) for kind, found in result.delays.items()}
    return f"missed: {result.missed}\nfalse: {result.false}\nmedian delays: {delays}"
