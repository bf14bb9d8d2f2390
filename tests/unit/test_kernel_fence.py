"""The order of host magics against guest cells."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from kernel_harness import TIMEOUT, ScriptedSupervisor, outputs, parts_of, running, types

from agentvm_kernel.kernel import requests
from agentvm_kernel.magics import vm


async def test_a_host_magic_waits_for_the_idle_of_what_went_before_not_its_reply(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        client.execute("before")
        before = await guest.asked()
        client.execute("%vm status")
        client.execute("after")
        await kernel.held(2)
        guest.begin(before)
        guest.reply(before, {"status": "ok", "execution_count": 1})
        await client.get_shell_msg(timeout=TIMEOUT)
        assert guest.idle_hands()
        guest.status(before, "idle")
        stub = await guest.execute()
        assert stub.content["code"] == "# %vm status"
        assert (await guest.asked()).content["code"] == "after"


async def test_what_follows_a_magic_runs_only_once_the_magic_is_done(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        client.execute("%vm status")
        client.execute("after")
        await kernel.held(1)
        stub = await guest.asked()
        guest.begin(stub)
        guest.reply(stub, {"status": "ok", "execution_count": 1})
        assert guest.idle_hands()
        guest.status(stub, "idle")
        assert (await guest.asked()).content["code"] == "after"


async def test_an_earlier_error_aborts_the_executes_that_wait_and_only_those(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        client.execute("bad")
        bad = await guest.asked()
        magic = client.execute("%vm status")
        client.complete("imp")
        after = client.execute("after")
        await kernel.held(3)
        guest.begin(bad)
        guest.finish(bad, "error")
        replies = [await client.get_shell_msg(timeout=TIMEOUT) for _ in range(3)]
        assert (await guest.asked()).header["msg_type"] == "complete_request"
        assert guest.idle_hands()
        assert types(await outputs(client, magic)) == ["busy", "idle"]
        assert types(await outputs(client, after)) == ["busy", "idle"]
    assert [reply["content"]["status"] for reply in replies] == ["error", "aborted", "aborted"]


async def test_an_error_that_need_not_stop_lets_the_rest_run(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        client.execute("bad", stop_on_error=False)
        bad = await guest.asked()
        client.execute("%vm status")
        guest.begin(bad)
        guest.finish(bad, "error")
        await guest.execute()
        replies = [await client.get_shell_msg(timeout=TIMEOUT) for _ in range(2)]
    assert [reply["content"]["status"] for reply in replies] == ["error", "ok"]


async def test_a_wrong_magic_aborts_what_waits_behind_it(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        client.execute("%vm nonsense")
        client.execute("after")
        await kernel.held(1)
        await guest.execute()
        replies = [await client.get_shell_msg(timeout=TIMEOUT) for _ in range(2)]
        assert guest.idle_hands()
    assert [reply["content"]["status"] for reply in replies] == ["error", "aborted"]


async def test_subshells_and_other_lanes_pass_a_held_magic(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        client.execute("long")
        await guest.asked()
        client.execute("%vm status")
        message = client.session.msg("comm_msg", {"comm_id": "c", "data": {}})
        message["header"]["subshell_id"] = "s"
        client.shell_channel.send(message)
        assert (await guest.asked()).header["msg_type"] == "comm_msg"
        client.control_channel.send(client.session.msg("debug_request", {"command": "debugInfo"}))
        assert (await guest.asked("control")).header["msg_type"] == "debug_request"


async def test_requests_wait_for_the_vm_in_order(tmp_path: Path) -> None:
    supervisor = ScriptedSupervisor(grant=False)
    async with running(tmp_path, supervisor) as kernel, kernel.client() as client:
        from kernel_harness import granted

        client.execute("one")
        client.complete("two")
        client.execute("%vm")
        client.execute("three")
        await supervisor.leased.wait()
        supervisor.leases[0].events.put_nowait(granted())
        guest = await kernel.guest()
        first = await guest.asked()
        second = await guest.asked()
        assert guest.idle_hands()
        guest.begin(first)
        guest.finish(first)
        guest.reply(second, {"status": "ok", "matches": []})
        guest.status(second, "idle")
        third = await guest.execute()
        fourth = await guest.asked()
    codes = [asked.content["code"] for asked in (first, second, third, fourth)]
    assert codes == ["one", "two", "# %vm", "three"]


@pytest.mark.parametrize("status", ["ok", "error"])
async def test_a_silent_error_does_not_abort(tmp_path: Path, status: str) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        client.execute("quiet", silent=True)
        quiet = await guest.asked()
        client.execute("%vm")
        guest.say("shell", parts_of("execute_reply", {"status": status}, quiet.header))
        guest.status(quiet, "idle")
        assert (await guest.execute()).content["code"] == "# %vm"


async def test_idles_that_are_lost_are_waited_for_once_and_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "_LAST_WORDS", 0.5)
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        for number in range(40):
            client.execute(f"flood {number}")
            asked = await guest.asked()
            guest.reply(asked, {"status": "ok", "execution_count": number})
            await client.get_shell_msg(timeout=TIMEOUT)
        async with asyncio.timeout(TIMEOUT / 2):
            for _ in range(40):
                client.execute("%vm")
                await guest.execute()
                await client.get_shell_msg(timeout=TIMEOUT)


async def test_a_magic_that_fails_unforeseen_is_an_error_and_the_lane_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise ZeroDivisionError

    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        monkeypatch.setattr(vm, "run", fail)
        client.execute("%vm")
        client.execute("behind")
        await kernel.held(1)
        await guest.execute()
        replies = [await client.get_shell_msg(timeout=TIMEOUT) for _ in range(2)]
        assert "(ZeroDivisionError)" in replies[0]["content"]["evalue"]
        assert replies[1]["content"]["status"] == "aborted"
        client.execute("later")
        assert (await guest.asked()).content["code"] == "later"
