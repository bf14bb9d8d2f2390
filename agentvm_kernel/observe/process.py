"""What a process uses of the host: CPU time and memory, as the kernel counts them (proc(5): stat, statm, smaps)."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")

_TICK: Final = 1 / os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGESIZE")
_ZOMBIE: Final = b"Z"
# Of proc(5)'s stat, counted from the state on: before it stands a name in parentheses, which may contain anything.
_STATE, _USER, _SYSTEM, _STARTED = 0, 11, 12, 19
_LINE: Final = re.compile(
    rb"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ (\S+) (\d+)|^(Rss|Pss|Private_Clean|Private_Dirty): +(\d+)", re.MULTILINE
)


@dataclass(frozen=True)
class Usage:
    """What costs next to nothing to read.

    Attributes:
        started: When it was started, seconds after the host was; tells it from another process of the same number.
        cpu_seconds: CPU time so far, of all its threads.
        resident: Bytes of its memory that are in the host's.
        written: Of that, bytes that are its own because it wrote them.
    """

    started: float
    cpu_seconds: float
    resident: int
    written: int


@dataclass(frozen=True)
class Weight:
    """What the kernel has to walk through all page tables of a process for.

    Attributes:
        proportional: Bytes: every page divided by the number of processes that share it. The sum over all processes is
            what the host really spends.
        private: Bytes that would come free if it ended.
        mapped: Bytes of one file's mappings that are in memory.
    """

    proportional: int
    private: int
    mapped: int


def read_usage(pid: int, proc: Path = PROC) -> Usage | None:
    """Return what a process uses; ``None`` if there is none of that number, or one that has ended.

    Args:
        pid: The process.
        proc: Where procfs is.
    """
    try:
        stat = (proc / str(pid) / "stat").read_bytes()
        statm = (proc / str(pid) / "statm").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()
    _, resident, shared, *_ = map(int, statm.split())
    if fields[_STATE] == _ZOMBIE:
        return None
    return Usage(
        started=int(fields[_STARTED]) * _TICK,
        cpu_seconds=(int(fields[_USER]) + int(fields[_SYSTEM])) * _TICK,
        resident=resident * _PAGE,
        written=(resident - shared) * _PAGE,
    )


def weigh(pid: int, file: Path, proc: Path = PROC) -> Weight | None:
    """Return what a process's memory costs; ``None`` if it is gone, or the host does not let this process look.

    It costs milliseconds, and the process cannot change its mappings meanwhile.

    Args:
        pid: The process.
        file: The file whose mappings are counted by themselves.
        proc: Where procfs is.
    """
    try:
        wanted = file.stat()
        text = (proc / str(pid) / "smaps").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    device = b"%02x:%02x" % (os.major(wanted.st_dev), os.minor(wanted.st_dev))
    sums = {b"Pss": 0, b"Private_Clean": 0, b"Private_Dirty": 0}
    mapped, is_of_file = 0, False
    for where, inode, name, kib in _LINE.findall(text):
        if not name:
            is_of_file = where == device and int(inode) == wanted.st_ino
        elif name != b"Rss":
            sums[name] += int(kib)
        elif is_of_file:
            mapped += int(kib)
    private = sums[b"Private_Clean"] + sums[b"Private_Dirty"]
    return Weight(sums[b"Pss"] << 10, private << 10, mapped << 10)
