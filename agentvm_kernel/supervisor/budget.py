"""What of the host's memory and cores VMs may take."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_MEMINFO: Final = Path("/proc/meminfo")
# What an idle clone takes of its own, and room for what its cells do.
PER_VM: Final = 128 << 20
_RUNNING_PER_CORE: Final = 4


def available_memory() -> int:
    """Return the bytes that the host has available without swapping (proc(5), MemAvailable)."""
    return _meminfo("MemAvailable")


def total_memory() -> int:
    """Return the bytes of memory that the host has (proc(5), MemTotal)."""
    return _meminfo("MemTotal")


def _meminfo(name: str) -> int:
    lines = _MEMINFO.read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


class Budget:
    """The share that is the VMs'.

    Args:
        share: Share of the memory that is available, 0 to 1.
    """

    def __init__(self, share: float) -> None:
        self.share = share

    def room(self) -> int:
        """Return how many more VMs this host has memory for."""
        return int(available_memory() * self.share / PER_VM)

    def slots(self) -> int:
        """Return how many forks this host can run at the same time, by its cores and memory; at least one."""
        return max(1, min(self.room(), _RUNNING_PER_CORE * cores()))
