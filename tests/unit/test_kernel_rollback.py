"""A rollback gives the notebook another VM: nothing of the past reaches it, and nothing hangs, whatever goes on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from unittest.mock import ANY

import pytest
from jupyter_client.asynchronous import AsyncKernelClient
from kernel_harness import (
    TIMEOUT,
    InProcessKernel,
    ScriptedGuest,
    ask,
    cell,
    outputs,
    parts_of,
    replied,
    running,
    shown,
    told,
    types,
    within,
)

from agentvm_kernel.errors import LinkClosedError, LinkError, SupervisorError
from agentvm_kernel.kernel import endings, fence, hostside, requests
from agentvm_kernel.supervisor.execution_messages import digest_of
from agentvm_kernel.supervisor.messages import Ended

FIRST = "000000000001"


@asynccontextmanager
async def with_snapshot(folder: Path) -> AsyncIterator[tuple[InProcessKernel, AsyncKernelClient, ScriptedGuest]]:
    """A kernel whose VM has run a cell and has a snapshot called `base`."""
    async with running(folder) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        await cell(client, guest, "x = 1")
        await cell(client, guest, "%snapshot base")
        kernel.supervisor.at_work.clear()
        yield kernel, client, guest


async def replaced(kernel: InProcessKernel, links: int = 2) -> ScriptedGuest:
    """The new VM's guest."""
    await within(lambda: len(kernel.links) == links)
    return await kernel.guest()


async def test_a_rollback_puts_the_notebook_into_another_vm_and_says_where_it_is(tmp_path: Path) -> None:
    async with with_snapshot(tmp_path) as (kernel, client, guest):
        await cell(client, guest, "y = 2")
        msg_id = client.execute("%rollback base")
        stub = await guest.execute()
        behind = client.execute("x")
        said = await outputs(client, msg_id)
        reply = await replied(client, msg_id)
        fresh = await replaced(kernel)
        fresh.count = 2
        asked = await fresh.execute()
        after = await replied(client, behind)
        await told(client, fresh, "%rollback base")
        now = client.execute("%snapshot --now")
        assert (await replied(client, now))["content"]["execution_count"] == 1
    assert stub.content["code"] == "# %rollback base"
    assert shown(said).startswith("Back at base (000000000001) in 0.")
    place = {"vm": "vm-2", "snapshot": FIRST}
    assert reply["metadata"]["agentvm"] == {"run": 4, "code": digest_of("%rollback base"), **place, "facts": ANY}
    assert asked.content["code"] == "x"
    assert after["content"]["execution_count"] == 3
    assert after["metadata"]["agentvm"] == {"run": 5, "code": digest_of("x"), **place, "facts": ANY}
    assert kernel.links[0].error is not None
    assert kernel.supervisor.released == 1
    assert len(kernel.supervisor.leases) == 1


async def test_without_a_name_it_goes_to_the_present_snapshot(tmp_path: Path) -> None:
    async with with_snapshot(tmp_path) as (kernel, client, guest):
        assert (await told(client, guest, "%rollback")).startswith("Back at base")
        assert kernel.supervisor.asked[-1] == "rollback "


async def test_the_end_of_the_old_vm_is_not_the_end_of_the_notebooks(tmp_path: Path) -> None:
    async with with_snapshot(tmp_path) as (kernel, client, guest):
        kernel.supervisor.go_on.clear()
        msg_id = client.execute("%rollback base")
        await guest.execute()
        await kernel.supervisor.at_work.wait()
        assert kernel.links[0].held
        guest.say("agent", [json.dumps({"event": "kernel_died", "signal": 9}).encode()])
        kernel.links[0].end(LinkClosedError("The guest's end of the link is gone."))
        await replied(client, await ask(client, "connect_request", {}))
        await ask(client, "debug_request", {"command": "debugInfo"}, "control")
        kernel.supervisor.go_on.set()
        assert (await replied(client, msg_id))["content"]["status"] == "ok"
        fresh = await replaced(kernel)
        assert (await fresh.asked("control")).header["msg_type"] == "debug_request"


