"""Runs benchmarks by name."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass

from agentvm_kernel.bench import (
    Benchmark,
    anomalies,
    clone,
    egress,
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
        figures = []
        if name in {None, Benchmark.KERNEL}:
            figures += kernel.run(wanted, say)
        if name in {None, Benchmark.CLONE}:
            figures += asyncio.run(clone.run(wanted, say))
        if name in {None, Benchmark.SNAPSHOT}:
            figures += asyncio.run(history.run_snapshot(wanted, say))
        if name in {None, Benchmark.ROLLBACK}:
            figures += asyncio.run(history.run_rollback(wanted, say))
        if name in {None, Benchmark.FORK}:
            figures += asyncio.run(fork.run(wanted, say))
        if name in {None, Benchmark.TIMETRAVEL}:
            figures += timetravel.run(wanted, say)
        if name in {None, Benchmark.POOL}:
            figures += asyncio.run(pool.run(wanted, say))
            figures += neighbours.run(wanted, say)
        if name in {None, Benchmark.EGRESS}:
            figures += asyncio.run(egress.run(wanted, say))
        if name in {None, Benchmark.SAMPLING}:
            figures += asyncio.run(sampling.run(wanted, say))
        if name in {None, Benchmark.ANOMALIES}:
            figures += anomalies.run(say)
    finally:
        signal.signal(signal.SIGTERM, earlier)
    return Result(figures, wanted, (before, os.getloadavg()[0]))
