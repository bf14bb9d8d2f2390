"""What a process has freed goes back to the host a moment after it was asked for."""

from __future__ import annotations

import asyncio

import psutil
import pytest

from agentvm_kernel.supervisor import heap
from agentvm_kernel.supervisor.heap import Heap, trim

PIECE = 100 << 10  # less than what the C library maps apart, and gives back at once
MIB = 1 << 20


def private() -> int:
    return int(psutil.Process().memory_full_info().uss)


def test_what_lies_between_what_is_in_use_is_given_back() -> None:
    pieces = [bytearray(PIECE) for _ in range(1000)]
    used = private()
    kept = pieces[::50]
    del pieces
    trim()
    assert private() < used - 60 * MIB
    assert all(len(one) == PIECE for one in kept)


async def test_many_wishes_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    done = asyncio.Queue[None]()
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(heap, "trim", lambda: loop.call_soon_threadsafe(done.put_nowait, None))
    ours = Heap(seconds=0.01)
    for _ in range(5):
        ours.trim_soon()
    await done.get()
    ours.trim_soon()
    await done.get()
    assert done.empty()
    ours.trim_soon()
    ours.close()
    later = loop.create_future()
    loop.call_later(0.05, later.set_result, None)
    await later
    assert done.empty()


async def test_it_is_put_off_while_there_are_wishes_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    done = asyncio.Event()
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(heap, "trim", lambda: loop.call_soon_threadsafe(done.set))
    ours = Heap(seconds=1000, most=0.2)
    wishes = 0
    async with asyncio.timeout(60):
        while not done.is_set():
            ours.trim_soon()
            wishes += 1
            await asyncio.sleep(0)
    assert wishes > 1
    ours.close()
