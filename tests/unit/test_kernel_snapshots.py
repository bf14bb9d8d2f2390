"""A snapshot between and in the middle of cells: what is held, what is said, what goes on."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from unittest.mock import ANY

import pytest
from kernel_harness import (
    TIMEOUT,
    InProcessKernel,
    ask,
    cell,
    outputs,
    replied,
    running,
    shown,
    told,
    types,
    within,
)

from agentvm_kernel.errors import ApiError, HeartbeatError
from agentvm_kernel.kernel import requests
from agentvm_kernel.supervisor.execution_messages import digest_of


def at_work(kernel: InProcessKernel) -> asyncio.Event:
    """Keep the supervisor at its work until the event is set that is returned."""
    kernel.supervisor.go_on.clear()
    return kernel.supervisor.go_on


async def test_a_snapshot_is_one_line_and_its_id_is_in_the_reply(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        await cell(client, guest, "x = 1\ny = 2")
        msg_id = client.execute("%snapshot first -m all is well")
        stub = await guest.execute()
        said = await outputs(client, msg_id)
        reply = await replied(client, msg_id)
        after = await cell(client, guest, "z")
    assert stub.content["code"] == "# %snapshot first -m all is well"
    assert shown(said) == "Snapshot first (000000000001): the VM stood still for 10.2 ms, 3.0 MiB."
    assert reply["content"]["execution_count"] == 2
    place = {"vm": "vm-1", "snapshot": "000000000001"}
    magic = {"code": digest_of("%snapshot first -m all is well"), "taken": "000000000001"}
    assert reply["metadata"]["agentvm"] == {"run": 2, **magic, **place, "facts": ANY}
    assert after["metadata"]["agentvm"] == {"run": 3, "code": digest_of("z"), **place, "facts": ANY}
    wanted = kernel.supervisor.wanted[0]
    assert (wanted.label, wanted.text, wanted.kind, wanted.busy) == ("first", "all is well", "manual", False)
    assert wanted.cell.model_dump() == {"run": 1, "count": 1, "code": "x = 1\ny = 2"}


async def test_a_magic_or_a_silent_or_aborted_cell_is_not_what_was_run_last(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        await cell(client, guest, "x = 1")
        await cell(client, guest, "%vm")
        await cell(client, guest, "aborted", "aborted")
        quiet = client.execute("quiet", silent=True)
        await guest.execute()
        await replied(client, quiet)
        await cell(client, guest, "%snapshot")
    assert kernel.supervisor.wanted[0].cell.code == "x = 1"


async def test_nothing_is_sent_to_the_guest_while_its_vm_is_saved(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        go_on = at_work(kernel)
        client.execute("%snapshot")
        await guest.execute()
        await kernel.supervisor.at_work.wait()
        link = kernel.links[0]
        assert link.held
        await ask(client, "comm_msg", {"comm_id": "c", "data": {}}, subshell_id="s")
        await ask(client, "debug_request", {"command": "debugInfo"}, "control")
        client.execute("after")
        client.kernel_info()
        connect = await ask(client, "connect_request", {})
        await replied(client, connect)
        lanes = ("shell", "shell/s", "control")
        await within(lambda: all(map(kernel.waiting, lanes)))
        assert all(stream.to_guest.empty() and not stream.late for stream in link.streams.values())
        go_on.set()
        assert (await guest.asked("control")).header["msg_type"] == "debug_request"
        asked = [await guest.asked() for _ in range(3)]
        assert not link.held
    assert sorted(a.header["msg_type"] for a in asked) == ["comm_msg", "execute_request", "kernel_info_request"]


async def test_an_interrupt_waits_for_a_snapshot_that_it_cannot_end(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client, kernel.client() as other:
        guest = await kernel.guest()
        busy = client.execute("long")
        guest.begin(asked := await guest.asked())
        go_on = at_work(kernel)
        other.execute("%snapshot --now")
        await kernel.supervisor.at_work.wait()
        await ask(client, "interrupt_request", {}, "control")
        agent = kernel.links[0].streams["agent"]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(agent.to_guest.get(), 0.1)
        assert not agent.late
        go_on.set()
        request = json.loads((await agent.to_guest.get())[0])
        assert request["op"] == "interrupt"
        guest.say("agent", [json.dumps({"id": request["id"], "ok": True}).encode()])
        assert (await client.get_control_msg(timeout=TIMEOUT))["content"]["status"] == "ok"
        guest.finish(asked, "error")
        await replied(client, busy)


async def test_now_freezes_a_running_cell_at_once_and_from_another_client(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client, kernel.client() as other:
        guest = await kernel.guest()
        await cell(client, guest, "first")
        busy = client.execute("long = True")
        guest.begin(asked := await guest.asked())
        queued = client.execute("behind")
        await guest.asked()
        for asking in (other, client):
            msg_id = asking.execute("%snapshot --now")
            said = await outputs(asking, msg_id)
            reply = await replied(asking, msg_id)
            assert types(said) == ["busy", "execute_input", "display_data", "idle"]
            assert shown(said).endswith("; it froze a running cell.")
            assert said[1]["content"] == {"code": "%snapshot --now", "execution_count": 1}
            assert reply["content"]["status"] == "ok"
            assert reply["content"]["execution_count"] == 1
        assert reply["metadata"]["agentvm"]["run"] == 5
        assert guest.idle_hands()
        guest.output(asked, "goes on")
        guest.finish(asked)
        assert "stream" in types(await outputs(client, busy))
        assert (await replied(client, busy))["content"]["status"] == "ok"
        assert queued
    first = kernel.supervisor.wanted[0]
    assert first.busy
    assert first.cell.model_dump() == {"run": 2, "count": None, "code": "long = True"}


async def test_now_in_a_quiet_guest_freezes_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        await cell(client, guest, "x")
        msg_id = client.execute("%snapshot here --now")
        assert "froze" not in shown(await outputs(client, msg_id))
        assert guest.idle_hands()
    assert not kernel.supervisor.wanted[0].busy
    assert kernel.supervisor.wanted[0].cell.code == "x"


async def test_a_snapshot_that_fails_is_an_error_and_the_notebook_goes_on(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        kernel.supervisor.fails = ApiError("disk_full", "There is no room on the disk.", "Remove snapshots.")
        assert await told(client, guest, "%snapshot x") == "There is no room on the disk. Remove snapshots."
        assert (await replied_to_next(client))["content"]["status"] == "error"
        assert (await cell(client, guest, "x"))["metadata"]["agentvm"]["snapshot"] == ""
        assert not kernel.links[0].held


async def replied_to_next(client) -> dict[str, object]:  # type: ignore[no-untyped-def]
    return dict(await client.get_shell_msg(timeout=TIMEOUT))


async def test_a_guest_that_takes_nothing_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()

        class Stuck:
            async def __aenter__(self) -> None:
                raise HeartbeatError("The guest agent has not answered for 10 s.")

            async def __aexit__(self, *_: object) -> None:
                raise AssertionError

        monkeypatch.setattr(kernel.links[0], "hold", lambda **_: Stuck())
        assert "has not answered for 10 s" in await told(client, guest, "%snapshot")
        assert (await cell(client, guest, "x"))["content"]["status"] == "ok"
    assert kernel.supervisor.asked == []


async def test_two_snapshots_at_once_are_taken_one_after_the_other(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client, kernel.client() as other:
        await kernel.guest()
        go_on = at_work(kernel)
        first = client.execute("%snapshot a --now")
        await kernel.supervisor.at_work.wait()
        second = other.execute("%snapshot b --now")
        connect = await ask(other, "connect_request", {})
        await replied(other, connect)
        assert kernel.supervisor.asked == ["snapshot"]
        go_on.set()
        assert (await replied(client, first))["content"]["status"] == "ok"
        assert (await replied(other, second))["content"]["status"] == "ok"
    assert [info.parent for info in kernel.supervisor.taken] == ["", "000000000001"]


async def test_an_interrupted_snapshot_is_finished_before_anything_else_is_sent(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        go_on = at_work(kernel)
        snapshot = client.execute("%snapshot")
        await guest.execute()
        await kernel.supervisor.at_work.wait()
        await ask(client, "interrupt_request", {}, "control")
        assert (await replied(client, snapshot))["content"]["ename"] == "KeyboardInterrupt"
        after = client.execute("after")
        await kernel.held(1)
        assert guest.idle_hands()
        assert kernel.links[0].held
        go_on.set()
        await guest.execute()
        assert (await replied(client, after))["metadata"]["agentvm"]["snapshot"] == "000000000001"


async def test_a_cell_that_waits_for_a_snapshot_can_be_interrupted(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client, kernel.client() as other:
        await kernel.guest()
        go_on = at_work(kernel)
        other.execute("%snapshot --now")
        await kernel.supervisor.at_work.wait()
        waiting = client.execute("waiting")
        await kernel.held(1)
        await ask(client, "interrupt_request", {}, "control")
        assert (await replied(client, waiting))["content"]["ename"] == "KeyboardInterrupt"
        go_on.set()


async def test_a_vm_that_ends_while_it_is_saved_is_named(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        at_work(kernel)
        snapshot = client.execute("%snapshot")
        await guest.execute()
        await kernel.supervisor.at_work.wait()
        guest.say("agent", [json.dumps({"event": "kernel_died", "exit_code": 3}).encode()])
        assert "exit code 3" in (await replied(client, snapshot))["content"]["evalue"]
        later = client.execute("later")
        assert "exit code 3" in (await replied(client, later))["content"]["evalue"]


async def test_a_snapshot_does_not_wait_for_ever_for_an_idle_that_is_lost_in_a_flood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "_LAST_WORDS", 0.05)
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        client.execute("start a thread that prints")
        before = await guest.asked()
        comm = await ask(client, "comm_msg", {"comm_id": "c", "data": {}})
        await guest.asked()
        msg_id = client.execute("%snapshot")
        await kernel.held(1)
        guest.begin(before)
        guest.reply(before, {"status": "ok", "execution_count": 1})
        stub = await guest.asked()
        guest.begin(stub)
        guest.reply(stub, {"status": "ok", "execution_count": 2})
        reply = await replied(client, msg_id)
        assert reply["content"]["status"] == "ok"
        guest.status(stub, "idle")
        guest.status(before, "idle")
        states = types([m for m in await outputs(client, before.header["msg_id"]) if m["msg_type"] == "status"])
        assert states[-1] == "idle"
        assert comm
    assert not kernel.supervisor.wanted[0].busy


@pytest.mark.parametrize(
    "label", ["../x", "a\0b", "A" * 300, "\u0430bc", "-x", "~2", ".hidden", "deadbeefcafe", "'a b'"]
)
async def test_a_wrong_label_is_refused_in_one_line(tmp_path: Path, label: str) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        text = await told(client, guest, f"%snapshot {label}")
    assert kernel.supervisor.asked == []
    assert "valid" in text
    assert "\n" not in text
    assert text.isprintable()
    assert len(text) < 300


@pytest.mark.parametrize("call", ["%snapshot a b", "%snapshot -m", "%snapshot --later", f"%snapshot -m {'x' * 2001}"])
async def test_a_wrong_call_takes_no_snapshot(tmp_path: Path, call: str) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        text = await told(client, guest, call)
    assert kernel.supervisor.asked == []
    assert "valid is %snapshot [LABEL]" in text or "at most 2000" in text


async def test_a_wrong_call_with_now_is_told_at_once(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        client.execute("long")
        await guest.asked()
        msg_id = client.execute("%snapshot a b --now")
        assert (await replied(client, msg_id))["content"]["ename"] == "UsageError"
        behind = client.execute("behind")
        assert (await guest.asked()).header["msg_id"] == behind