async def test_what_the_old_guest_has_not_finished_is_ended(tmp_path: Path) -> None:
    async with with_snapshot(tmp_path) as (kernel, client, guest):
        execute = {"code": "sleep()", "silent": False, "store_history": False}
        subshell = await ask(client, "execute_request", execute, subshell_id="s")
        waits = await ask(client, "execute_request", execute, subshell_id="s")
        comm = await ask(client, "comm_msg", {"comm_id": "c", "data": {}}, subshell_id="t")
        debug = await ask(client, "debug_request", {"command": "pause"}, "control")
        unfinished = [await guest.asked() for _ in range(3)]
        unfinished.append(await guest.asked("control"))
        msg_id = client.execute("%rollback base")
        await guest.execute()
        said = {name: types(await outputs(client, name)) for name in [subshell]}
        first, second = await replied(client, subshell), await replied(client, waits)
        control = await replied(client, debug, "control")
        assert (await replied(client, msg_id))["content"]["status"] == "ok"
        fresh = await replaced(kernel)
        for asked in unfinished:
            fresh.reply(asked, {"status": "ok"})
            guest.reply(asked, {"status": "ok"})
            guest.output(asked, "of the past")
        last = client.execute("last")
        await fresh.execute()
        said |= {"last": types(await outputs(client, last))}
        await replied(client, last)
        assert not await client.shell_channel.msg_ready()
        assert not await client.control_channel.msg_ready()
    assert said == {subshell: ["busy", "error", "idle"], "last": ["busy", "execute_input", "idle"]}
    assert "went back to a snapshot" in first["content"]["evalue"]
    assert "restart" not in first["content"]["evalue"]
    assert second["content"]["status"] == "aborted"
    assert control["content"]["status"] == "error"
    assert comm


def comm(guest: ScriptedGuest, msg_type: str, comm_id: str, size: int = 0) -> None:
    guest.say("iopub", parts_of(msg_type, {"data": {"x": "y" * size}, "comm_id": comm_id, "target_name": "t"}))


async def closed(client: AsyncKernelClient, last: str) -> list[str]:
    """The comms that were closed before a cell's idle."""
    names = []
    while True:
        message = await client.get_iopub_msg(timeout=TIMEOUT)
        content = message["content"]
        if message["msg_type"] == "comm_close":
            assert content["data"] == {}
            names.append(content["comm_id"])
        elif message["parent_header"].get("msg_id") == last and content.get("execution_state") == "idle":
            return names


