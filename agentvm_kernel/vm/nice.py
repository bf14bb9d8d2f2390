"""Niceness: QEMU stands behind the host's own work, so that the host's shell stays usable."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from pathlib import Path
from typing import Final

NICE: Final = 5
"""Of a QEMU in use: the host's shell comes first."""
NICE_READY: Final = 10
"""Of a QEMU that is being made ready: those in use come first."""
NICE_BEHIND: Final = 15
"""Of a QEMU that wants the CPU all the time: those that want it for a moment come first."""


def set_nice(pid: int, nice: int) -> None:
    """Set a QEMU's niceness, as far as this process may.

    Args:
        pid: QEMU's process id; libvirt makes it a process group of its own.
        nice: The value. An ordinary user can never take niceness back, so threads of one get no more than `NICE`.
    """
    of_threads = nice if _may_lower() else min(nice, NICE)
    with suppress(ProcessLookupError, PermissionError):
        os.setpriority(os.PRIO_PGRP, os.getpgid(pid), of_threads)  # by group: it would be one thread's otherwise
    # Where the scheduler groups by session it compares these values instead (sched(7), "autogroup"); anybody may take
    # them back to zero.
    with suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(nice))


def _may_lower() -> bool:
    return os.geteuid() == 0 or resource.getrlimit(resource.RLIMIT_NICE)[0] >= 20 - NICE
