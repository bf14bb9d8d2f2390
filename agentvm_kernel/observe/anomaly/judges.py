"""How rules of each kind look at a VM's moments."""

from __future__ import annotations

import math
import statistics
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from agentvm_kernel.anomalies import Kind, Rule
from agentvm_kernel.observe.anomaly.moment import Moment
from agentvm_kernel.observe.anomaly.reading import Contact

_SHARE: Final = 0.9
"""Of a window: what holds for so much of it, holds."""

_HOSTS: Final = 256
_TARGETS: Final = 4096
_OUTLIER: Final = 3.0
"""Standard deviations beyond which a value counts no more than one at them."""


@dataclass(frozen=True)
class Finding:
    """What a judge says of a moment.

    Attributes:
        is_on: It is as the rule says.
        value: What was compared with the threshold.
        about: Which host it is about, where it is about one.
    """

    is_on: bool
    value: float
    about: str = ""


class Judge(Protocol):
    """Looks at one VM by one rule."""

    def look(self, moment: Moment) -> Finding:
        """Return what is to be said now; called with each moment, in their order."""


class _Window:
    """Values of the last seconds, with how long each of them held."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._values: deque[tuple[float, float]] = deque()
        self.length = 0.0
        self.sum = 0.0
        self.integral = 0.0

    def add(self, value: float, seconds: float) -> None:
        self._values.append((value, seconds))
        self._count(value, seconds, 1)
        # What lies partly in the window counts: who measures seldom must see something, too.
        while len(self._values) > 1 and self.length - self._values[0][1] >= self._seconds - 1e-6:
            self._count(*self._values.popleft(), -1)

    def _count(self, value: float, seconds: float, sign: int) -> None:
        self.length += sign * seconds
        self.sum += sign * value
        self.integral += sign * value * seconds

    @property
    def is_full(self) -> bool:
        return self.length >= self._seconds - 1e-6

    @property
    def mean(self) -> float:
        return self.integral / self.length if self.length else 0.0


class Above:
    """More than the threshold for nine tenths of the window."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._values = _Window(rule.window)
        self._share = _Window(rule.window)

    def look(self, moment: Moment) -> Finding:
        """Return whether it is, and the mean; time in which it makes no sense is left out."""
        value = moment.values.get(self._rule.metric)
        if value is not None:
            self._values.add(value, moment.seconds)
            self._share.add(float(value > self._rule.threshold), moment.seconds)
        return Finding(self._share.is_full and self._share.mean >= _SHARE, self._values.mean)


class Sum:
    """More than the threshold within the window."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._values = _Window(rule.window)

    def look(self, moment: Moment) -> Finding:
        """Return whether it is, and the sum."""
        self._values.add(moment.values.get(self._rule.metric, 0.0), moment.seconds)
        return Finding(self._values.sum > self._rule.threshold, self._values.sum)


class Distinct:
    """More hosts and ports than the threshold within the window."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._seen: OrderedDict[tuple[str, int], float] = OrderedDict()

    def look(self, moment: Moment) -> Finding:
        """Return whether it is, and how many."""
        for contact in moment.arrivals:
            if _counts(self._rule, contact):
                self._seen.pop((contact.host, contact.port), None)
                self._seen[contact.host, contact.port] = moment.time
        while self._seen and (
            len(self._seen) > _TARGETS or next(iter(self._seen.values())) <= moment.time - self._rule.window
        ):
            self._seen.popitem(last=False)
        return Finding(len(self._seen) > self._rule.threshold, float(len(self._seen)))


class Regular:
    """Connections to one host at intervals that are more alike than the threshold says.

    What is compared is the coefficient of variation (standard deviation over mean) of the last intervals. Of arrivals
    by chance it is 1, of a clock's 0, of intervals drawn from a span of a fifth around their mean 0.12.
    """

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._arrivals: OrderedDict[str, deque[float]] = OrderedDict()

    def look(self, moment: Moment) -> Finding:
        """Return whether there is such a host, and how much its intervals vary."""
        for contact in moment.arrivals:
            if _counts(self._rule, contact):
                self._arrive(contact)
        found = [(self._variation(times, moment.time), host) for host, times in self._arrivals.items()]
        value, host = min(found, default=(math.inf, ""))
        return Finding(value < self._rule.threshold, value, host)

    def _arrive(self, contact: Contact) -> None:
        times = self._arrivals.pop(contact.host, None) or deque(maxlen=self._rule.least + 1)
        # A page's dozen of connections is one visit.
        if not times or contact.time - times[-1] >= self._rule.floor:
            times.append(contact.time)
        self._arrivals[contact.host] = times
        if len(self._arrivals) > _HOSTS:
            self._arrivals.popitem(last=False)

    def _variation(self, times: deque[float], now: float) -> float:
        if len(times) <= self._rule.least or now - times[0] > self._rule.window:
            return math.inf
        intervals = [later - earlier for earlier, later in zip(times, list(times)[1:], strict=False)]
        mean = statistics.fmean(intervals)
        if now - times[-1] > 3 * mean:  # it has stopped
            return math.inf
        return statistics.stdev(intervals) / mean


class Deviation:
    """More standard deviations above what is usual in this VM than the threshold says, for the window.

    Mean and variance are weighted exponentially (West, "Updating mean and variance estimates", 1979, in the form for
    moving ones of Finch, "Incremental calculation of weighted mean and variance", 2009). A value far out counts as one
    that is less far out: what goes on for long becomes usual in the end, but not at once.
    """

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._mean = 0.0
        self._variance = 0.0
        self._samples = 0
        self._share = _Window(rule.window)

    def look(self, moment: Moment) -> Finding:
        """Return whether it is, and how many."""
        rate = moment.values.get(self._rule.metric)
        if rate is None:
            return Finding(False, 0.0)
        if self._rule.metric in {
            "cpu_percent",
            "unattended_cpu_percent",
            "mining_cpu_percent",
            "memory",
            "connections",
        }:
            value = rate
        else:
            value = rate / moment.seconds
        z = self._learn(value, moment.seconds)
        self._share.add(float(z > self._rule.threshold), moment.seconds)
        return Finding(self._share.is_full and self._share.mean >= _SHARE, z)

    def _learn(self, value: float, seconds: float) -> float:
        """Return how far out a value is, and take it into account."""
        deviation = max(math.sqrt(self._variance), self._rule.floor, 1e-9)
        self._samples += 1
        if self._samples == 1:
            self._mean = value
            return 0.0
        z = (value - self._mean) / deviation
        is_warm = self._samples > self._rule.least
        difference = value - self._mean
        if is_warm:
            difference = max(-_OUTLIER * deviation, min(_OUTLIER * deviation, difference))
        weight = 1 - 0.5 ** (seconds / self._rule.half_life)
        if not is_warm:  # at first all samples count alike
            weight = max(weight, 1 / self._samples)
        self._mean += weight * difference
        self._variance = (1 - weight) * (self._variance + weight * difference * difference)
        return z if is_warm else 0.0


JUDGES: Final[dict[Kind, Callable[[Rule], Judge]]] = {
    "above": Above,
    "sum": Sum,
    "distinct": Distinct,
    "regular": Regular,
    "deviation": Deviation,
}


def _counts(rule: Rule, contact: Contact) -> bool:
    return rule.metric == "targets" or contact.verdict == "refused"
