"""``agentvm bench pool``: how fast VMs are had and given back, how fast the stock is filled again, and what remains."""

from __future__ import annotations

import asyncio
import secrets
import time
from pathlib import Path
from typing import Final

import psutil  # type: ignore[import-untyped]

from agentvm_kernel.bench.bed import Bed, Say, Wanted, bed
from agentvm_kernel.bench.book import Book
from agentvm_kernel.bench.figures import Figure, Series, percentile
from agentvm_kernel.bench.memory import memory_of
from agentvm_kernel.bench.plain import PlainStarts
from agentvm_kernel.errors import VMError
from agentvm_kernel.kernel.endings import never
from agentvm_kernel.kernel.execution import LINK_LIMITS, running
from agentvm_kernel.link.connection import connect
from agentvm_kernel.settings import Pool
from agentvm_kernel.supervisor.client import SupervisorClient
from agentvm_kernel.supervisor.messages import Granted, LeaseRequest

_REPEAT: Final = 1000
# Of so many acquires, one goes on to run a cell.
_CELL_EVERY: Final = 2
_WARM_UP: Final = 10
_STOCK: Final = 8
_REFILLS: Final = 3
_CELL_SECONDS: Final = 60.0
_MIB: Final = 1 << 20

_ACQUIRE: Final = "acquire of a warm VM, from the client's request to the grant"
_IDENTITY: Final = "of that in the supervisor: wake, clock and limits"
_APART: Final = "acquire of a warm VM without that share"
_RELEASE: Final = "release, from the client's hanging up to the supervisor's next answer without it"
_STATUS: Final = "an answer of the supervisor's alone"
_RELEASE_APART: Final = "release without such an answer"
_WARM_MEMORY: Final = "private memory of a warm VM that is ready"
_BLANK_MEMORY: Final = "private memory of a blank that is ready"
_REFILL: Final = "refill of warm VMs"
_PLAIN: Final = "plain `virsh create --paused` of the same domain"

_AT_REST: Final = Pool(warm=1, warm_max=1, blanks=1, blanks_max=1)
_FULL: Final = Pool(warm=_STOCK, warm_max=_STOCK, blanks=0, blanks_max=0)


async def run(wanted: Wanted, say: Say) -> list[Figure]:
    """Measure acquires and releases, refills, memory, and what is left behind.

    Args:
        wanted: Image, profile, repetitions (of the acquire; 0 for 1,000).
        say: Told what is going on.

    Raises:
        AgentVMError: no VM could be had.
    """
    book, repeat = Book(), wanted.repeat or _REPEAT
    with bed(wanted, _AT_REST) as ours:
        say("preparing image and golden snapshot", None)
        await ours.prepare(say)
        left = await _cycles(ours, book, repeat, say)
    with bed(wanted, _FULL) as ours:
        await ours.prepare(say)
        await _refills(ours, book, min(_REFILLS, repeat), say)
    return [
        Figure(book[_ACQUIRE], book[_IDENTITY], limit=5),
        Figure(
            Series(f"{_ACQUIRE}, 99th percentile", "ms", [percentile(book[_ACQUIRE].samples, 99)]),
            book[_IDENTITY],
            limit=20,
        ),
        Figure(book[_APART], book[_IDENTITY], limit=5),
        Figure(
            Series(f"{_APART}, 99th percentile", "ms", [percentile(book[_APART].samples, 99)]),
            book[_IDENTITY],
            limit=20,
        ),
        Figure(book[_RELEASE], book[_STATUS], limit=5),
        Figure(book[_RELEASE_APART], book[_STATUS], limit=5),
        Figure(book[_REFILL], book[_PLAIN]),
        Figure(book[_WARM_MEMORY], book[_BLANK_MEMORY]),
        *left,
    ]


async def _cycles(ours: Bed, book: Book, repeat: int, say: Say) -> list[Figure]:
    async with SupervisorClient(ours.paths, start=False) as client:
        for number in range(min(_WARM_UP, repeat)):
            await _cycle(ours, client, Book(), with_cell=number % _CELL_EVERY == 0)
        before = await _remains(ours)
        for number in range(repeat):
            say("acquires and releases", number / repeat)
            await _cycle(ours, client, book, with_cell=number % _CELL_EVERY == 0)
        after = await _remains(ours)
        for one in (await client.vms()).vms:
            book.add(_WARM_MEMORY if one.state == "warm" else _BLANK_MEMORY, one.memory / _MIB, "MiB")
    name = f"after {repeat} acquires, {repeat // _CELL_EVERY} of them with a cell"
    return [
        Figure(Series(f"{what}, {name}", unit, [after[what, unit]]), Series("before", unit, [before[what, unit]]))
        for what, unit in before
    ]


async def _cycle(ours: Bed, client: SupervisorClient, book: Book, *, with_cell: bool) -> None:
    """Acquire a VM, maybe run a cell in it, and give it back."""
    await ours.filled()
    began = time.perf_counter()
    async with client.lease(LeaseRequest(owner="bench", notebook=secrets.token_hex(4))) as lease:
        granted = await anext(lease)
        if not isinstance(granted, Granted):
            raise VMError(f"The supervisor had no VM at hand: {granted}")
        taken = (time.perf_counter() - began) * 1000
        book.add(_ACQUIRE, taken)
        book.add(_IDENTITY, granted.acquire_ms)
        book.add(_APART, taken - granted.acquire_ms)
        if with_cell:
            await _run_cell(granted)
        began = time.perf_counter()
        await client.pool()
        alone = (time.perf_counter() - began) * 1000
        began = time.perf_counter()
    while (await client.pool()).out:
        pass
    taken = (time.perf_counter() - began) * 1000
    book.add(_STATUS, alone)
    book.add(_RELEASE, taken)
    book.add(_RELEASE_APART, taken - alone)


async def _run_cell(granted: Granted) -> None:
    """Run a cell whose answer nobody else can give."""
    nonce = secrets.token_hex(8)
    link = await connect(granted.link, key=bytes.fromhex(granted.key), epoch=granted.epoch, limits=LINK_LIMITS)
    try:
        async with running(link, never()) as runner:
            result = await runner.run(f"'{nonce}'.upper()", timeout=_CELL_SECONDS)
    finally:
        await link.close()
    if result.result != repr(nonce.upper()):
        raise VMError(f"A cell of the benchmark's answered {result}.")


async def _remains(ours: Bed) -> dict[tuple[str, str], float]:
    """Count what the supervisor has, when nothing is out and the stock is full."""
    await ours.filled()
    process = psutil.Process(ours.pid)
    return {
        ("the memory that the supervisor has written", "MB"): memory_of(process.pid).private_dirty,
        ("its open files and sockets", ""): process.num_fds(),
        ("its threads", ""): process.num_threads(),
        ("processes below it", ""): len(process.children(recursive=True)),
        ("files in its folders", ""): await asyncio.to_thread(_count_files, ours.paths.state),
    }


def _count_files(folder: Path) -> int:
    return sum(1 for _ in folder.rglob("*"))


async def _refills(ours: Bed, book: Book, rounds: int, say: Say) -> None:
    """Fill an empty stock, in turns with virsh."""
    async with SupervisorClient(ours.paths, start=False) as client, PlainStarts(ours) as plain:
        for number in range(rounds):
            say("refills, in turns with virsh", number / rounds)
            await client.drain()
            began = time.perf_counter()
            await client.fill()
            await ours.filled()
            book.add(_REFILL, _STOCK / (time.perf_counter() - began), "VM/s")
            await client.drain()
            book.add(_PLAIN, _STOCK / await plain.start(_STOCK), "VM/s")
            await plain.end()
