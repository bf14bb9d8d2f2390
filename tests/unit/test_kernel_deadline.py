"""Cells that run longer than their deadline, against a scripted guest; tests/vm/test_limits_cells.py has real ones."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from jupyter_client.asynchronous import AsyncKernelClient
from kernel_harness import (
    TIMEOUT,
    InProcessKernel,
    ScriptedGuest,
    ScriptedSupervisor,
    ask,
    cell,
    interrupted,
    outputs,
    parts_of,
    replied,
    running,
    told,
    types,
    within,
)

from agentvm_kernel.kernel import deadline
from agentvm_kernel.kernel.debugging import Debugging
from agentvm_kernel.profiles import Limits

DEADLINE = 0.2


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadline, "_TICK", 0.01)
    monkeypatch.setattr(deadline, "GRACE", 0.2)


def supervisor() -> ScriptedSupervisor:
    made = ScriptedSupervisor()
    made.given = Limits.model_construct(cell_deadline=DEADLINE)
    return made


def is_left_alone(guest: ScriptedGuest) -> bool:
    return guest.link.streams["agent"].to_guest.empty()


def stderr(messages: list[dict[str, object]]) -> str:
    return "".join(str(m["content"]["text"]) for m in messages if m["msg_type"] == "stream")  # type: ignore[index]


async def ran(kernel: InProcessKernel) -> float:
    """Seconds counted for the cell that runs."""
    (request,) = kernel.router._table.current()
    return request.ran


async def test_an_overdue_cell_is_interrupted_and_told_which_limit_it_was(tmp_path: Path) -> None:
    async with running(tmp_path, supervisor()) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        msg_id = client.execute("while True: pass")
        asked = await guest.asked()
        guest.begin(asked)
        await interrupted(guest)
        guest.finish(asked, "error")
        said = stderr(await outputs(client, msg_id))
        assert "ran longer than 0.2 s, the deadline of profile test; change it with %limits timeout=" in said
        assert kernel.supervisor.vms == 1


async def test_a_cell_in_time_is_left_alone(tmp_path: Path) -> None:
    async with running(tmp_path, supervisor()) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        reply = await cell(client, guest, "1")
        assert reply["content"]["status"] == "ok"  # type: ignore[index]
        await within(lambda: kernel.router._watchdog._task and kernel.router._watchdog._task.done())
        assert is_left_alone(guest)


async def overdue_and_deaf(client: AsyncKernelClient, guest: ScriptedGuest) -> str:
    msg_id = client.execute("while True:\n try: work()\n except KeyboardInterrupt: pass")
    guest.begin(await guest.asked())
    await interrupted(guest)
    return msg_id


async def test_a_cell_that_does_not_stop_goes_with_its_vm_and_a_fresh_one_comes(tmp_path: Path) -> None:
    async with running(tmp_path, supervisor()) as kernel, kernel.client() as client:
        msg_id = await overdue_and_deaf(client, await kernel.guest())
        reply = await replied(client, msg_id)
        error = reply["content"]
        assert error["ename"] == "CellDeadlineError"  # type: ignore[index]
        assert "could not be stopped. Its VM was thrown away with all variables" in error["evalue"]  # type: ignore[index]
        assert "There is no snapshot of it" in error["evalue"]  # type: ignore[index]
        assert "Restart the kernel" not in error["evalue"]  # type: ignore[index]
        await outputs(client, msg_id)
        fresh = await cell(client, await kernel.guest(), "1")
        assert fresh["content"]["status"] == "ok"  # type: ignore[index]
        assert (kernel.supervisor.vms, kernel.supervisor.released) == (2, 1)


async def test_the_way_back_is_named_where_there_is_one(tmp_path: Path) -> None:
    async with running(tmp_path, supervisor()) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        await told(client, guest, "%snapshot before")
        msg_id = await overdue_and_deaf(client, guest)
        error = (await replied(client, msg_id))["content"]
        assert "%rollback 000000000001 goes back to the last snapshot" in error["evalue"]  # type: ignore[index]


async def test_cells_behind_it_are_aborted_as_after_an_error(tmp_path: Path) -> None:
    async with running(tmp_path, supervisor()) as kernel, kernel.client() as client:
        msg_id = await overdue_and_deaf(client, await kernel.guest())
        behind = client.execute("2")
        assert (await replied(client, msg_id))["content"]["status"] == "error"  # type: ignore[index]
        assert (await replied(client, behind))["content"]["status"] == "aborted"  # type: ignore[index]


async def test_the_time_of_a_queued_cell_begins_when_the_one_before_is_done(tmp_path: Path) -> None:
    async with running(tmp_path, supervisor()) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        first, second = client.execute("1"), client.execute("2")
        asked, queued = await guest.asked(), await guest.asked()
        guest.begin(asked)
        await interrupted(guest)
        guest.finish(asked)
        await replied(client, first)
        assert await ran(kernel) < DEADLINE
        guest.begin(queued)
        guest.finish(queued)
        assert (await replied(client, second))["content"]["status"] == "ok"  # type: ignore[index]


async def test_waiting_for_input_does_not_count(tmp_path: Path) -> None:
    async with running(tmp_path, supervisor()) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        client.execute("input()", allow_stdin=True)
        asked = await guest.asked()
        guest.begin(asked)
        guest.say("stdin", parts_of("input_request", {"prompt": "?", "password": False}, asked.header))
        await client.get_stdin_msg(timeout=TIMEOUT)
        before = await ran(kernel)
        await asyncio.sleep(2 * DEADLINE)
        assert await ran(kernel) == before
        client.input("yes")
        await guest.asked("stdin")
        await interrupted(guest)


async def test_an_interrupt_ends_the_waiting_for_input(tmp_path: Path) -> None:
    async with running(tmp_path, supervisor()) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        client.execute("input()", allow_stdin=True)
        asked = await guest.asked()
        guest.begin(asked)
        guest.say("stdin", parts_of("input_request", {"prompt": "?", "password": False}, asked.header))
        await client.get_stdin_msg(timeout=TIMEOUT)
        client.control_channel.send(client.session.msg("interrupt_request", {}))
        await interrupted(guest)  # the user's
        await interrupted(guest)  # the deadline's


async def test_time_in_which_the_vm_is_held_does_not_count(tmp_path: Path) -> None:
    held = supervisor()
    async with running(tmp_path, held) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        held.go_on.clear()
        client.execute("work()")
        guest.begin(await guest.asked())
        await ask(client, "execute_request", {"code": "%snapshot --now", "silent": False})
        await held.at_work.wait()
        before = await ran(kernel)
        await asyncio.sleep(2 * DEADLINE)
        assert await ran(kernel) == before
        held.go_on.set()
        await interrupted(guest)


async def test_a_breakpoint_stops_the_clock(tmp_path: Path) -> None:
    async with running(tmp_path, supervisor()) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        await ask(client, "debug_request", {"command": "attach"}, "control")
        await guest.asked("control")
        client.execute("work()")
        asked = await guest.asked()
        guest.begin(asked)
        guest.say("iopub", parts_of("debug_event", {"event": "stopped"}, asked.header))
        await within(lambda: kernel.router._debugging.stopped)
        before = await ran(kernel)
        await asyncio.sleep(2 * DEADLINE)
        assert await ran(kernel) == before
        await ask(client, "debug_request", {"command": "continue"}, "control")
        await interrupted(guest)


@pytest.mark.parametrize(
    ("said", "stopped"),
    [
        (["asked attach", "said stopped"], True),
        (["said stopped"], False),
        (["asked attach", "said stopped", "said continued"], False),
        (["asked attach", "said stopped", "asked next"], False),
        (["asked attach", "said stopped", "asked stackTrace", "said output"], True),
        (["asked attach", "said stopped", "asked disconnect"], False),
        (["asked attach", "asked disconnect", "said stopped"], False),
    ],
)
def test_a_guest_has_stopped_only_under_a_clients_debugger(said: list[str], stopped: bool) -> None:
    debugging = Debugging()
    for each in said:
        who, what = each.split()
        if who == "asked":
            debugging.asked(json.dumps({"command": what}).encode())
        else:
            debugging.said(json.dumps({"event": what}).encode())
    assert debugging.stopped is stopped
    debugging.begin()
    assert not debugging.stopped


async def test_a_cell_in_a_subshell_is_not_interrupted_at_the_expense_of_the_main_shell(tmp_path: Path) -> None:
    async with running(tmp_path, supervisor()) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        content = {"code": "work()", "silent": False}
        msg_id = await ask(client, "execute_request", content, subshell_id="s")
        guest.begin(await guest.asked())
        error = (await replied(client, msg_id))["content"]
        assert error["ename"] == "CellDeadlineError"  # type: ignore[index]
        assert is_left_alone(guest)


async def test_a_host_magic_is_not_cut(tmp_path: Path) -> None:
    slow = supervisor()
    async with running(tmp_path, slow) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        slow.go_on.clear()
        msg_id = client.execute("%snapshot")
        stub = await guest.asked()
        assert kernel.router._table.current() == []
        guest.begin(stub)
        guest.finish(stub)
        await slow.at_work.wait()
        assert kernel.router._table.current() == []
        slow.go_on.set()
        assert "display_data" in types(await outputs(client, msg_id))


async def test_a_cell_that_a_snapshot_froze_has_a_deadline_too(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        client.execute("while True: pass")
        asked = await guest.asked()
        guest.begin(asked)
        await outputs(client, await ask(client, "execute_request", {"code": "%snapshot --now", "silent": False}))
        guest.finish(asked)
        await told(client, guest, "%rollback")
        kernel.machine.limits.now = Limits.model_construct(cell_deadline=DEADLINE)
        frozen = await kernel.guest()
        behind = client.execute("2")
        await interrupted(frozen)
        messages: list[dict[str, object]] = []
        while "could not be stopped" not in stderr(messages):
            messages.append(await client.get_iopub_msg(timeout=TIMEOUT))
        assert "ran longer than" in stderr(messages)
        assert (await replied(client, behind))["content"]["status"] == "error"  # type: ignore[index]
        assert (await cell(client, await kernel.guest(), "3"))["content"]["status"] == "ok"  # type: ignore[index]
