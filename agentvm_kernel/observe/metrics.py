"""The metrics for Prometheus, in a registry of their own.

What happens is counted when it happens. What is measured of VMs is asked for when Prometheus asks, so that the series
of a VM end with it. No label has values that a guest can make up: ids of VMs are the supervisor's, profiles and
flavours the configuration's, and what else could come from outside is one of a few words, or ``other``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from agentvm_kernel.observe.sample import Sample

Outcome = Literal["completed", "failed", "timeout"]
"""What comes of an execution."""

_OUTCOMES: Final[tuple[Outcome, ...]] = ("completed", "failed", "timeout")
_LIMITS: Final = (
    "lifetime", "cell_deadline", "user_memory_mib", "output_mib", "output_mib_per_second", "connections", "max_bytes",
)  # fmt: skip
_OTHER: Final = "other"
_WORD: Final = re.compile(r"[a-z][a-z0-9_]{0,31}")
_MOST_WORDS: Final = 32

_BOOT: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120)
_SNAPSHOT: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_RESTORE: Final = (0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_ACQUIRE: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_EXECUTION: Final = (0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 120, 300, 600, 1800)


@dataclass(frozen=True)
class Labelled:
    """A VM as Prometheus is told of it.

    Attributes:
        vm: Its id.
        profile: Name of its profile; empty for one that is kept ready.
        image: Flavour of its image; empty likewise.
        sample: What was measured last.
    """

    vm: str
    profile: str
    image: str
    sample: Sample


class Metrics:
    """Takes note of what happens.

    Args:
        reasons: Why output can be blocked, as far as that is known.

    Attributes:
        registry: What is exposed.
    """

    def __init__(self, reasons: Iterable[str] = ()) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # each would bring a series besides, of which nobody asks
        registry = self.registry = CollectorRegistry()
        self._boot = Histogram(
            "agent_vm_boot_duration_seconds",
            "Until a VM was there: a cold boot of its image, or a clone of a snapshot from a blank.",
            ("kind",), registry=registry, buckets=_BOOT,
        )  # fmt: skip
        self._snapshot = Histogram(
            "agent_vm_snapshot_duration_seconds",
            "Snapshots: how long the VM stood still, and how long until all was safe on disk.",
            ("phase",), registry=registry, buckets=_SNAPSHOT,
        )  # fmt: skip
        self._restore = Histogram(
            "agent_vm_snapshot_restore_duration_seconds",
            "Rollbacks and adopted forks: from the request to the confirmed identity of the VM in the old one's place.",
            ("kind",), registry=registry, buckets=_RESTORE,
        )  # fmt: skip
        self._acquire = Histogram(
            "agent_vm_pool_acquire_duration_seconds",
            "Leases: from the request to the confirmed identity, with all that had to be waited for.",
            registry=registry, buckets=_ACQUIRE,
        )  # fmt: skip
        self._execution_seconds = Histogram(
            "agent_execution_duration_seconds", "How long cells ran.", registry=registry, buckets=_EXECUTION
        )
        self._executions = Counter(
            "agent_execution", "Cells that were run, by what came of them.", ("outcome",), registry=registry
        )
        self._timeouts = Counter(
            "agent_execution_timeout", "Cells that were ended at their deadline.", registry=registry
        )
        self._violations = Counter(
            "agent_resource_limit_violations", "Limits that were reached, by limit.", ("limit",), registry=registry
        )
        self._attempts = Counter(
            "agent_network_connection_attempts",
            "Connections that VMs wanted to make; one that is cut for what it says later counts under both.",
            ("allowed",), registry=registry,
        )  # fmt: skip
        self._blocked = Counter(
            "agent_output_blocked", "Parts of guests' output that were not let through.", ("reason",), registry=registry
        )
        self._words: dict[Counter, set[str]] = {self._violations: set(), self._blocked: set()}
        self._begin_at_zero(reasons)

    def _begin_at_zero(self, reasons: Iterable[str]) -> None:
        """Have the series there before the first event, so that its increase can be seen."""
        for outcome in _OUTCOMES:
            self._executions.labels(outcome)
        for allowed in ("true", "false"):
            self._attempts.labels(allowed)
        for histogram, kinds in (
            (self._snapshot, ("pause", "stored")),
            (self._restore, ("rollback", "adopt")),
            (self._boot, ("cold", "clone")),
        ):
            for kind in kinds:
                histogram.labels(kind)
        for counter, words in ((self._violations, _LIMITS), (self._blocked, reasons)):
            for word in words:
                counter.labels(self._word(counter, word))

    def boot(self, kind: Literal["cold", "clone"], seconds: float) -> None:
        """A VM is there.

        Args:
            kind: An image was booted, or a blank has become a clone.
            seconds: How long that took.
        """
        self._boot.labels(kind).observe(seconds)

    def snapshot(self, pause: float, stored: float) -> None:
        """A snapshot was taken.

        Args:
            pause: Seconds that the VM stood still.
            stored: Seconds until it was safe on disk.
        """
        self._snapshot.labels("pause").observe(pause)
        self._snapshot.labels("stored").observe(stored)

    def restore(self, kind: Literal["rollback", "adopt"], seconds: float) -> None:
        """A lease has another VM.

        Args:
            kind: Why.
            seconds: How long that took.
        """
        self._restore.labels(kind).observe(seconds)

    def acquire(self, seconds: float) -> None:
        """A VM was leased.

        Args:
            seconds: How long that took.
        """
        self._acquire.observe(seconds)

    def execution(self, outcome: Outcome, seconds: float | None) -> None:
        """A cell has ended.

        Args:
            outcome: What came of it.
            seconds: How long it ran; None if that is not known.
        """
        self._executions.labels(outcome).inc()
        if seconds is not None:
            self._execution_seconds.observe(max(0.0, seconds))
        if outcome == "timeout":
            self._timeouts.inc()

    def limit_violation(self, limit: str) -> None:
        """A limit was reached.

        Args:
            limit: Its name, as in the configuration.
        """
        self._violations.labels(self._word(self._violations, limit)).inc()

    def connection_attempt(self, *, allowed: bool, count: int = 1) -> None:
        """A VM wanted to make connections.

        Args:
            allowed: Whether the policy lets it.
            count: How many.
        """
        self._attempts.labels(str(allowed).lower()).inc(count)

    def output_blocked(self, reason: str, count: int = 1) -> None:
        """Parts of a guest's output were not let through.

        Args:
            reason: Why, a word of the output firewall's.
            count: How many.
        """
        self._blocked.labels(self._word(self._blocked, reason)).inc(max(0, count))

    def _word(self, counter: Counter, word: str) -> str:
        """Return a label's value: a word, of which there cannot be more than a few, whoever sent it."""
        known = self._words[counter]
        if word in known:
            return word
        if len(known) >= _MOST_WORDS or not _WORD.fullmatch(word):
            return _OTHER
        known.add(word)
        return word

    def observe(self, vms: Callable[[], Iterable[Labelled]], pool: Callable[[], Mapping[str, int]]) -> None:
        """Expose what is measured, too.

        Args:
            vms: Returns the VMs that there are.
            pool: Returns how many VMs there are of each kind.
        """
        self.registry.register(_Measured(vms, pool))

    def exposition(self) -> bytes:
        """Return all of it as Prometheus reads it (text format 0.0.4)."""
        return generate_latest(self.registry)


