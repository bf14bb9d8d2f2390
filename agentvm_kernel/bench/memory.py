"""Memory of a process as the kernel counts it (``proc_pid_smaps_rollup(5)``)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_MB = 1_000_000


@dataclass(frozen=True)
class Memory:
    """Memory of a process, MB (10^6 bytes).

    Attributes:
        private_clean: Pages of files that no other process maps now.
        private_dirty: Pages that it wrote and nobody shares.
        proportional: Every page divided by the number of processes that map it (PSS).
    """

    private_clean: float
    private_dirty: float
    proportional: float

    @property
    def private(self) -> float:
        """Unique set size: what would come free if it ended."""
        return self.private_clean + self.private_dirty


def parse_rollup(text: str) -> Memory:
    """Read the text of ``/proc/PID/smaps_rollup``."""
    kib = {name: int(value) for name, value in re.findall(r"^(\w+): +(\d+) kB$", text, re.MULTILINE)}
    clean, dirty, pss = (kib[name] * 1024 / _MB for name in ("Private_Clean", "Private_Dirty", "Pss"))
    return Memory(clean, dirty, pss)


def memory_of(pid: int) -> Memory:
    """Return a process's memory."""
    return parse_rollup(Path(f"/proc/{pid}/smaps_rollup").read_text())