async def test_comms_opened_since_the_snapshot_are_closed_and_the_others_stay(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        await ask(client, "comm_open", {"comm_id": "client-before", "target_name": "t", "data": {}})
        first = await guest.asked()
        guest.status(first, "idle")
        comm(guest, "comm_open", "before")
        comm(guest, "comm_open", "gone-before")
        comm(guest, "comm_close", "gone-before")
        comm(guest, "comm_open", "closed-after")
        await cell(client, guest, "%snapshot base")
        comm(guest, "comm_close", "closed-after")
        comm(guest, "comm_open", "after")
        comm(guest, "comm_open", "long-after", 300_000)
        comm(guest, "comm_open", "gone-after")
        while (await client.get_iopub_msg(timeout=TIMEOUT))["content"].get("comm_id") != "gone-after":
            pass
        await ask(client, "comm_open", {"comm_id": "client-after", "target_name": "t", "data": {}}, subshell_id="s")
        guest.status(await guest.asked(), "idle")
        await ask(client, "comm_close", {"comm_id": "gone-after", "data": {}}, subshell_id="s")
        guest.status(await guest.asked(), "idle")
        await cell(client, guest, "y")
        while await client.iopub_channel.msg_ready():
            await client.get_iopub_msg(timeout=TIMEOUT)
        msg_id = client.execute("%rollback base")
        await guest.execute()
        assert await closed(client, msg_id) == ["after", "long-after", "client-after"]
        await replaced(kernel)
        again = client.execute("%rollback base")
        await ScriptedGuest(kernel.links[1]).execute()
        assert await closed(client, again) == []
        await replaced(kernel, 3)
        restart = client.execute("%vm restart")
        await ScriptedGuest(kernel.links[2]).execute()
        assert await closed(client, restart) == ["client-before", "before"]


async def test_a_snapshot_of_an_earlier_kernel_process_knows_no_comms(tmp_path: Path) -> None:
    async with with_snapshot(tmp_path) as (kernel, client, guest):
        earlier = kernel.supervisor.taken[0].model_copy(update={"id": "e" * 12, "label": "earlier"})
        kernel.supervisor.taken.append(earlier)
        comm(guest, "comm_open", "here")
        msg_id = client.execute("%rollback earlier")
        await guest.execute()
        assert await closed(client, msg_id) == ["here"]


async def test_a_subshell_that_the_new_vm_does_not_have_is_served_by_the_main_shell(tmp_path: Path) -> None:
    async with with_snapshot(tmp_path) as (kernel, client, guest):
        await ask(client, "create_subshell_request", {}, "control")
        guest.reply(await guest.asked("control"), {"status": "ok", "subshell_id": "since"})
        assert (await client.get_control_msg(timeout=TIMEOUT))["content"]["subshell_id"] == "since"
        await cell(client, guest, "%rollback base")
        fresh = await replaced(kernel)
        for subshell in ("since", "known"):
            await ask(client, "comm_msg", {"comm_id": "c", "data": {}}, subshell_id=subshell)
        headers = [(await fresh.asked()).header for _ in range(2)]
    assert [header.get("subshell_id") for header in headers] == [None, "known"]


async def test_a_refused_rollback_leaves_the_vm_as_it_was(tmp_path: Path) -> None:
    async with with_snapshot(tmp_path) as (kernel, client, guest):
        comm(guest, "comm_open", "mine")
        debug = await ask(client, "debug_request", {"command": "x"}, "control")
        unfinished = await guest.asked("control")
        assert "There is no snapshot 'nowhere'" in await told(client, guest, "%rollback nowhere")
        await client.get_shell_msg(timeout=TIMEOUT)
        guest.reply(unfinished, {"status": "ok", "success": True})
        assert (await replied(client, debug, "control"))["content"]["success"]
        guest.say("iopub", parts_of("stream", {"name": "stdout", "text": "x"}, {"msg_id": "unknown"}))
        message = await client.get_iopub_msg(timeout=TIMEOUT)
        while message["msg_type"] != "stream":
            message = await client.get_iopub_msg(timeout=TIMEOUT)
        assert message["parent_header"] == {}
        reply = await cell(client, guest, "still here")
        assert reply["metadata"]["agentvm"]["vm"] == "vm-1"
        assert len(kernel.links) == 1


async def test_a_new_vm_that_cannot_be_reached_is_an_error_and_restart_helps(tmp_path: Path) -> None:
    async with with_snapshot(tmp_path) as (kernel, client, guest):
        connect = kernel.machine.connect

        async def refuse(*_: object, **__: object) -> None:
            raise LinkError("The guest agent cannot be dialled.")

        kernel.machine.connect = refuse  # type: ignore[assignment]
        assert "cannot be dialled" in await told(client, guest, "%rollback base")
        await client.get_shell_msg(timeout=TIMEOUT)
        later = client.execute("later")
        assert "cannot be dialled" in (await replied(client, later))["content"]["evalue"]
        kernel.machine.connect = connect
        restart = client.execute("%vm restart")
        assert (await replied(client, restart))["content"]["status"] == "ok"


async def test_a_supervisor_that_fails_with_the_old_vm_gone_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endings, "_BETTER_REASON", 0.05)
    async with with_snapshot(tmp_path) as (kernel, client, guest):
        kernel.supervisor.go_on.clear()
        kernel.supervisor.fails = SupervisorError("QEMU did not start.")
        msg_id = client.execute("%rollback base")
        await guest.execute()
        await kernel.supervisor.at_work.wait()
        kernel.links[0].end(LinkClosedError("gone"))
        kernel.supervisor.leases[0].events.put_nowait(Ended(code="vm_ended", reason="The VM is gone."))
        kernel.supervisor.go_on.set()
        assert "QEMU did not start" in (await replied(client, msg_id))["content"]["evalue"]
        later = client.execute("later")
        assert "The VM is gone." in (await replied(client, later))["content"]["evalue"]


async def test_an_interrupt_in_mid_rollback_leaves_the_new_vm(tmp_path: Path) -> None:
    async with with_snapshot(tmp_path) as (kernel, client, guest):
        kernel.supervisor.go_on.clear()
        msg_id = client.execute("%rollback base")
        await guest.execute()
        await kernel.supervisor.at_work.wait()
        await ask(client, "interrupt_request", {}, "control")
        assert (await replied(client, msg_id))["content"]["ename"] == "KeyboardInterrupt"
        after = client.execute("x")
        await kernel.held(1)
        kernel.supervisor.go_on.set()
        fresh = await replaced(kernel)
        await fresh.execute()
        assert (await replied(client, after))["metadata"]["agentvm"]["vm"] == "vm-2"


