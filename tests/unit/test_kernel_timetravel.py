"""Time travel: a snapshot after every cell, and the way back."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from jupyter_client.asynchronous import AsyncKernelClient
from kernel_harness import (
    TIMEOUT,
    InProcessKernel,
    ScriptedGuest,
    ask,
    outputs,
    replied,
    running,
    shown,
    told,
    types,
    within,
)

from agentvm_kernel.errors import ApiError
from agentvm_kernel.kernel import requests, timeline


@asynccontextmanager
async def travelling(folder: Path) -> AsyncIterator[tuple[InProcessKernel, AsyncKernelClient, ScriptedGuest]]:
    """A kernel in which time travel is on."""
    async with running(folder) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        assert (await told(client, guest, "%timetravel on")).startswith(
            "Time travel is on: a snapshot after every cell"
        )
        await client.get_shell_msg(timeout=TIMEOUT)
        kernel.supervisor.at_work.clear()
        yield kernel, client, guest


async def whole(client: AsyncKernelClient, guest: ScriptedGuest, code: str) -> dict[str, object]:
    """Run a cell, to the snapshot after it."""
    msg_id = client.execute(code)
    await guest.execute()
    await outputs(client, msg_id)
    return await replied(client, msg_id)


async def test_a_snapshot_is_taken_at_once_and_after_every_cell(tmp_path: Path) -> None:
    async with travelling(tmp_path) as (kernel, client, guest):
        first = await whole(client, guest, "x = 1")
        second = await whole(client, guest, "y = 2")
    taken = kernel.supervisor.taken
    assert [(s.kind, s.cell.code, s.cell.count, s.cell.run) for s in taken] == [
        ("auto", "", None, 0),
        ("auto", "x = 1", 2, 2),
        ("auto", "y = 2", 3, 3),
    ]
    assert [request.wait_stored for request in kernel.supervisor.wanted] == [True, False, False]
    assert first["metadata"]["agentvm"]["snapshot"] == taken[0].id
    assert second["metadata"]["agentvm"]["snapshot"] == taken[1].id


async def test_cells_sent_at_once_go_one_at_a_time_with_a_snapshot_between_them(tmp_path: Path) -> None:
    async with travelling(tmp_path) as (kernel, client, guest):
        kernel.supervisor.go_on.clear()
        first, second = client.execute("one"), client.execute("two")
        await ask(client, "comm_msg", {"comm_id": "c", "data": {}})
        asked = await guest.asked()
        await kernel.held(2)
        assert guest.idle_hands()
        guest.begin(asked)
        guest.finish(asked)
        await kernel.supervisor.at_work.wait()
        assert guest.idle_hands()
        kernel.supervisor.go_on.set()
        assert (await replied(client, first))["content"]["status"] == "ok"
        assert (await guest.asked()).header["msg_id"] == second
        assert types(await outputs(client, first)) == ["busy", "execute_input", "idle"]


async def test_the_cell_is_answered_and_idle_only_after_its_snapshot(tmp_path: Path) -> None:
    async with travelling(tmp_path) as (kernel, client, guest):
        kernel.supervisor.go_on.clear()
        msg_id = client.execute("x")
        await guest.execute()
        await kernel.supervisor.at_work.wait()
        assert not await client.shell_channel.msg_ready()
        seen = []
        while await client.iopub_channel.msg_ready():
            seen.append(await client.get_iopub_msg(timeout=TIMEOUT))
        assert types([m for m in seen if m["parent_header"].get("msg_id") == msg_id]) == ["busy", "execute_input"]
        kernel.supervisor.go_on.set()
        assert types(await outputs(client, msg_id)) == ["idle"]
        assert (await replied(client, msg_id))["content"]["status"] == "ok"


async def test_a_snapshot_that_fails_is_one_line_under_its_cell_and_the_notebook_goes_on(tmp_path: Path) -> None:
    async with travelling(tmp_path) as (kernel, client, guest):
        kernel.supervisor.fails = ApiError("disk_full", "There is no room on the disk.", "Remove snapshots.")
        msg_id = client.execute("x")
        await guest.execute()
        said = await outputs(client, msg_id)
        assert (await replied(client, msg_id))["content"]["status"] == "ok"
        assert types(said) == ["busy", "execute_input", "stream", "idle"]
        assert said[2]["content"] == {
            "name": "stderr",
            "text": "Time travel has no snapshot here: There is no room on the disk. Remove snapshots.\n",
        }
        kernel.supervisor.fails = None
        await whole(client, guest, "y")
    assert [one.cell.code for one in kernel.supervisor.taken] == ["", "y"]


async def test_a_failed_cell_aborts_those_behind_it_and_is_kept_too(tmp_path: Path) -> None:
    async with travelling(tmp_path) as (kernel, client, guest):
        bad, behind = client.execute("bad"), client.execute("behind")
        asked = await guest.asked()
        await kernel.held(1)
        guest.begin(asked)
        guest.finish(asked, "error")
        assert (await replied(client, bad))["content"]["status"] == "error"
        assert (await replied(client, behind))["content"]["status"] == "aborted"
        await outputs(client, behind)
        await within(lambda: len(kernel.supervisor.taken) == 2)
        assert guest.idle_hands()


async def test_what_shows_nothing_takes_no_snapshot(tmp_path: Path) -> None:
    async with travelling(tmp_path) as (kernel, client, guest):
        for msg_id in (client.execute("quiet", silent=True), client.complete("x")):
            asked = await guest.asked()
            guest.reply(asked, {"status": "ok"})
            guest.status(asked, "idle")
            await replied(client, msg_id)
        await ask(client, "execute_request", {"code": "x", "silent": False}, subshell_id="s")
        await guest.execute()
        await whole(client, guest, "%vm")
        assert len(kernel.supervisor.taken) == 1


async def test_an_interrupt_reaches_the_cell_that_is_recorded(tmp_path: Path) -> None:
    async with travelling(tmp_path) as (kernel, client, guest):
        msg_id = client.execute("long")
        asked = await guest.asked()
        await ask(client, "interrupt_request", {}, "control")
        request = json.loads((await kernel.links[0].streams["agent"].to_guest.get())[0])
        guest.say("agent", [json.dumps({"id": request["id"], "ok": True}).encode()])
        assert (await client.get_control_msg(timeout=TIMEOUT))["content"]["status"] == "ok"
        guest.begin(asked)
        guest.finish(asked, "error")
        assert (await replied(client, msg_id))["content"]["ename"] == "E"


async def test_a_vm_that_dies_in_a_recorded_cell_is_told_once(tmp_path: Path) -> None:
    async with travelling(tmp_path) as (kernel, client, guest):
        msg_id, behind = client.execute("os._exit(7)"), client.execute("behind")
        guest.begin(await guest.asked())
        guest.say("agent", [json.dumps({"event": "kernel_died", "exit_code": 7}).encode()])
        said = types(await outputs(client, msg_id))
        assert said == ["busy", "execute_input", "error", "idle"]
        assert (await replied(client, behind))["content"]["status"] == "aborted"
        later = client.execute("later")
        assert types(await outputs(client, later)) == ["busy", "execute_input", "error", "idle"]
        assert len(kernel.supervisor.taken) == 1


async def test_a_rollback_from_a_subshell_ends_the_recorded_cell_without_a_snapshot(tmp_path: Path) -> None:
    async with travelling(tmp_path) as (kernel, client, guest):
        msg_id = client.execute("long")
        guest.begin(await guest.asked())
        content = {"code": "%rollback", "silent": False, "store_history": False}
        rollback = await ask(client, "execute_request", content, subshell_id="s")
        await guest.execute()
        assert (await replied(client, msg_id))["content"]["status"] == "error"
        assert (await replied(client, rollback))["content"]["status"] == "ok"
        after = client.execute("%vm")
        await ScriptedGuest(kernel.links[1]).execute()
        await replied(client, after)
        assert len(kernel.supervisor.taken) == 1


async def test_an_idle_that_is_lost_does_not_stop_the_cells_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "_LAST_WORDS", 0.05)
    async with travelling(tmp_path) as (kernel, client, guest):
        first, second = client.execute("flood"), client.execute("next")
        asked = await guest.asked()
        guest.begin(asked)
        guest.reply(asked, {"status": "ok", "execution_count": 2})
        assert (await guest.asked()).header["msg_id"] == second
        guest.status(asked, "idle")
        assert types(await outputs(client, first))[-1] == "idle"
        assert len(kernel.supervisor.taken) == 2


async def test_off_lets_cells_through_as_before(tmp_path: Path) -> None:
    async with travelling(tmp_path) as (kernel, client, guest):
        assert "off" in await told(client, guest, "%timetravel off")
        client.execute("one")
        client.execute("two")
        assert [(await guest.asked()).content["code"] for _ in range(2)] == ["one", "two"]
        assert len(kernel.supervisor.taken) == 1


async def test_it_says_how_it_is_and_what_is_valid(tmp_path: Path) -> None:
    async with travelling(tmp_path) as (_, client, guest):
        assert await told(client, guest, "%timetravel") == "Time travel is on."
        assert "on already" in await told(client, guest, "%timetravel on")
        assert "valid is %timetravel on" in await told(client, guest, "%timetravel sideways")


async def test_it_stays_off_when_the_first_snapshot_fails(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        kernel.supervisor.fails = ApiError("quota", "Your snapshots take 10 GiB.")
        assert "10 GiB" in await told(client, guest, "%timetravel on")
        assert await told(client, guest, "%timetravel") == "Time travel is off."


async def test_undo_goes_back_cell_by_cell_whatever_magics_lie_between(tmp_path: Path) -> None:
    async with travelling(tmp_path) as (kernel, client, guest):
        for code in ("a", "b", "%vm", "c"):
            await whole(client, guest, code)
        ids = [one.id for one in kernel.supervisor.taken]
        assert (await told(client, guest, "%undo")).startswith(f"Back at {ids[2]} in ")
        fresh = ScriptedGuest(kernel.links[1])
        assert (await told(client, fresh, "%undo 2")).startswith(f"Back at {ids[0]} in ")
        fresh = ScriptedGuest(kernel.links[2])
        await whole(client, fresh, "other")
        assert kernel.supervisor.taken[-1].parent == ids[0]
        assert (await told(client, fresh, "%undo")).startswith(f"Back at {ids[0]} in ")
    assert [what for what in kernel.supervisor.asked if "rollback" in what] == [
        f"rollback {ids[2]}",
        f"rollback {ids[0]}",
        f"rollback {ids[0]}",
    ]


async def test_undo_without_a_snapshot_from_then_says_why(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        assert await told(client, guest, "%undo") == "This VM has run 0 cells that can be undone."
        await whole(client, guest, "a")
        await whole(client, guest, "b")
        text = await told(client, guest, "%undo")
        assert text.startswith("There is no snapshot from before the last cell: time travel was off then")
        assert "last 2 cells" in await told(client, guest, "%undo 2")
        assert "has run 2 cells" in await told(client, guest, "%undo 3")
        for call in ("%undo 0", "%undo x", "%undo 1 2", "%undo 10000"):
            assert "valid is %undo [N]" in await told(client, guest, call)
        assert kernel.supervisor.asked == []


async def test_a_snapshot_by_hand_serves_undo_too_but_not_one_in_mid_cell(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        await whole(client, guest, "a")
        await whole(client, guest, "%snapshot")
        busy = client.execute("b")
        guest.begin(asked := await guest.asked())
        now = client.execute("%snapshot --now")
        await replied(client, now)
        guest.finish(asked)
        await replied(client, busy)
        assert (await told(client, guest, "%undo")).startswith(f"Back at {kernel.supervisor.taken[0].id} in ")


async def test_after_a_restart_the_first_cell_can_be_undone_too(tmp_path: Path) -> None:
    async with travelling(tmp_path) as (kernel, client, guest):
        await whole(client, guest, "a")
        kernel.supervisor.current = ""
        await whole(client, guest, "%vm restart")
        fresh = ScriptedGuest(kernel.links[1])
        await whole(client, fresh, "b")
        assert [one.cell.code for one in kernel.supervisor.taken] == ["", "a", "", "b"]
        assert (await told(client, fresh, "%undo")).startswith(f"Back at {kernel.supervisor.taken[2].id} in ")


async def test_undo_of_a_vm_that_is_gone_names_rollback(tmp_path: Path) -> None:
    async with travelling(tmp_path) as (_, client, guest):
        client.execute("dies")
        await guest.asked()
        guest.say("agent", [json.dumps({"event": "kernel_died", "exit_code": 7}).encode()])
        await client.get_shell_msg(timeout=TIMEOUT)
        msg_id = client.execute("%undo")
        assert "%rollback goes back" in shown(await outputs(client, msg_id))


async def test_an_adopted_fork_is_a_cell_that_can_be_undone(tmp_path: Path) -> None:
    async with travelling(tmp_path) as (kernel, client, guest):
        await whole(client, guest, "a")
        await told(client, guest, "%adopt 1")
        fresh = ScriptedGuest(kernel.links[1])
        await whole(client, fresh, "b")
        taken = kernel.supervisor.taken
        assert [one.cell.code for one in taken] == ["", "a", "%adopt 1", "b"]
        assert (await told(client, fresh, "%undo")).startswith(f"Back at {taken[2].id} in ")
        fresh = ScriptedGuest(kernel.links[2])
        assert (await told(client, fresh, "%undo")).startswith(f"Back at {taken[1].id} in ")


def test_only_so_many_runs_and_snapshots_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline, "_REMEMBERED", 5)
    line = timeline.Timeline()
    for _ in range(20):
        line.ran(line.next_run(), None, "x\ud800" * 1000)
    assert (len(line._stops), len(line.cell.code)) == (5, 200)
    assert len(line.lost("unknown")) == 5
    line.cell.model_dump_json()
    line.go_back("unknown")
    assert line.lost("unknown") == []


async def test_the_supervisor_is_told_whether_time_travel_is_on(tmp_path: Path) -> None:
    async with travelling(tmp_path) as (kernel, client, guest):
        assert kernel.supervisor.cells[-1].travelling
        await whole(client, guest, "x = 1")
        assert kernel.supervisor.cells[-1].travelling
        await told(client, guest, "%timetravel off")
        assert not kernel.supervisor.cells[-1].travelling
