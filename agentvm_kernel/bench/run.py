"""Runs benchmarks by name."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Final

from agentvm_kernel.bench import (
    Benchmark,
    anomalies,
    clone,
    egress,
    files,
    firewall,
    fork,
    history,
    kernel,
    neighbours,
    pool,
    sampling,
    timetravel,
)
from agentvm_kernel.bench.bed import Say, Wanted
from agentvm_kernel.bench.figures import Figure

Measure = Callable[[Wanted, Say], list[Figure]]


def _awaited(measure: Callable[[Wanted, Say], Coroutine[None, None, list[Figure]]]) -> Measure:
    return lambda wanted, say: asyncio.run(measure(wanted, say))


_MEASURES: Final[tuple[tuple[Benchmark, Measure], ...]] = (
    (Benchmark.KERNEL, kernel.run),
    (Benchmark.CLONE, _awaited(clone.run)),
    (Benchmark.SNAPSHOT, _awaited(history.run_snapshot)),
    (Benchmark.ROLLBACK, _awaited(history.run_rollback)),
    (Benchmark.FORK, _awaited(fork.run)),
    (Benchmark.TIMETRAVEL, timetravel.run),
    (Benchmark.POOL, _awaited(pool.run)),
    (Benchmark.POOL, neighbours.run),
    (Benchmark.EGRESS, _awaited(egress.run)),
    (Benchmark.FILES, _awaited(files.run)),
    (Benchmark.FIREWALL, firewall.run),
    (Benchmark.SAMPLING, _awaited(sampling.run)),
    (Benchmark.ANOMALIES, lambda _wanted, say: anomalies.run(say)),
)


@dataclass(frozen=True)
class Result:
    """What a run gave.

    Attributes:
        figures: The figures.
        wanted: What they were measured with.
        load: The host's load average over a minute, before and after; the benchmark itself makes about 1.
    """

    figures: list[Figure]
    wanted: Wanted
    load: tuple[float, float]


def run(name: Benchmark | None, wanted: Wanted, say: Say) -> Result:
    """Run a benchmark, or all of them.

    Args:
        name: Which one; ``None`` for all.
        wanted: Image, profile, repetitions.
        say: Told what is going on.

    Raises:
        AgentVMError: no VM could be had.
    """
    before = os.getloadavg()[0]
    # Being told to end must not leave VMs behind.
    earlier = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        chosen = [measure for kind, measure in _MEASURES if name in {None, kind}]
        figures = [figure for measure in chosen for figure in measure(wanted, say)]
    finally:
        signal.signal(signal.SIGTERM, earlier)
    return Result(figures, wanted, (before, os.getloadavg()[0]))
