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
from collections.abc import Callable, Iterable
from pathlib import Path

from agentvm_kernel.errors import HostError

_PR_SET_CHILD_SUBREAPER = 36
_QEMU_COMM = b"qemu-system-"
_SWEEP_SECONDS = 0.1
_ENDS = (os.CLD_EXITED, os.CLD_KILLED, os.CLD_DUMPED)


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
        known: Returns the pids of those that have been started. Others, which died before anybody knew of them, are
            looked for in a thread: that takes as long as there are processes on the host.
    """

    def __init__(self, on_reaped: Callable[[int, int], None], known: Callable[[], Iterable[int]]) -> None:
        self._on_reaped = on_reaped
        self._known = known
        self._sweep: asyncio.TimerHandle | asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; called in the event loop's thread."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self.reap)

    def stop(self) -> None:
        """End."""
        asyncio.get_running_loop().remove_signal_handler(signal.SIGCHLD)
        if self._sweep is not None:
            self._sweep.cancel()

    def reap(self) -> None:
        """Reap every adopted QEMU that is dead: those that are known at once, others in a moment."""
        for pid in tuple(self._known()):
            self._reap(pid)
        if not isinstance(self._sweep, asyncio.TimerHandle):
            self._sweep = asyncio.get_running_loop().call_later(_SWEEP_SECONDS, self._begin_sweep)

    def _begin_sweep(self) -> None:
        self._sweep = asyncio.get_running_loop().create_task(self._look_for_others(), name="reaper")

    async def _look_for_others(self) -> None:
        for pid in await asyncio.to_thread(_dead_adopted_qemus):
            self._reap(pid)

    def _reap(self, pid: int) -> None:
        try:
            # Only a look at first: that it stopped is news for the thread that traces it.
            found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is not None and found.si_code in _ENDS:
                self._on_reaped(*os.waitpid(pid, os.WNOHANG))
        except ChildProcessError:  # it is not a child of ours yet, or not any more
            return


def _dead_adopted_qemus() -> list[int]:
    """Return the zombies among our children that are QEMUs started by libvirt's daemonising.

    Those lead a session of their own. Children that libvirt itself waits for (it asks QEMU for its capabilities) are in
    our session and must be left to libvirt.
    """
    own, own_session = os.getpid(), os.getsid(0)
    dead = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            text = Path(entry.path, "stat").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        comm, _, rest = text.partition(b"(")[2].rpartition(b")")
        state, ppid, _, session = rest.split(maxsplit=4)[:4]
        if state == b"Z" and int(ppid) == own and int(session) != own_session and comm.startswith(_QEMU_COMM):
            dead.append(int(entry.name))
    return dead
