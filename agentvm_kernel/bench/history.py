"""``agentvm bench snapshot`` and ``rollback``: what saving a VM and going back cost, beside QEMU's own means."""

from __future__ import annotations

import mmap
import time
from typing import Final

from agentvm_kernel.bench.bed import DEFAULT_PROFILE, Say, Wanted
from agentvm_kernel.bench.book import Book
from agentvm_kernel.bench.figures import Figure
from agentvm_kernel.bench.stage import Stage, stage
from agentvm_kernel.vm.clone import VM

_REPEAT: Final = 20
_OWN_REPEAT: Final = 3
_GROWTH_REPEAT: Final = 5
_ANSWER_SECONDS: Final = 30.0
_GROWTH: Final = (1, 16, 64, 256, 1024)
_GROWTH_LIMITED: Final = 64
_LARGE: Final = DEFAULT_PROFILE.model_copy(update={"memory_mib": 2048})

_FILL: Final = """\
import os
block = os.urandom(1 << 20)
data = bytearray(1 << 30)
for place in range(0, 1 << 30, 1 << 20):
    data[place : place + (1 << 20)] = block
"""
# A byte in every page, so that as many pages are written.
_TOUCH: Final = "for place in range(0, {mib} << 20, 4096): data[place] ^= 1"

_SMALL: Final = "512 MiB guest"
_BIG: Final = "2 GiB guest, 1 GiB resident"


async def run_snapshot(wanted: Wanted, say: Say) -> list[Figure]:
    """Measure how long a VM stands still for a snapshot.

    Args:
        wanted: Image, profile, repetitions (0 for 20).
        say: Told what is going on.

    Raises:
        AgentVMError: no VM could be had.
    """
    book, figures = Book(), []
    for guest, profile in ((_SMALL, None), (_BIG, _LARGE)):
        say(f"starting a {guest}", None)
        async with stage(wanted, say, profile) as ours:
            await _prepare(ours, guest, say)
            await _small_pauses(ours, guest, book, wanted, say)
            if profile:
                await _growing_pauses(ours, book, say)
            await _own_pauses(ours, guest, book, say)
            book.add(f"memory, {guest}", float(ours.lease.granted.memory_mib), "MiB")
        figures += _pause_figures(book, guest)
    return figures + _growth_figures(book)


async def _prepare(ours: Stage, guest: str, say: Say) -> None:
    if guest == _BIG:
        say("filling 1 GiB of the guest's memory", None)
        await ours.run(_FILL)
    await ours.snapshot()
    await ours.filled()


async def _small_pauses(ours: Stage, guest: str, book: Book, wanted: Wanted, say: Say) -> None:
    rounds = (wanted.repeat or _REPEAT) + 1
    for number in range(rounds):
        say(f"snapshots of a {guest}, in turns", number / rounds)
        await ours.run("1")
        info = await ours.snapshot()
        if number:
            book.add(f"pause, {guest}", info.pause_ms)
            book.add(f"written before, {guest}", info.written / (1 << 20), "MiB")


async def _growing_pauses(ours: Stage, book: Book, say: Say) -> None:
    # What is slow is measured once: it writes much and so do the snapshots.
    for mib in (size for size in _GROWTH for _ in range(_GROWTH_REPEAT if size <= _GROWTH_LIMITED else 1)):
        say(f"a snapshot with {mib} MiB written", None)
        await ours.filled()
        await ours.run(_TOUCH.format(mib=mib))
        info = await ours.snapshot()
        book.add(f"pause with {mib} MiB more written", info.pause_ms)
        fresh, warm = _plain_copy(mib << 20)
        book.add(f"plain copy of {mib} MiB into fresh memory", fresh)
        book.add(f"plain copy of {mib} MiB into memory touched before", warm)


async def _own_pauses(ours: Stage, guest: str, book: Book, say: Say) -> None:
    own = ours.own()
    for number in range(_OWN_REPEAT):
        say(f"QEMU's own snapshots of a {guest}", number / _OWN_REPEAT)
        await own.remove()
        with book.timed(f"QEMU's own snapshot-save, {guest}"):
            await own.save()


def _plain_copy(size: int) -> tuple[float, float]:
    """Return the milliseconds that copying takes, first into memory never touched and then into the same again."""
    seconds = []
    with mmap.mmap(-1, size) as source, mmap.mmap(-1, size) as target:
        source[:] = b"x" * size
        for _ in range(2):
            began = time.perf_counter()
            target[:] = source[:] if size < 1 << 16 else memoryview(source)
            seconds.append((time.perf_counter() - began) * 1000)
    return seconds[0], seconds[1]


