"""The tests' own supervisor, seen from outside: its processes, its end."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path

from agentvm_kernel.config import Paths
from agentvm_kernel.supervisor.client import SupervisorClient


def qemus(tag: str) -> list[int]:
    """Return the pids of the QEMUs whose domain name has a tag."""
    wanted = re.compile(rb"guest=agentvm-" + tag.encode() + rb"-")
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if wanted.search((entry / "cmdline").read_bytes()):
                found.append(int(entry.name))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


def supervisor_pid(paths: Paths) -> int:
    """Return the pid of the supervisor of a state folder, from itself: what it forks looks like it for a moment."""

    async def ask() -> int:
        async with SupervisorClient(paths, start=False) as client:
            return int(str((await client.status())["pid"]))

    return asyncio.run(ask())


def private_kib(pid: int) -> int:
    """Return the memory that only this process has, KiB (proc(5), smaps_rollup)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


async def shut_down(paths: Paths) -> None:
    """End the supervisor and wait until it is gone: it holds its lock to the end."""
    async with SupervisorClient(paths, start=False) as client:
        pid = int(str((await client.status())["pid"]))
        process = os.pidfd_open(pid)
        await client.shutdown()
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()
    loop.add_reader(process, gone.set)
    try:
        await asyncio.wait_for(gone.wait(), 30)
    finally:
        loop.remove_reader(process)
        os.close(process)
