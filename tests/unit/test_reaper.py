"""Dead QEMUs are reaped; what stops because a thread traces it is that thread's news."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys

from agentvm_kernel.vm.reaper import Reaper

_PTRACE_ATTACH, _PTRACE_DETACH = 16, 17
_WALL = 0x40000000


async def test_a_process_that_ended_is_reaped_once() -> None:
    ended: asyncio.Queue[tuple[int, int]] = asyncio.Queue()
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", "import os; os._exit(3)"], {})
    reaper = Reaper(lambda pid, status: ended.put_nowait((pid, status)), lambda: [pid])
    reaper.start()
    try:
        reaper.reap()  # it may have ended before
        found, status = await asyncio.wait_for(ended.get(), 60)
        assert (found, os.waitstatus_to_exitcode(status)) == (pid, 3)
        reaper.reap()
        assert ended.empty()
    finally:
        reaper.stop()


async def test_a_stop_is_left_to_who_traces() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with subprocess.Popen(["/bin/sleep", "600"]) as process:
        ended: list[tuple[int, int]] = []
        reaper = Reaper(lambda pid, status: ended.append((pid, status)), lambda: [process.pid])
        try:
            assert libc.ptrace(_PTRACE_ATTACH, process.pid, None, None) == 0
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)  # noqa: ASYNC222 - it is a moment
            reaper.reap()
            assert ended == []
            _, status = os.waitpid(process.pid, _WALL)  # noqa: ASYNC222
            assert os.WIFSTOPPED(status)
            assert libc.ptrace(_PTRACE_DETACH, process.pid, None, None) == 0
        finally:
            reaper.stop()
            process.send_signal(signal.SIGKILL)