def _pause_figures(book: Book, guest: str) -> list[Figure]:
    pause, own = book[f"pause, {guest}"], book[f"QEMU's own snapshot-save, {guest}"]
    return [
        Figure(pause, own, limit=15),
        Figure(book[f"pause, {guest}"].renamed(f"the same, {guest}, as a share of QEMU's own"), own, 1 / 20, "ratio"),
        Figure(book[f"written before, {guest}"], book[f"memory, {guest}"]),
    ]


def _growth_figures(book: Book) -> list[Figure]:
    return [
        Figure(
            book[f"pause with {mib} MiB more written"],
            book[f"plain copy of {mib} MiB into fresh memory"],
            limit=max(15.0, float(mib)) if mib <= _GROWTH_LIMITED else None,
        )
        for mib in _GROWTH
    ] + [
        Figure(
            book[f"plain copy of {mib} MiB into memory touched before"],
            book[f"plain copy of {mib} MiB into fresh memory"],
        )
        for mib in _GROWTH
    ]


async def run_rollback(wanted: Wanted, say: Say) -> list[Figure]:
    """Measure how long going back takes, to the guest agent's first answer and to the confirmed identity.

    Args:
        wanted: Image, profile, repetitions (0 for 20).
        say: Told what is going on.

    Raises:
        AgentVMError: no VM could be had.
    """
    book, figures = Book(), []
    for guest, profile in ((_SMALL, None), (_BIG, _LARGE)):
        say(f"starting a {guest}", None)
        async with stage(wanted, say, profile) as ours:
            await _prepare(ours, guest, say)
            first = ours.lease.current
            await ours.run(_TOUCH.format(mib=64) if profile else "data = bytearray(4 << 20)")
            second = (await ours.snapshot()).id
            await ours.filled()
            await _rollbacks(ours, (first, second), guest, book, wanted, say)
            await _own_loads(ours, guest, book, say)
        figures += _rollback_figures(book, guest)
    return figures


async def _rollbacks(ours: Stage, targets: tuple[str, str], guest: str, book: Book, wanted: Wanted, say: Say) -> None:
    rounds = (wanted.repeat or _REPEAT) + 2
    for number in range(rounds):
        say(f"rollbacks of a {guest}, in turns", number / rounds)
        to = targets[number % 2]
        is_cold = number % 4 == 3
        if is_cold:
            await ours.supervisor.pool.drain()
        else:
            await ours.filled()
        near = ours.supervisor.pool.nearest_distance(ours.lease.terms.tree.find(to).snapshot)
        far = "64 MiB away" if near > 32 << 20 else "nearby"
        how = "no blank at hand" if is_cold else f"a blank at hand, {far}"
        first = await _first_answer(ours, to)
        await (ours.supervisor.pool.drain() if is_cold else ours.filled())
        replaced = await ours.rollback(to)
        if number > 1:
            book.add(f"rollback to the first answer, {guest}, {how}", first)
            book.add(f"rollback to the confirmed identity, {guest}, {how}", replaced.seconds * 1000)


async def _first_answer(ours: Stage, to: str) -> float:
    """Do with a blank what a rollback does, up to the guest agent's first answer; return the milliseconds."""
    snapshot = ours.lease.terms.tree.find(to).snapshot
    began = time.perf_counter()
    blank = await ours.supervisor.pool.take_blank(snapshot)
    vm = VM("bench", blank, snapshot)
    try:
        await blank.fill(snapshot)
        await vm.connect()
        await vm.machine.resume()
        await vm.request("ping", _ANSWER_SECONDS)
        return (time.perf_counter() - began) * 1000
    finally:
        await vm.end()


async def _own_loads(ours: Stage, guest: str, book: Book, say: Say) -> None:
    own = ours.own()
    await own.save()
    for number in range(_OWN_REPEAT):
        say(f"QEMU's own snapshots of a {guest}", number / _OWN_REPEAT)
        with book.timed(f"QEMU's own snapshot-load, {guest}"):
            await own.load()


def _rollback_figures(book: Book, guest: str) -> list[Figure]:
    own = book[f"QEMU's own snapshot-load, {guest}"]
    limits = {"a blank at hand, nearby": 180.0, "a blank at hand, 64 MiB away": 400.0, "no blank at hand": 600.0}
    figures = []
    for how, limit in limits.items():
        if first := book.find(f"rollback to the first answer, {guest}, {how}"):
            figures.append(Figure(first, own, limit=limit))
            figures.append(Figure(book[f"rollback to the confirmed identity, {guest}, {how}"], own))
    return figures
