"""A VM that ends, or cannot be had: every request gets an answer, and the answer says why."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from jupyter_client.asynchronous import AsyncKernelClient
from kernel_harness import (
    TIMEOUT,
    InProcessKernel,
    ScriptedGuest,
    ScriptedSupervisor,
    cell,
    granted,
    outputs,
    parts_of,
    replied,
    running,
    types,
    within,
)

from agentvm_kernel.errors import ApiError, HeartbeatError, LinkClosedError, LinkError, ProtocolError, SupervisorError
from agentvm_kernel.kernel import endings
from agentvm_kernel.kernel.machine import State
from agentvm_kernel.supervisor.messages import Ended, Leaving, Progress


def kernel_died(guest: ScriptedGuest, **facts: object) -> None:
    guest.say("agent", [json.dumps({"event": "kernel_died", **facts}).encode()])


def later(seconds: float, call: Callable[..., object], *arguments: object) -> None:
    asyncio.get_running_loop().call_later(seconds, call, *arguments)


async def error_of(client: AsyncKernelClient, msg_id: str) -> str:
    """The one error of a cell."""
    said = await outputs(client, msg_id)
    assert types(said).count("error") == 1
    reply = await client.get_shell_msg(timeout=TIMEOUT)
    assert reply["content"]["status"] == "error"
    error = next(message for message in said if message["msg_type"] == "error")
    assert error["content"]["evalue"] == reply["content"]["evalue"]
    return str(reply["content"]["evalue"])


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"exit_code": 7, "signal": None, "oom": False}, "ended with exit code 7"),
        ({"exit_code": None, "signal": 11, "oom": False}, "killed by signal 11 (SIGSEGV)"),
        ({"exit_code": None, "signal": 9, "oom": True}, "memory was used up"),
        ({"exit_code": None, "signal": 1000, "oom": False}, "killed by signal 1000"),
        ({"exit_code": "lie", "signal": True, "oom": 1}, "The Python process in the VM ended."),
    ],
)
async def test_the_death_of_the_guests_python_is_told_with_its_manner(
    tmp_path: Path, facts: dict[str, object], expected: str
) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        msg_id = client.execute("os._exit(7)")
        guest.begin(await guest.asked())
        kernel_died(guest, **facts)
        message = await error_of(client, msg_id)
    assert expected in message
    assert "Restart the kernel, or run %vm restart" in message
    assert kernel.supervisor.released == 1


async def test_what_the_kernel_said_before_it_died_arrives_before_the_error(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        msg_id = client.execute("x")
        asked = await guest.asked()
        guest.begin(asked)
        kernel_died(guest, exit_code=1)
        for number in range(5):
            later(0.03 * number, guest.output, asked, str(number))
        said = await outputs(client, msg_id)
    assert types(said) == ["busy", "execute_input", *["stream"] * 5, "error", "idle"]


async def test_the_supervisors_reason_is_preferred_to_a_broken_link(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        msg_id = client.execute("poweroff")
        await guest.asked()
        kernel.links[0].end(LinkClosedError("gone"))
        ended = Ended(code="vm_ended", reason="The guest's kernel panicked.", hint="Look at the console.")
        later(0.2, kernel.supervisor.leases[0].events.put_nowait, ended)
        message = await error_of(client, msg_id)
    assert message.startswith("The guest's kernel panicked. Look at the console.")


async def test_a_broken_link_is_the_reason_when_the_supervisor_knows_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endings, "_BETTER_REASON", 0.05)
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        msg_id = client.execute("x")
        await guest.asked()
        kernel.links[0].end(HeartbeatError("The guest agent has not answered for 20 s."))
        message = await error_of(client, msg_id)
    assert "has not answered for 20 s" in message


@pytest.mark.parametrize(
    ("event", "expected"),
    [(None, "The supervisor, which kept the VM, is gone"), (SupervisorError("The connection broke."), "broke")],
)
async def test_a_supervisor_that_is_gone_is_named(tmp_path: Path, event: SupervisorError | None, expected: str) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        msg_id = client.execute("x")
        await guest.asked()
        kernel.supervisor.leases[0].events.put_nowait(event)
        assert expected in await error_of(client, msg_id)


async def test_a_violation_of_the_protocol_is_named_at_once(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        msg_id = client.execute("x")
        await guest.asked()
        kernel.links[0].end(ProtocolError("The guest sent 70000 bytes beyond its credit."))
        assert "70000 bytes beyond its credit" in await error_of(client, msg_id)


async def test_every_pending_request_is_answered_and_queued_cells_are_aborted(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        first, second = client.execute("dies"), client.execute("queued")
        client.execute("%vm status")
        completion = client.complete("imp")
        client.control_channel.send(client.session.msg("debug_request", {"command": "debugInfo"}))
        for _ in range(2):
            await guest.asked()
        await guest.asked("control")
        await kernel.held(2)
        kernel_died(guest, exit_code=1)
        replies = {}
        for _ in range(4):
            reply = await client.get_shell_msg(timeout=TIMEOUT)
            replies[reply["parent_header"]["msg_id"]] = reply["content"]["status"]
        debug = await client.get_control_msg(timeout=TIMEOUT)
    assert replies[first] == "error"
    assert replies[second] == "aborted"
    assert replies[completion] == "error"
    assert sorted(replies.values()) == ["aborted", "aborted", "error", "error"]
    assert debug["content"]["status"] == "error"


async def test_cells_that_must_not_stop_on_errors_each_get_the_reason(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        ids = [client.execute(f"{n}", stop_on_error=False) for n in range(3)]
        for _ in ids:
            await guest.asked()
        kernel_died(guest, exit_code=1)
        for msg_id in ids:
            assert "exit code 1" in await error_of(client, msg_id)


async def test_a_reply_without_idle_still_gets_its_idle(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        msg_id = client.execute("x")
        asked = await guest.asked()
        guest.status(asked, "busy")
        guest.reply(asked, {"status": "ok"})
        assert (await client.get_shell_msg(timeout=TIMEOUT))["content"]["status"] == "ok"
        kernel_died(guest, exit_code=1)
        assert types(await outputs(client, msg_id)) == ["busy", "idle"]
        assert not await client.shell_channel.msg_ready()


async def test_later_cells_name_the_reason_and_other_requests_do_not_hang(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        kernel_died(guest, exit_code=3)
        await ended(kernel)
        msg_id = client.execute("later")
        said = await outputs(client, msg_id)
        assert types(said) == ["busy", "execute_input", "error", "idle"]
        assert "exit code 3" in (await client.get_shell_msg(timeout=TIMEOUT))["content"]["evalue"]
        client.comm_info()
        assert (await client.get_shell_msg(timeout=TIMEOUT))["content"] == {"status": "ok", "comms": {}}
        client.is_complete("x")
        assert (await client.get_shell_msg(timeout=TIMEOUT))["content"]["status"] == "unknown"
        client.complete("x")
        assert (await client.get_shell_msg(timeout=TIMEOUT))["content"]["status"] == "error"
        client.kernel_info()
        assert (await client.get_shell_msg(timeout=TIMEOUT))["content"]["status"] == "ok"
        message = client.session.msg("comm_msg", {"comm_id": "c", "data": {}})
        client.shell_channel.send(message)
        assert types(await outputs(client, message["header"]["msg_id"])) == ["busy", "idle"]


async def ended(kernel: InProcessKernel) -> None:
    """Return once the router knows that the guest is gone."""
    lease = kernel.supervisor.released
    while kernel.machine.error is None:
        await kernel.machine._changed.wait()
        if kernel.machine.error is None:
            kernel.machine._changed.clear()
    assert kernel.supervisor.released >= lease


async def test_restart_brings_a_new_vm_and_the_old_ones_words_no_longer_count(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        old = client.execute("x = 1")
        asked = await guest.execute()
        await outputs(client, old)
        await client.get_shell_msg(timeout=TIMEOUT)
        restart = client.execute("%vm restart")
        await guest.execute()
        said = await outputs(client, restart)
        reply = await client.get_shell_msg(timeout=TIMEOUT)
        assert reply["content"]["status"] == "ok"
        assert "fresh virtual machine" in str(said)
        assert len(kernel.links) == 2
        assert kernel.supervisor.released == 1
        fresh = ScriptedGuest(kernel.links[1])
        guest.output(asked, "from the old VM")
        fresh.say("iopub", parts_of("stream", {"name": "stdout", "text": "new"}, asked.header))
        message = await client.get_iopub_msg(timeout=TIMEOUT)
        assert (message["content"]["text"], message["parent_header"]) == ("new", {})
        client.execute("y")
        await fresh.execute()
        assert (await client.get_shell_msg(timeout=TIMEOUT))["metadata"]["agentvm"]["vm"] == "vm-2"


async def test_restart_works_when_the_vm_is_gone(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        kernel_died(await kernel.guest(), exit_code=1)
        await ended(kernel)
        msg_id = client.execute("%vm restart")
        assert types(await outputs(client, msg_id)) == ["busy", "execute_input", "display_data", "idle"]
        assert (await client.get_shell_msg(timeout=TIMEOUT))["content"]["status"] == "ok"


async def test_restart_answers_what_other_lanes_wait_for(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        client.control_channel.send(client.session.msg("debug_request", {"command": "debugInfo"}))
        await guest.asked("control")
        client.execute("%vm restart")
        await guest.execute()
        reply = await client.get_control_msg(timeout=TIMEOUT)
    assert "restarted" in reply["content"]["evalue"]


async def test_a_host_that_cannot_run_vms_says_what_is_wrong_and_the_remedy(tmp_path: Path) -> None:
    supervisor = ScriptedSupervisor(grant=False)
    async with running(tmp_path, supervisor) as kernel, kernel.client() as client:
        await supervisor.leased.wait()
        msg_id = client.execute("x")
        supervisor.leases[0].events.put_nowait(Progress(stage="looking at the host"))
        supervisor.leases[0].events.put_nowait(
            Ended(code="host", reason="There is no QEMU.", hint="Run agentvm setup.")
        )
        assert (await error_of(client, msg_id)).startswith("There is no QEMU. Run agentvm setup.")
        restart = client.execute("%vm restart")
        await kernel_restarting(supervisor)
        supervisor.leases[1].events.put_nowait(Ended(code="host", reason="Still no QEMU."))
        assert "Still no QEMU." in await error_of(client, restart)


async def kernel_restarting(supervisor: ScriptedSupervisor) -> None:
    supervisor.leased.clear()
    while len(supervisor.leases) < 2:
        await supervisor.leased.wait()
        supervisor.leased.clear()


async def test_a_supervisor_that_cannot_be_reached_is_an_error_of_the_cell(tmp_path: Path) -> None:
    supervisor = ScriptedSupervisor(grant=False)
    async with running(tmp_path, supervisor) as kernel, kernel.client() as client:
        await supervisor.leased.wait()
        msg_id = client.execute("x")
        supervisor.leases[0].events.put_nowait(None)
        assert "went away before there was a VM" in await error_of(client, msg_id)


async def test_a_link_that_cannot_be_made_is_an_error_of_the_cell(tmp_path: Path) -> None:
    supervisor = ScriptedSupervisor(grant=False)
    async with running(tmp_path, supervisor) as kernel, kernel.client() as client:

        async def refuse(*_: object, **__: object) -> None:
            raise LinkError("The guest agent cannot be dialled.")

        kernel.machine.connect = refuse  # type: ignore[assignment]
        msg_id = client.execute("x")
        await supervisor.leased.wait()
        supervisor.leases[0].events.put_nowait(granted(pid=os.getpid()))
        assert "cannot be dialled" in await error_of(client, msg_id)


async def test_an_unforeseen_failure_on_a_message_ends_the_vm_with_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        msg_id = client.execute("x")
        asked = await guest.asked()

        async def fail(*_: object, **__: object) -> None:
            raise ZeroDivisionError

        side = kernel.guest_side
        monkeypatch.setattr(side._answers, "publish", fail)
        guest.output(asked, "x")
        async with asyncio.timeout(TIMEOUT):
            await side.broken()
        monkeypatch.undo()
        assert "could not be handled (ZeroDivisionError)" in await error_of(client, msg_id)


async def test_an_unforeseen_failure_while_the_vm_comes_is_an_error_of_the_cell(tmp_path: Path) -> None:
    supervisor = ScriptedSupervisor(grant=False)
    async with running(tmp_path, supervisor) as kernel, kernel.client() as client:
        await supervisor.leased.wait()
        msg_id = client.execute("x")
        supervisor.leases[0].events.put_nowait(ZeroDivisionError("never thought of"))
        assert "ZeroDivisionError: never thought of" in await error_of(client, msg_id)


async def test_a_supervisor_that_leaves_gets_the_vm_kept_first(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        await cell(client, guest, "x = 1")
        kernel.supervisor.leases[0].events.put_nowait(Leaving(seconds=60))
        await within(lambda: kernel.machine.state is State.ENDED)
        message = await error_of(client, client.execute("x"))
        (wanted,) = kernel.supervisor.wanted
    assert message.startswith(
        "The supervisor was told to leave; the VM is kept as the snapshot 000000000001. %rollback 000000000001 goes on"
    )
    assert (wanted.text, wanted.busy, wanted.cell.code) == ("kept when the supervisor left", False, "x = 1")


async def test_a_running_cell_has_time_to_end_before_the_vm_is_kept(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        msg_id = client.execute("quick")
        asked = await guest.asked()
        kernel.supervisor.leases[0].events.put_nowait(Leaving(seconds=600))
        guest.begin(asked)
        assert kernel.supervisor.wanted == []
        guest.finish(asked)
        assert (await replied(client, msg_id))["content"]["status"] == "ok"
        await within(lambda: kernel.machine.state is State.ENDED)
        assert [one.busy for one in kernel.supervisor.wanted] == [False]


async def test_a_cell_that_does_not_end_in_time_is_frozen(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        msg_id = client.execute("slow")
        guest.begin(await guest.asked())
        kernel.supervisor.leases[0].events.put_nowait(Leaving(seconds=0.1))
        message = await error_of(client, msg_id)
        assert [one.busy for one in kernel.supervisor.wanted] == [True]
    assert "kept as the snapshot 000000000001" in message


async def test_a_vm_that_cannot_be_kept_is_named_with_the_reason(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        await cell(client, guest, "x = 1")
        kernel.supervisor.fails = ApiError("disk_full", "There is no room for a snapshot.", "Prune.")
        kernel.supervisor.leases[0].events.put_nowait(Leaving(seconds=60))
        await within(lambda: kernel.machine.state is State.ENDED)
        message = await error_of(client, client.execute("x"))
    assert message.startswith(
        "The supervisor left, and the VM could not be kept: There is no room for a snapshot. Prune."
    )