async def test_an_interrupt_while_the_supervisor_refuses_leaves_the_old_vm(tmp_path: Path) -> None:
    async with with_snapshot(tmp_path) as (kernel, client, guest):
        kernel.supervisor.go_on.clear()
        kernel.supervisor.fails = SupervisorError("no")
        msg_id = client.execute("%rollback base")
        await guest.execute()
        await kernel.supervisor.at_work.wait()
        await ask(client, "interrupt_request", {}, "control")
        await replied(client, msg_id)
        after = client.execute("x")
        kernel.supervisor.go_on.set()
        await guest.execute()
        assert (await replied(client, after))["metadata"]["agentvm"]["vm"] == "vm-1"


async def test_a_rollback_works_while_output_floods_and_idles_are_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "_LAST_WORDS", 0.1)
    async with with_snapshot(tmp_path) as (kernel, client, guest):
        thread = client.execute("flood")
        asked = await guest.asked()
        guest.begin(asked)
        guest.reply(asked, {"status": "ok", "execution_count": 3})

        async def flood() -> None:
            while kernel.links[0].error is None:
                guest.output(asked, "flood\n")
                await asyncio.sleep(0)

        flooding = asyncio.create_task(flood())
        msg_id = client.execute("%rollback base")
        reading = asyncio.create_task(everything(client, msg_id))
        stub = await guest.asked()
        guest.reply(stub, {"status": "ok", "execution_count": 4})
        assert (await replied(client, msg_id))["content"]["status"] == "ok"
        await flooding
        said = await reading
        assert types([m for m in said if m["parent_header"].get("msg_id") == thread])[-1] == "idle"
        assert types([m for m in said if m["parent_header"].get("msg_id") == msg_id]) == ["display_data", "idle"]
        fresh = await replaced(kernel)
        after = client.execute("quiet")
        await fresh.execute()
        assert types(await outputs(client, after)) == ["busy", "execute_input", "idle"]


async def everything(client: AsyncKernelClient, last: str) -> list[dict[str, object]]:
    """What iopub says to a request's idle."""
    messages = []
    while True:
        messages.append(message := await client.get_iopub_msg(timeout=TIMEOUT))
        if message["parent_header"].get("msg_id") == last and message["content"].get("execution_state") == "idle":
            return messages


async def test_a_vm_that_hangs_can_be_rolled_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostside, "PATIENCE", 0.05)
    async with with_snapshot(tmp_path) as (kernel, client, guest):
        msg_id = client.execute("%rollback base")
        await guest.asked()
        assert (await replied(client, msg_id))["content"]["status"] == "ok"
        assert types(await outputs(client, msg_id))[-1] == "idle"
        assert (await cell(client, await replaced(kernel), "x"))["content"]["status"] == "ok"


async def test_after_an_interrupt_a_rollback_passes_a_cell_that_does_not_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fence, "PATIENCE", 0.05)
    monkeypatch.setattr(hostside, "PATIENCE", 0.05)
    async with with_snapshot(tmp_path) as (kernel, client, guest):
        stuck = client.execute("breakpoint()")
        guest.begin(await guest.asked())
        msg_id = client.execute("%rollback base")
        await kernel.held(1)
        await ask(client, "interrupt_request", {}, "control")
        assert (await replied(client, msg_id))["content"]["status"] == "ok"
        assert types(await outputs(client, stuck))[-1] == "idle"
        assert (await cell(client, await replaced(kernel), "x"))["content"]["status"] == "ok"


async def test_a_rollback_waits_for_the_snapshot_that_is_being_taken(tmp_path: Path) -> None:
    async with with_snapshot(tmp_path) as (kernel, client, guest), kernel.client() as other:
        kernel.supervisor.go_on.clear()
        snapshot = other.execute("%snapshot late --now")
        await kernel.supervisor.at_work.wait()
        rollback = client.execute("%rollback base")
        await kernel.held(1)
        kernel.supervisor.go_on.set()
        await guest.execute()
        assert (await replied(other, snapshot))["content"]["status"] == "ok"
        assert (await replied(client, rollback))["metadata"]["agentvm"]["snapshot"] == FIRST
    assert kernel.supervisor.asked == ["snapshot", "snapshot", "rollback base"]


