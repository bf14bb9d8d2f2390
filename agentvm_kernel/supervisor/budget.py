"""What of the host's memory and cores VMs may take."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_MEMINFO: Final = Path("/proc/meminfo")
# What an idle clone takes of its own, and room for what its cells do.
PER_VM: Final = 128 << 20
_SHARE: Final = 0.7
_RUNNING_PER_CORE: Final = 4


def available_memory() -> int:
    """Return the bytes that the host has available without swapping (proc(5), MemAvailable)."""
    lines = _MEMINFO.read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))


def room() -> int:
    """Return how many more VMs this host has memory for."""
    return int(available_memory() * _SHARE / PER_VM)


def slots() -> int:
    """Return how many forks this host can run at the same time, by its cores and available memory; at least one."""
    return max(1, min(room(), _RUNNING_PER_CORE * len(os.sched_getaffinity(0))))
