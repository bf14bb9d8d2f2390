"""Reaping QEMU.

QEMU is reparented when libvirt daemonises it. The supervisor makes itself the sub-reaper of its descendants, so that
QEMU becomes its child (which also lets an ordinary user read its memory where ``ptrace_scope`` is 1), and then has to
reap it at once: libvirt takes a zombie for a living process and waits seconds for it.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
from collections.abc import Callable
from pathlib import Path

from agentvm_kernel.errors import HostError

_PR_SET_CHILD_SUBREAPER = 36
_QEMU_COMM = "qemu-system-"


def become_subreaper() -> None:
    """Make this process inherit its orphaned descendants (``prctl(2)``).

    Raises:
        HostError: the kernel refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise HostError(f"prctl(PR_SET_CHILD_SUBREAPER): {os.strerror(ctypes.get_errno())}")


def describe_status(status: int) -> str:
    """Return in words how a process ended, from its ``waitpid`` status."""
    if os.WIFSIGNALED(status):
        return f"was killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"ended with status {os.WEXITSTATUS(status)}"


class Reaper:
    """Reaps the QEMU processes that this process has adopted, as soon as they die.

    Args:
        on_reaped: Called with pid and ``waitpid`` status of each.
    """

    def __init__(self, on_reaped: Callable[[int, int], None]) -> None:
        self._on_reaped = on_reaped

    def start(self) -> None:
        """Begin; called in the event loop's thread."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self.reap)

    def stop(self) -> None:
        """End."""
        asyncio.get_running_loop().remove_signal_handler(signal.SIGCHLD)

    def reap(self) -> None:
        """Reap every adopted QEMU that is dead."""
        for pid in _dead_adopted_qemus():
            reaped, status = os.waitpid(pid, os.WNOHANG)
            if reaped:
                self._on_reaped(pid, status)


def _dead_adopted_qemus() -> list[int]:
    """Return the zombies among our children that are QEMUs started by libvirt's daemonising.

    Those lead a session of their own. Children that libvirt itself waits for (it asks QEMU for its capabilities) are in
    our session and must be left to libvirt.
    """
    own_session = os.getsid(0)
    dead = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            text = Path(entry.path, "stat").read_text(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        comm, _, rest = text.partition("(")[2].rpartition(")")
        state, ppid, _, session = rest.split()[:4]
        if state == "Z" and int(ppid) == os.getpid() and int(session) != own_session and comm.startswith(_QEMU_COMM):
            dead.append(int(entry.name))
    return dead