async def test_a_rollback_while_comms_are_busy_and_a_debugger_is_attached(tmp_path: Path) -> None:
    async with with_snapshot(tmp_path) as (kernel, client, guest):
        sending = asyncio.create_task(chatter(client))
        try:
            kernel.supervisor.go_on.clear()
            msg_id = client.execute("%rollback base")
            stub = await guest.asked()
            while stub.header["msg_type"] != "execute_request":
                stub = await guest.asked()
            guest.begin(stub)
            guest.finish(stub)
            await kernel.supervisor.at_work.wait()
            before = kernel.links[0].streams["shell"].to_guest.qsize()
            await within(lambda: kernel.waiting("shell/w"))
            assert kernel.links[0].streams["shell"].to_guest.qsize() == before
            kernel.supervisor.go_on.set()
            assert (await replied(client, msg_id))["content"]["status"] == "ok"
            fresh = await replaced(kernel)
            assert (await fresh.asked()).header["msg_type"] == "comm_msg"
            assert (await fresh.asked("control")).content["command"] == "debugInfo"
        finally:
            sending.cancel()
            await asyncio.wait([sending])


async def chatter(client: AsyncKernelClient) -> None:
    for number in range(1 << 30):
        await ask(client, "comm_msg", {"comm_id": "w", "data": {"n": number}}, subshell_id="w")
        await ask(client, "debug_request", {"command": "debugInfo"}, "control")
        await asyncio.sleep(0.002)