class _Measured(Collector):
    """What is asked for anew each time."""

    def __init__(self, vms: Callable[[], Iterable[Labelled]], pool: Callable[[], Mapping[str, int]]) -> None:
        self._vms = vms
        self._pool = pool

    def describe(self) -> Iterable[Metric]:
        """Return the families without asking anybody."""
        return (*_families(), _pool_size())

    def collect(self) -> Iterator[Metric]:
        """Return the families with their samples."""
        families = _families()
        for vm in self._vms():
            labels, sample = (vm.vm, vm.profile, vm.image), vm.sample
            values = (
                sample.cpu_percent, sample.memory, sample.disk_read, sample.disk_written, sample.network_received,
                sample.network_sent,
            )  # fmt: skip
            for family, value in zip(families, values, strict=True):
                family.add_metric(labels, value)
        yield from families
        size = _pool_size()
        for kind, number in self._pool().items():
            size.add_metric((kind,), number)
        yield size


def _families() -> tuple[GaugeMetricFamily | CounterMetricFamily, ...]:
    labels = ("vm", "profile", "image")
    gauge, counter = GaugeMetricFamily, CounterMetricFamily
    return (
        gauge("agent_vm_cpu_usage_percent", "CPU that a VM's QEMU uses, percent of one core.", labels=labels),
        gauge(
            "agent_vm_memory_usage_bytes", "Memory that a VM costs the host; what VMs share is divided among them.",
            labels=labels,
        ),
        counter("agent_vm_disk_read_bytes", "What a guest has read from its disk.", labels=labels),
        counter("agent_vm_disk_write_bytes", "What a guest has written to its disk.", labels=labels),
        counter("agent_vm_network_rx_bytes", "What a VM has received through the gateway.", labels=labels),
        counter("agent_vm_network_tx_bytes", "What a VM has sent through the gateway.", labels=labels),
    )  # fmt: skip


def _pool_size() -> GaugeMetricFamily:
    return GaugeMetricFamily("agent_vm_pool_size", "VMs and blanks that there are, by kind.", labels=("kind",))
