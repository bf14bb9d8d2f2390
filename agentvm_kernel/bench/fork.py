"""``agentvm bench fork``: eight clones of a live VM, from the request to all results."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from agentvm_kernel.bench.bed import Say, Wanted
from agentvm_kernel.bench.book import Book
from agentvm_kernel.bench.figures import Figure
from agentvm_kernel.bench.memory import memory_of
from agentvm_kernel.bench.stage import Stage, stage
from agentvm_kernel.errors import VMError
from agentvm_kernel.kernel.execution import LINK_LIMITS
from agentvm_kernel.kernel.forks import run_forks
from agentvm_kernel.link.connection import connect
from agentvm_kernel.settings import Pool
from agentvm_kernel.supervisor.core import Supervisor
from agentvm_kernel.supervisor.fork_messages import ForkEnded, ForkGranted, ForkRequest
from agentvm_kernel.supervisor.forks import Forks, rest
from agentvm_kernel.supervisor.messages import Message, Progress

_COUNT: Final = 8
_REPEAT: Final = 5
_OWN_REPEAT: Final = 3
_CELL_SECONDS: Final = 60.0
_MIB: Final = 1 << 20

_READY: Final = f"fork {_COUNT}: to all results of a trivial cell, blanks at hand"
_COLD: Final = f"fork {_COUNT}: to all results of a trivial cell, no blank at hand"
_OWN: Final = f"QEMU's own snapshot-load, {_COUNT} times, one after the other: to the agent's first answers"
_MEMORY: Final = "private memory of an idle fork"
_WHOLE: Final = "memory of the guest"


class _Here:
    """The supervisor in this process, as ``run_forks`` wants it."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    @asynccontextmanager
    async def forks(
        self, lease: str, request: ForkRequest
    ) -> AsyncIterator[AsyncIterator[Progress | ForkGranted | ForkEnded]]:
        events: asyncio.Queue[Message] = asyncio.Queue()
        forks = Forks(self._supervisor, self._supervisor.lease(lease), request, events.put_nowait)
        task = asyncio.create_task(forks.serve())
        try:
            yield _events(events)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def rest_fork(self, lease: str, fork: int) -> None:
        await rest(self._supervisor.lease(lease), fork)

    async def end_fork(self, lease: str, fork: int) -> None:
        self._supervisor.end_fork(self._supervisor.lease(lease), fork)


async def _events(queue: asyncio.Queue[Message]) -> AsyncIterator[Progress | ForkGranted | ForkEnded]:
    while True:
        event = await queue.get()
        if isinstance(event, Progress | ForkGranted | ForkEnded):
            yield event


async def run(wanted: Wanted, say: Say) -> list[Figure]:
    """Measure forks with and without blanks at hand, and their memory.

    Args:
        wanted: Image, profile, repetitions (0 for 5).
        say: Told what is going on.

    Raises:
        AgentVMError: no VM could be had.
    """
    book = Book()
    rounds = (wanted.repeat or _REPEAT) + 1
    async with stage(wanted, say, pool=Pool(warm=0, blanks=_COUNT)) as ours:
        await ours.run("import random; data = [random.random() for _ in range(1000)]")
        for number in range(rounds):
            say("forks, in turns", number / rounds)
            # The first round fills caches and does not count.
            await _round(ours, book if number else Book())
        own = ours.own()
        await own.save()
        for _ in range(_OWN_REPEAT):
            with book.timed(_OWN):
                for _ in range(_COUNT):
                    await own.load()
    book.add(_WHOLE, float(ours.lease.granted.memory_mib), "MiB")
    return [
        Figure(book[_READY], book[_OWN], limit=2000),
        Figure(book[_COLD], book[_OWN]),
        Figure(book[_MEMORY], book[_WHOLE], limit=64),
    ]


async def _round(ours: Stage, book: Book) -> None:
    await ours.filled()
    book.add(_READY, await _fork(ours))
    for fork in ours.lease.forks.values():
        book.add(_MEMORY, memory_of(fork.vm.pid).private * 1e6 / _MIB, "MiB")
    ours.supervisor.end_forks(ours.lease)
    await ours.supervisor.pool.drain()
    book.add(_COLD, await _fork(ours))
    ours.supervisor.end_forks(ours.lease)


async def _fork(ours: Stage) -> float:
    """Return the milliseconds until all forks have run a trivial cell."""
    began = time.perf_counter()
    results = await run_forks(
        _Here(ours.supervisor), ours.lease.terms.id, partial(connect, limits=LINK_LIMITS), ForkRequest(count=_COUNT),
        "sum(data) / len(data)", timeout=_CELL_SECONDS,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    if any(one.cell.status != "ok" for one in results):
        raise VMError(f"A fork failed: {[one.cell.reason or one.cell.error for one in results]}")
    return seconds * 1000
