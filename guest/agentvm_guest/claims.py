"""What a guest tells of itself: how many processes, how busy, how full. The host cannot check it."""

from __future__ import annotations

import os
from pathlib import Path


def claims(proc: Path = Path("/proc"), root: Path = Path("/")) -> dict[str, int | float]:
    """Return it; what cannot be read is left out.

    Args:
        proc: Where procfs is.
        root: Where the root file system is.
    """
    found: dict[str, int | float] = {}
    for read, place in ((_load, proc), (_started, proc), (_memory, proc), (_filesystem, root)):
        try:
            found |= read(place)
        except (OSError, ValueError, IndexError):
            continue
    return found


def _load(proc: Path) -> dict[str, int | float]:
    fields = (proc / "loadavg").read_text().split()
    return {"load": float(fields[0]), "processes": int(fields[3].split("/")[1])}


def _started(proc: Path) -> dict[str, int | float]:
    return {"processes_started": _number((proc / "stat").read_text(), "processes ")}


def _memory(proc: Path) -> dict[str, int | float]:
    return {"memory_free": 1024 * _number((proc / "meminfo").read_text(), "MemAvailable:")}


def _filesystem(root: Path) -> dict[str, int | float]:
    disk = os.statvfs(root)
    return {"filesystem_size": disk.f_blocks * disk.f_frsize, "filesystem_free": disk.f_bavail * disk.f_frsize}


def _number(text: str, name: str) -> int:
    """Return the number in the line that begins with a name."""
    (line,) = [line for line in text.splitlines() if line.startswith(name)]
    return int(line[len(name) :].split()[0])
