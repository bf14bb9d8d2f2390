"""Who is let in, in which order, and what the others are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from agentvm_kernel.supervisor.admission import Admission, Slot


class Host:
    room = 100

    def __call__(self) -> int:
        return self.room


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
async def admission(host: Host) -> AsyncIterator[Admission]:
    admission = Admission(3, host)
    yield admission
    await admission.close()


class Visitor:
    """Somebody who asks for a slot."""

    def __init__(self, admission: Admission, session: str) -> None:
        self.told: list[str] = []
        self.task = asyncio.create_task(admission.enter(session, f"{session}'s", self.told.append))

    async def is_in(self) -> bool:
        for _ in range(5):
            await asyncio.sleep(0)
        return self.task.done()

    @property
    def slot(self) -> Slot:
        return self.task.result()


async def test_who_comes_when_there_is_room_gets_in_at_once(admission: Admission) -> None:
    slots = [await admission.enter("a", "a", lambda _text: None) for _ in range(3)]
    assert admission.out == 3
    assert admission.waiting == ()
    slots[0].leave()
    slots[0].leave()
    assert admission.out == 2


async def test_who_waits_sees_place_and_reason_whenever_they_change(admission: Admission) -> None:
    slots = [await admission.enter("a", "a", lambda _text: None) for _ in range(3)]
    first, second = Visitor(admission, "b"), Visitor(admission, "c")
    assert not await first.is_in()
    assert not await second.is_in()
    reason = "(max_vms allows no more than 3 at a time)"
    assert first.told == [f"waiting for a VM: place 1 of 1 {reason}", f"waiting for a VM: place 1 of 2 {reason}"]
    assert second.told == [f"waiting for a VM: place 2 of 2 {reason}"]
    assert [(one.place, one.owner) for one in admission.waiting] == [(1, "b's"), (2, "c's")]
    slots.pop().leave()
    assert await first.is_in()
    assert not await second.is_in()
    assert second.told[-1] == f"waiting for a VM: place 1 of 1 {reason}"


async def test_the_session_that_has_the_fewest_comes_first(admission: Admission) -> None:
    slots = [await admission.enter("greedy", "greedy", lambda _text: None) for _ in range(3)]
    more = [Visitor(admission, "greedy") for _ in range(3)]
    late = Visitor(admission, "modest")
    assert not await late.is_in()
    assert late.told[-1].startswith("waiting for a VM: place 1 of 4")
    slots.pop().leave()
    assert await late.is_in()
    assert not await more[0].is_in()
    slots.pop().leave()
    assert await more[0].is_in()
    assert not await more[1].is_in()


async def test_two_sessions_that_ask_for_many_take_turns(admission: Admission) -> None:
    slots = [await admission.enter("other", "other", lambda _text: None) for _ in range(3)]
    visitors = [Visitor(admission, "a") for _ in range(3)] + [Visitor(admission, "b") for _ in range(3)]
    assert not await visitors[0].is_in()
    assert [one.owner for one in admission.waiting] == ["a's", "b's", "a's", "b's", "a's", "b's"]
    for slot in slots:
        slot.leave()
    assert [await visitor.is_in() for visitor in visitors] == [True, True, False, True, False, False]


async def test_who_gives_up_makes_way(admission: Admission) -> None:
    slots = [await admission.enter("a", "a", lambda _text: None) for _ in range(3)]
    first, second = Visitor(admission, "b"), Visitor(admission, "c")
    assert not await second.is_in()
    first.task.cancel()
    assert await first.is_in()
    assert second.told[-1].startswith("waiting for a VM: place 1 of 1")
    slots.pop().leave()
    assert await second.is_in()


async def test_a_slot_given_to_who_has_just_gone_goes_to_the_next(admission: Admission) -> None:
    slots = [await admission.enter("a", "a", lambda _text: None) for _ in range(3)]
    first, second = Visitor(admission, "b"), Visitor(admission, "c")
    assert not await second.is_in()
    slots.pop().leave()
    first.task.cancel()
    assert await second.is_in()
    assert first.task.cancelled()
    assert admission.out == 3


async def test_memory_bounds_what_starts_before_it_can_be_seen(admission: Admission, host: Host) -> None:
    host.room = 1
    slot = await admission.enter("a", "a", lambda _text: None)
    second = Visitor(admission, "b")
    assert not await second.is_in()
    assert second.told == ["waiting for a VM: place 1 of 1 (the host has no memory for another VM)"]
    slot.started()
    admission.look()
    assert await second.is_in()


async def test_one_vm_is_let_out_whatever_the_memory(admission: Admission, host: Host) -> None:
    host.room = 0
    await admission.enter("a", "a", lambda _text: None)


async def test_memory_that_comes_free_is_noticed(
    admission: Admission, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentvm_kernel.supervisor.admission._LOOK_SECONDS", 0.001)
    (await admission.enter("a", "a", lambda _text: None)).started()
    host.room = 0
    visitor = Visitor(admission, "b")
    assert not await visitor.is_in()
    host.room = 1
    async with asyncio.timeout(10):
        await visitor.task


async def test_the_end_lets_nobody_in(admission: Admission) -> None:
    for _ in range(3):
        await admission.enter("a", "a", lambda _text: None)
    visitor = Visitor(admission, "b")
    assert not await visitor.is_in()
    await admission.close()
    assert await visitor.is_in()
    assert visitor.task.cancelled()
