"""All samples of a run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from agentvm_kernel.bench.figures import Series
from agentvm_kernel.bench.memory import memory_of


class Book:
    """All series of a run, by name."""

    def __init__(self) -> None:
        self._series: dict[str, Series] = {}

    def add(self, name: str, sample: float, unit: str = "ms") -> None:
        """Add a sample."""
        self._series.setdefault(name, Series(name, unit)).add(sample)

    def find(self, name: str) -> Series | None:
        """Return a series, if there is one of that name."""
        return self._series.get(name)

    def __getitem__(self, name: str) -> Series:
        """Return a series."""
        return self._series[name]

    @contextmanager
    def timed(self, *names: str) -> Iterator[None]:
        """Add the milliseconds that a block takes, if it ends well."""
        began = time.perf_counter()
        yield
        for name in names:
            self.add(name, (time.perf_counter() - began) * 1000)

    def weigh(self, name: str, pid: int) -> None:
        """Add a process's memory."""
        found = memory_of(pid)
        self.add(f"private memory, {name}", found.private, "MB")
        self.add(f"of that clean, {name}", found.private_clean, "MB")
        self.add(f"of that dirty, {name}", found.private_dirty, "MB")
        self.add(f"proportional memory, {name}", found.proportional, "MB")
