"""While the VM is coming: progress, interrupts, and silence where silence is needed."""

from __future__ import annotations

from pathlib import Path

import pytest
from kernel_harness import TIMEOUT, ScriptedSupervisor, granted, outputs, running, types

from agentvm_kernel.kernel import progress
from agentvm_kernel.kernel.progress import progress_text
from agentvm_kernel.supervisor.messages import Progress


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_INTERVAL", 0.05)


@pytest.mark.usefixtures("quick")
async def test_the_first_cell_shows_progress_which_is_gone_when_the_vm_is_there(tmp_path: Path) -> None:
    supervisor = ScriptedSupervisor(grant=False)
    async with running(tmp_path, supervisor) as kernel, kernel.client() as client:
        await supervisor.leased.wait()
        events = supervisor.leases[0].events
        msg_id = client.execute("x")
        events.put_nowait(Progress(stage="building the image", done=0.25))
        shown = await message_of(client, "display_data")
        assert "Preparing the virtual machine" in shown["content"]["data"]["text/plain"]
        events.put_nowait(Progress(stage="booting", done=0.5))
        updated = await message_of(client, "update_display_data")
        while "booting" not in updated["content"]["data"]["text/plain"]:
            updated = await message_of(client, "update_display_data")
        assert "[############............] 50%" in updated["content"]["data"]["text/plain"]
        assert updated["content"]["transient"] == shown["content"]["transient"]
        assert updated["parent_header"]["msg_id"] == msg_id
        events.put_nowait(granted())
        await (await kernel.guest()).execute()
        rest = types(await outputs(client, msg_id))
    assert [kind for kind in rest if kind != "update_display_data"] == ["clear_output", "execute_input", "idle"]


async def message_of(client, msg_type: str):  # type: ignore[no-untyped-def]
    while True:
        message = await client.get_iopub_msg(timeout=TIMEOUT)
        if message["msg_type"] == msg_type:
            return message


@pytest.mark.usefixtures("quick")
async def test_nothing_is_published_before_a_cell_is_run(tmp_path: Path) -> None:
    supervisor = ScriptedSupervisor(grant=False)
    async with running(tmp_path, supervisor) as kernel, kernel.client() as client:
        await supervisor.leased.wait()
        for number in range(5):
            supervisor.leases[0].events.put_nowait(Progress(stage=f"step {number}"))
        client.complete("x")
        await kernel.held(1)
        assert not await client.iopub_channel.socket.poll(400)


def test_progress_is_slower_than_a_connecting_client_needs_silence() -> None:
    assert progress._INTERVAL > 0.25


async def test_a_short_wait_shows_nothing(tmp_path: Path) -> None:
    supervisor = ScriptedSupervisor(grant=False)
    async with running(tmp_path, supervisor) as kernel, kernel.client() as client:
        await supervisor.leased.wait()
        msg_id = client.execute("x")
        await kernel.held(1)
        supervisor.leases[0].events.put_nowait(granted())
        await (await kernel.guest()).execute()
        assert types(await outputs(client, msg_id)) == ["busy", "execute_input", "idle"]


@pytest.mark.usefixtures("quick")
async def test_an_interrupt_ends_the_waiting_cell_and_aborts_those_behind_it(tmp_path: Path) -> None:
    supervisor = ScriptedSupervisor(grant=False)
    async with running(tmp_path, supervisor) as kernel, kernel.client() as client:
        first = client.execute("one")
        second = client.execute("two")
        completion = client.complete("three")
        await kernel.held(3)
        await message_of(client, "display_data")
        client.control_channel.send(client.session.msg("interrupt_request", {}))
        assert (await client.get_control_msg(timeout=TIMEOUT))["content"]["status"] == "ok"
        said = [m for m in await outputs(client, first) if m["msg_type"] == "error"]
        assert [m["content"]["ename"] for m in said] == ["KeyboardInterrupt"]
        replies = [await client.get_shell_msg(timeout=TIMEOUT) for _ in range(2)]
        assert [r["parent_header"]["msg_id"] for r in replies] == [first, second]
        assert [r["content"]["status"] for r in replies] == ["error", "aborted"]
        supervisor.leases[0].events.put_nowait(granted())
        guest = await kernel.guest()
        asked = await guest.asked()
        assert asked.header["msg_id"] == completion
        later = client.execute("later")
        assert (await guest.asked()).header["msg_id"] == later


@pytest.mark.usefixtures("quick")
async def test_an_interrupt_ends_a_host_magic(tmp_path: Path) -> None:
    supervisor = ScriptedSupervisor()
    async with running(tmp_path, supervisor) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        supervisor.grant = False
        restart = client.execute("%vm restart")
        await guest.execute()
        await message_of(client, "display_data")
        client.control_channel.send(client.session.msg("interrupt_request", {}))
        await client.get_control_msg(timeout=TIMEOUT)
        reply = await client.get_shell_msg(timeout=TIMEOUT)
        assert reply["parent_header"]["msg_id"] == restart
        assert reply["content"]["ename"] == "KeyboardInterrupt"
        supervisor.leases[1].events.put_nowait(granted(2))
        await kernel.guest()


def test_the_text_of_progress() -> None:
    assert progress_text("Preparing", "booting", None, 3.4) == "Preparing: booting (3 s)"
    assert progress_text("Going back", "", None, 1.0) == "Going back (1 s)"
    assert progress_text("Preparing", "booting", 7.0, 0).endswith("[########################] 100% (0 s)")