async def test_what_runs_on_in_the_new_vm_is_shown_under_the_rollback(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        long = client.execute("for ever")
        guest.begin(asked := await guest.asked())
        msg_id = client.execute("%snapshot middle --now")
        await replied(client, msg_id)
        guest.finish(asked)
        await replied(client, long)
        rollback = client.execute("%rollback middle")
        await guest.execute()
        text = shown(await outputs(client, rollback))
        fresh = await replaced(kernel)
        kinds = ("stream", "display_data", "error", "execute_result", "clear_output")
        for kind in kinds:
            fresh.say("iopub", parts_of(kind, {"text": "t", "data": {"text/plain": "t"}}, asked.header))
        said = [await client.get_iopub_msg(timeout=TIMEOUT) for _ in kinds]
        again = client.execute("%snapshot again --now")
        assert "froze a running cell" in shown(await outputs(client, again))
        fresh.reply(asked, {"status": "ok"})
        fresh.status(asked, "idle")
        assert (await client.get_iopub_msg(timeout=TIMEOUT))["parent_header"] == {}
        quiet = client.execute("%snapshot quiet --now")
        assert "froze" not in shown(await outputs(client, quiet))
    assert "It froze a running cell (for ever), which runs on now: its output appears here." in text
    assert [message["parent_header"]["msg_id"] for message in said] == [rollback] * len(kinds)


@pytest.mark.parametrize("to", ["base", "nowhere"])
async def test_the_debris_of_a_rollback_is_not_inherited_by_a_fresh_vm(tmp_path: Path, to: str) -> None:
    async with with_snapshot(tmp_path) as (kernel, client, guest):
        await cell(client, guest, f"%rollback {to}")
        links = len(kernel.links)
        await cell(client, await replaced(kernel, links), "%vm restart")
        fresh = await replaced(kernel, links + 1)
        last = client.execute("x")
        await fresh.execute()
        await outputs(client, last)
        fresh.say("iopub", parts_of("stream", {"name": "stdout", "text": "x"}, {"msg_id": "unknown"}))
        assert (await client.get_iopub_msg(timeout=TIMEOUT))["parent_header"] == {}


async def test_a_vm_that_has_ended_can_be_rolled_back(tmp_path: Path) -> None:
    async with with_snapshot(tmp_path) as (kernel, client, guest):
        dies = client.execute("os._exit(7)")
        await guest.asked()
        guest.say("agent", [json.dumps({"event": "kernel_died", "exit_code": 7}).encode()])
        assert "exit code 7" in (await replied(client, dies))["content"]["evalue"]
        msg_id = client.execute("%rollback")
        said = await outputs(client, msg_id)
        assert shown(said).startswith("Back at base")
        assert kernel.supervisor.asked[-1] == f"rollback {FIRST}"
        fresh = await replaced(kernel, 3)
        assert (await cell(client, fresh, "x"))["metadata"]["agentvm"]["snapshot"] == FIRST


async def test_a_shutdown_in_mid_rollback_ends_the_kernel(tmp_path: Path) -> None:
    async with with_snapshot(tmp_path) as (kernel, client, guest):
        kernel.supervisor.go_on.clear()
        client.execute("%rollback base")
        await guest.execute()
        await kernel.supervisor.at_work.wait()
        await ask(client, "shutdown_request", {"restart": False}, "control")
        assert (await client.get_control_msg(timeout=TIMEOUT))["content"]["status"] == "ok"
        assert kernel.supervisor.released == 1
        assert kernel.supervisor.working == 0


async def test_progress_of_what_takes_long_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentvm_kernel.kernel.progress._INTERVAL", 0.05)
    async with with_snapshot(tmp_path) as (kernel, client, guest):
        kernel.supervisor.go_on.clear()
        msg_id = client.execute("%rollback base")
        await guest.execute()
        message = await client.get_iopub_msg(timeout=TIMEOUT)
        while message["msg_type"] != "display_data" or message["parent_header"]["msg_id"] != msg_id:
            message = await client.get_iopub_msg(timeout=TIMEOUT)
        assert message["content"]["data"]["text/plain"].startswith("Going back (")
        kernel.supervisor.go_on.set()
        assert "clear_output" in types(await outputs(client, msg_id))


async def test_a_dry_run_says_what_would_be_lost_and_changes_nothing(tmp_path: Path) -> None:
    async with with_snapshot(tmp_path) as (kernel, client, guest):
        await cell(client, guest, "y = 2\nz = 3")
        await cell(client, guest, "%snapshot later")
        await cell(client, guest, "w = 4", "error")
        text = await told(client, guest, "%rollback base --dry-run")
        assert len(kernel.links) == 1
    assert text.splitlines() == [
        "To base (000000000001), taken 1 min 5 s ago after [1] x = 1.",
        "Lost: 5.0 MiB of memory written since the present snapshot, and what 2 cells did since the target:",
        "  [5] w = 4",
        "  [3] y = 2…",
        "Left, on a branch of the tree: 1 snapshot:",
        "  later (000000000002)",
        "Not undone: nothing went over the network since.",
        "Not undone: what the notebook shows already, and files that were pulled out of the VM.",
    ]


async def test_a_dry_run_counts_along_the_branch_that_the_vm_is_on(tmp_path: Path) -> None:
    async with with_snapshot(tmp_path) as (kernel, client, guest):
        await cell(client, guest, "left")
        await cell(client, guest, "%snapshot side")
        await cell(client, guest, "%rollback base")
        fresh = await replaced(kernel)
        await cell(client, fresh, "here")
        back = await told(client, fresh, "%rollback base --dry-run")
        across = await told(client, fresh, "%rollback side --dry-run")
    assert "what 1 cell did" in back
    assert "here" in back
    assert "left" not in back
    assert "what 1 cell did" in across


@pytest.mark.parametrize("to", ["../x", "~x", "-1", "\u0430", "x" * 300, "~1234567"])
async def test_a_name_that_no_snapshot_can_have_is_refused(tmp_path: Path, to: str) -> None:
    async with with_snapshot(tmp_path) as (kernel, client, guest):
        text = await told(client, guest, f"%rollback {to}")
        assert kernel.supervisor.asked == ["snapshot"]
    assert "\n" not in text
    assert "valid is" in text or "label, an id or ~N" in text


@pytest.mark.parametrize("to", ["~2", "~", "deadbeefcafe", "a1", "base.v2"])
async def test_labels_ids_and_steps_are_passed_on(tmp_path: Path, to: str) -> None:
    async with with_snapshot(tmp_path) as (kernel, client, guest):
        await told(client, guest, f"%rollback {to}")
        assert kernel.supervisor.asked[-1] == f"rollback {to}"


async def test_an_adopted_fork_takes_the_vms_place(tmp_path: Path) -> None:
    async with with_snapshot(tmp_path) as (kernel, client, guest):
        comm(guest, "comm_open", "since")
        msg_id = client.execute("%adopt 3")
        await guest.execute()
        said = await outputs(client, msg_id)
        assert shown(said).startswith("Fork 3 is the notebook's VM now (")
        assert kernel.supervisor.asked[-1] == "adopt 3"
        fresh = await replaced(kernel)
        reply = await cell(client, fresh, "x")
        assert reply["metadata"]["agentvm"]["vm"] == "vm-2"


@pytest.mark.parametrize("call", ["%adopt", "%adopt 0", "%adopt x", "%adopt 1 2", "%adopt 100"])
async def test_a_wrong_adoption_is_refused(tmp_path: Path, call: str) -> None:
    async with with_snapshot(tmp_path) as (kernel, client, guest):
        assert "valid is %adopt K" in await told(client, guest, call)
        assert kernel.supervisor.asked == ["snapshot"]
