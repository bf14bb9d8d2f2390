"""What the tests of scale and robustness share: their size, VMs that answer, and a census of what a supervisor has."""

from __future__ import annotations

import asyncio
import math
import os
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import psutil
from accounting import memory
from vms import qemus

from agentvm_kernel.config import Paths
from agentvm_kernel.kernel.endings import never
from agentvm_kernel.kernel.execution import LINK_LIMITS, Runner, running
from agentvm_kernel.link.connection import connect
from agentvm_kernel.supervisor.client import Lease, SupervisorClient
from agentvm_kernel.supervisor.messages import Granted, LeaseRequest

IS_SOAK: Final = os.environ.get("AGENTVM_SOAK") == "1"
SMALL: Final = """
[profiles.small]
vcpus = 1
memory_mib = 256
disk_gb = 2
"""
_MIB: Final = 1 << 20


def size(usual: int, full: int) -> int:
    """How much of something: the usual, or with AGENTVM_SOAK=1 as much as is promised."""
    return full if IS_SOAK else usual


async def granted(lease: Lease) -> Granted:
    """Wait for the grant."""
    async for event in lease:
        if isinstance(event, Granted):
            return event
    raise AssertionError("no grant")


@asynccontextmanager
async def answering(client: SupervisorClient, profile: str) -> AsyncIterator[tuple[Granted, Runner]]:
    """Lease a VM, and have what runs cells in it."""
    request = LeaseRequest(owner="soak", notebook=f"soak/{secrets.token_hex(4)}", profile=profile)
    async with client.lease(request) as lease:
        grant = await granted(lease)
        link = await connect(grant.link, key=bytes.fromhex(grant.key), epoch=grant.epoch, limits=LINK_LIMITS)
        try:
            async with running(link, never()) as runner:
                yield grant, runner
        finally:
            await link.close()


async def tell_nonce(runner: Runner, seconds: float = 240) -> None:
    """Give a VM a nonce in one cell, and have nobody but that VM return it from another."""
    nonce = secrets.token_hex(8)
    assert (await runner.run(f"nonce = {nonce!r}", timeout=seconds)).status == "ok"
    assert (await runner.run("nonce.upper()", timeout=seconds)).result == repr(nonce.upper())


def private_mib(pid: int) -> float:
    """Memory that a process shares with nobody."""
    return float(psutil.Process(pid).memory_full_info().uss / _MIB)


async def written_mib(pid: int, seconds: float = 15) -> float:
    """Memory that a process has written and keeps, once it has given back what it had for a while.

    Not what it shares with nobody: pages of libraries come and go in that with who else maps them.
    """
    lowest, until = math.inf, time.monotonic() + seconds
    while time.monotonic() < until:
        lowest = min(lowest, memory(pid)["Anonymous"] / _MIB)
        await asyncio.sleep(0.5)
    return lowest


async def at_rest(client: SupervisorClient, paths: Paths) -> dict[str, int]:
    """Keep no VM ready, wait until the last one is gone, and count what a supervisor has that could leak."""
    pid = (await client.status()).pid
    async with asyncio.timeout(60):
        while (await client.pool()).out:  # noqa: ASYNC110 - another process's state
            await asyncio.sleep(0.05)
        await client.drain()
        before: dict[str, int] = {}
        while (now := _census(paths, pid)) != before or now["QEMUs"]:
            before = now
            await asyncio.sleep(0.5)
    return now


def _census(paths: Paths, pid: int) -> dict[str, int]:
    process = psutil.Process(pid)
    groups = [path for path in Path("/sys/fs/cgroup").rglob(f"*-{paths.tag}-*") if path.is_dir()]
    # Logs are rotated.
    files = [path for path in paths.state.rglob("*") if not path.name.startswith("supervisor.log")]
    return {
        "QEMUs": len(qemus(paths.tag)),
        "processes below it": len(process.children(recursive=True)),
        "open files": process.num_fds(),
        "open sockets": len(process.net_connections(kind="all")),
        "vsock devices": sum(one.path == "/dev/vhost-vsock" for one in process.open_files()),
        "bound sockets in its folders": Path("/proc/net/unix").read_text().count(str(paths.state)),
        "threads": process.num_threads(),
        "files in its folders": len(files),
        "control groups": len(groups),
    }
