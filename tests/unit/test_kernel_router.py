"""The router between real clients and a scripted guest."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from unittest.mock import ANY

from kernel_harness import TIMEOUT, ScriptedSupervisor, outputs, parts_of, running, types

from agentvm_kernel.supervisor.execution_messages import digest_of


async def test_a_cell_goes_to_the_guest_and_its_answers_come_back_under_host_headers(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        msg_id = client.execute("1 + 1")
        asked = await guest.asked()
        assert asked.content["code"] == "1 + 1"
        guest.begin(asked)
        guest.output(asked, "hello")
        guest.finish(asked)
        said = await outputs(client, msg_id)
        reply = await client.get_shell_msg(timeout=TIMEOUT)
    assert types(said) == ["busy", "execute_input", "stream", "idle"]
    assert {message["header"]["session"] for message in [*said, reply]} == {kernel.session.session}
    assert reply["parent_header"]["msg_id"] == msg_id
    place = {"vm": "vm-1", "snapshot": ""}
    assert reply["metadata"]["agentvm"] == {"run": 1, "code": digest_of("1 + 1"), **place, "facts": ANY}


async def test_runs_are_numbered_however_the_guest_counts(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        runs = []
        for _ in range(3):
            client.execute("x")
            guest.count = 0
            await guest.execute()
            runs.append((await client.get_shell_msg(timeout=TIMEOUT))["metadata"]["agentvm"]["run"])
    assert runs == [1, 2, 3]


async def test_output_without_a_known_parent_is_published_without_one(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        guest.say("iopub", parts_of("stream", {"name": "stdout", "text": "x"}, {"msg_id": "made-up", "session": "s"}))
        message = await client.get_iopub_msg(timeout=TIMEOUT)
    assert message["parent_header"] == {}


async def test_late_output_of_a_finished_cell_keeps_its_parent(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        msg_id = client.execute("thread")
        asked = await guest.execute()
        await outputs(client, msg_id)
        guest.output(asked, "late")
        message = await client.get_iopub_msg(timeout=TIMEOUT)
    assert message["parent_header"]["msg_id"] == msg_id


async def test_two_requests_with_one_msg_id_get_their_own_replies(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as first, kernel.client() as second:
        guest = await kernel.guest()
        same = first.session.msg("execute_request", {"code": "a"})
        first.shell_channel.send(same)
        one = await guest.asked()
        other = second.session.msg("execute_request", {"code": "b"})
        other["header"]["msg_id"] = other["msg_id"] = same["msg_id"]
        second.shell_channel.send(other)
        two = await guest.asked()
        assert one.header["msg_id"] != two.header["msg_id"]
        guest.reply(two, {"status": "ok", "execution_count": 2})
        guest.reply(one, {"status": "ok", "execution_count": 1})
        assert (await first.get_shell_msg(timeout=TIMEOUT))["content"]["execution_count"] == 1
        assert (await second.get_shell_msg(timeout=TIMEOUT))["content"]["execution_count"] == 2


async def test_buffers_and_subshell_ids_pass_unchanged(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        client.shell_channel.send(client.session.msg("comm_open", {"comm_id": "c", "target_name": "own", "data": {}}))
        await guest.asked()
        message = client.session.msg("comm_msg", {"comm_id": "c", "data": {}})
        message["header"]["subshell_id"] = "sub-1"
        message["buffers"] = [b"\x00\xff" * 1000]
        client.shell_channel.send(message)
        asked = await guest.asked()
        assert asked.header["subshell_id"] == "sub-1"
        assert asked.buffers == [b"\x00\xff" * 1000]
        guest.say("iopub", parts_of("comm_msg", {"comm_id": "c", "data": {}}, asked.header, buffers=[b"\x01" * 9]))
        answer = await client.get_iopub_msg(timeout=TIMEOUT)
    assert [bytes(buffer) for buffer in answer["buffers"]] == [b"\x01" * 9]


async def test_input_is_asked_of_the_client_that_executes_and_its_answer_goes_to_the_guest(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as first, kernel.client() as second:
        guest = await kernel.guest()
        second.execute("input()", allow_stdin=True)
        asked = await guest.asked()
        question = parts_of("input_request", {"prompt": "name? ", "password": False}, asked.header)
        guest.say("stdin", question)
        request = await second.get_stdin_msg(timeout=TIMEOUT)
        assert request["content"]["prompt"] == "[VM] name? "
        second.input("Ada")
        answer = await guest.asked("stdin")
        assert answer.content["value"] == "Ada"
        assert not await first.stdin_channel.msg_ready()


async def test_input_from_a_client_that_was_not_asked_is_dropped(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as first, kernel.client() as second:
        guest = await kernel.guest()
        second.execute("input()", allow_stdin=True)
        asked = await guest.asked()
        guest.say("stdin", parts_of("input_request", {"prompt": "", "password": False}, asked.header))
        await second.get_stdin_msg(timeout=TIMEOUT)
        first.input("intruder")
        second.input("owner")
        assert (await guest.asked("stdin")).content["value"] == "owner"


async def test_interrupts_go_to_the_guest_agent(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        client.control_channel.send(client.session.msg("interrupt_request", {}))
        parts = await kernel.links[0].streams["agent"].to_guest.get()
        request = json.loads(parts[0])
        assert request["op"] == "interrupt"
        guest.say("agent", [json.dumps({"id": request["id"], "ok": True}).encode()])
        reply = await client.get_control_msg(timeout=TIMEOUT)
    assert reply["msg_type"] == "interrupt_reply"
    assert reply["content"]["status"] == "ok"


async def test_an_interrupt_that_the_agent_refuses_is_an_error(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        client.control_channel.send(client.session.msg("interrupt_request", {}))
        request = json.loads((await kernel.links[0].streams["agent"].to_guest.get())[0])
        guest.say("agent", [json.dumps({"id": request["id"], "ok": False, "error": "no kernel"}).encode()])
        reply = await client.get_control_msg(timeout=TIMEOUT)
    assert reply["content"]["status"] == "error"
    assert "no kernel" in reply["content"]["evalue"]


async def test_usage_is_measured_by_the_host(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        client.control_channel.send(client.session.msg("usage_request", {}))
        reply = await client.get_control_msg(timeout=TIMEOUT)
        assert guest.idle_hands("control")
    content = reply["content"]
    assert content["hostname"] == "vm-1"
    assert content["kernel_memory"] > 1 << 20
    assert {"kernel_cpu", "pid", "cpu_count", "host_virtual_memory"} <= content.keys()


async def test_connect_request_names_the_host_ports(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        client.shell_channel.send(client.session.msg("connect_request", {}))
        content = (await client.get_shell_msg(timeout=TIMEOUT))["content"]
    assert content["iopub_port"] == kernel.addresses.ports["iopub"]


async def test_shutdown_gives_the_vm_back_answers_and_ends_the_router(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        await kernel.guest()
        client.control_channel.send(client.session.msg("shutdown_request", {"restart": True}))
        reply = await client.get_control_msg(timeout=TIMEOUT)
        assert reply["content"] == {"status": "ok", "restart": True}
        assert kernel.supervisor.released == 1
        assert kernel.links[0].error is not None


async def test_kernel_info_of_the_guest_gets_a_line_about_agentvm(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        client.kernel_info()
        guest.reply(await guest.asked(), {"status": "ok", "banner": "IPython 9", "implementation": "ipython"})
        content = (await client.get_shell_msg(timeout=TIMEOUT))["content"]
    assert content["banner"].startswith("IPython 9\nAgentVM")


async def test_kernel_info_is_answered_while_there_is_no_vm(tmp_path: Path) -> None:
    supervisor = ScriptedSupervisor(grant=False)
    async with running(tmp_path, supervisor) as kernel, kernel.client() as client:
        await client._async_wait_for_ready(timeout=TIMEOUT)
        client.kernel_info()
        content = (await client.get_shell_msg(timeout=TIMEOUT))["content"]
    assert content["language_info"]["version"].startswith("3.13")
    assert set(content["supported_features"]) == {"kernel subshells", "debugger"}


async def test_what_is_not_a_valid_request_is_dropped(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        client.shell_channel.send(client.session.msg("execute_request", {"no": "code"}))
        client.execute("fine")
        assert (await guest.asked()).content["code"] == "fine"


async def test_replies_go_only_to_the_client_that_asked_and_iopub_to_both(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as first, kernel.client() as second:
        guest = await kernel.guest()
        msg_id = first.execute("1")
        await guest.execute()
        assert types(await outputs(second, msg_id)) == ["busy", "execute_input", "idle"]
        assert (await first.get_shell_msg(timeout=TIMEOUT))["parent_header"]["msg_id"] == msg_id
        assert not await second.shell_channel.msg_ready()


async def test_the_heartbeat_answers(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        client.hb_channel.start()
        client.hb_channel.unpause()
        async with asyncio.timeout(TIMEOUT):
            while not client.hb_channel.is_beating():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert kernel.heartbeat.is_alive()
