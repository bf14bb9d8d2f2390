"""The guest agent with a real ipykernel, as a process of this host."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
from local_guest import LocalGuest, identity_fields, local_guest

from agentvm_kernel.errors import LinkClosedError, LinkError, ProofError
from agentvm_kernel.link.connection import Link, Stream, connect
from agentvm_kernel.link.control import ControlChannel
from agentvm_kernel.link.limits import Limits

pytestmark = pytest.mark.asyncio(loop_scope="module")
_numbers = itertools.count()


class Notebook:
    """What a notebook does, straight over a link."""

    def __init__(self, link: Link, streams: dict[str, Stream]) -> None:
        self.link = link
        self.streams = streams

    @classmethod
    async def attach(cls, guest: LocalGuest, limits: Limits | None = None) -> Notebook:
        link = await connect(guest.endpoint, key=guest.key, epoch=guest.epoch, limits=limits)
        return cls(link, {name: await link.open(name) for name in ("shell", "control", "stdin", "iopub", "agent")})

    async def ask(
        self, kind: str, content: dict[str, object], *, channel: str = "shell", buffers: tuple[bytes, ...] = ()
    ) -> str:
        number = f"m{next(_numbers)}"
        header = {
            "msg_id": number,
            "session": "test",
            "username": "test",
            "date": "2026-01-01T00:00:00Z",
            "msg_type": kind,
            "version": "5.4",
        }
        parts = [json.dumps(part).encode() for part in (header, {}, {}, content)]
        await self.streams[channel].send([*parts, *buffers])
        return number

    async def execute(self, code: str, **changes: object) -> str:
        # An error must not abort what the next test asks.
        flags = {"silent": False, "store_history": True, "allow_stdin": True, "stop_on_error": False}
        return await self.ask("execute_request", {"code": code, "user_expressions": {}} | flags | changes)

    async def until_idle(self, number: str) -> list[tuple[str, dict[str, Any]]]:
        """Return type and content of what came on iopub for a request."""
        found = []
        while True:
            kind, parent, content, _ = await self.receive("iopub")
            if parent == number:
                found.append((kind, content))
                if content.get("execution_state") == "idle":
                    return found

    async def receive(self, channel: str) -> tuple[str, str, dict[str, Any], list[bytes]]:
        parts = await asyncio.wait_for(self.streams[channel].receive(), 20)
        header, parent, content = (json.loads(parts[index]) for index in (0, 1, 3))
        return header["msg_type"], parent.get("msg_id", ""), content, parts[4:]

    async def run(self, code: str, **changes: object) -> tuple[str, dict[str, Any]]:
        """Run a cell; returns its text on stdout and its reply."""
        number = await self.execute(code, **changes)
        output = await self.until_idle(number)
        _, parent, reply, _ = await self.receive("shell")
        assert parent == number
        return "".join(c["text"] for kind, c in output if kind == "stream" and c["name"] == "stdout"), reply

    async def tell_agent(self, op: str) -> dict[str, Any]:
        await self.streams["agent"].send([json.dumps({"id": 1, "op": op}).encode()])
        (answer,) = await self.streams["agent"].receive()
        return json.loads(answer)  # type: ignore[no-any-return]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[LocalGuest]:
    async with local_guest() as guest:
        yield guest


@pytest_asyncio.fixture(loop_scope="module")
async def notebook(shared: LocalGuest) -> AsyncIterator[Notebook]:
    attached = await Notebook.attach(shared)
    yield attached
    await attached.link.close()


async def test_the_first_cell_has_number_one_although_the_kernel_is_warm() -> None:
    async with local_guest() as guest:
        notebook = await Notebook.attach(guest)
        number = await notebook.execute("6 * 7")
        output = await notebook.until_idle(number)
        assert [kind for kind, _ in output] == ["status", "execute_input", "execute_result", "status"]
        assert output[2][1]["execution_count"] == 1
        assert output[2][1]["data"] == {"text/plain": "42"}
        assert (await notebook.receive("shell"))[2]["execution_count"] == 1
        assert (await notebook.run("print(In, Out)"))[0] == "['', '6 * 7', 'print(In, Out)'] {1: 42}\n"
        await notebook.link.close()


async def test_the_kernel_offers_debugger_and_subshells(notebook: Notebook) -> None:
    await notebook.ask("kernel_info_request", {}, channel="control")
    _, _, info, _ = await notebook.receive("control")
    assert "debugger" in info["supported_features"]
    assert "kernel subshells" in info["supported_features"]


async def test_user_code_sees_an_ordinary_ipykernel(notebook: Notebook) -> None:
    code = (
        "import sys, threading\n"
        "print([p for p in sys.path if 'agentvm_guest' in p], sys.argv[0], __name__)\n"
        "print('agentvm_guest' in sys.modules, sys.stdin.closed)"
    )
    text, _ = await notebook.run(code)
    assert text == "[] ipykernel_launcher.py __main__\nFalse False\n"


async def test_low_level_output_is_captured(notebook: Notebook) -> None:
    number = await notebook.execute("import os, time; _ = os.write(1, b'from C\\n'); time.sleep(0.5)")
    output = await notebook.until_idle(number)
    await notebook.receive("shell")
    assert ("stream", {"name": "stdout", "text": "from C\n"}) in output


@pytest.mark.parametrize("how", ["os.write(1, text)", "subprocess.run(['cat'], input=text)"])
async def test_what_a_process_prints_last_comes_before_the_reply(notebook: Notebook, how: str) -> None:
    await notebook.run("import os, subprocess")
    for size in range(1, 60_000, 2000):
        text, _ = await notebook.run(f"text = b'x' + b'\\xc3\\xa4' * {size // 2}\n_ = {how}")
        assert text == "x" + "\u00e4" * (size // 2)


async def test_input_is_asked_on_stdin(notebook: Notebook) -> None:
    number = await notebook.execute("print(input('name? ').upper())")
    kind, _, content, _ = await notebook.receive("stdin")
    assert (kind, content["prompt"]) == ("input_request", "name? ")
    await notebook.ask("input_reply", {"value": "ada"}, channel="stdin")
    output = await notebook.until_idle(number)
    assert ("stream", {"name": "stdout", "text": "ADA\n"}) in output
    await notebook.receive("shell")


async def test_an_interrupt_reaches_the_cell_and_its_children(notebook: Notebook) -> None:
    number = await notebook.execute("import subprocess, time\nprint('go', flush=True)\nsubprocess.run(['sleep', '60'])")
    while (await notebook.receive("iopub"))[2].get("text") != "go\n":
        pass
    assert await notebook.tell_agent("interrupt") == {"id": 1, "ok": True}
    _, parent, reply, _ = await notebook.receive("shell")
    assert parent == number
    assert reply["ename"] == "KeyboardInterrupt"
    await notebook.until_idle(number)


async def test_control_gets_through_while_the_shell_is_busy_and_its_output_unread(notebook: Notebook) -> None:
    number = await notebook.execute("for i in range(300): display('x' * 50_000)")
    await notebook.ask("kernel_info_request", {}, channel="control")
    kind, _, _, _ = await notebook.receive("control")
    assert kind == "kernel_info_reply"
    output = await notebook.until_idle(number)
    assert sum(kind == "display_data" for kind, _ in output) == 300
    await notebook.receive("shell")


async def test_eight_megabytes_and_ten_thousand_prints_arrive(notebook: Notebook) -> None:
    text, _ = await notebook.run("print('x' * (8 << 20))")
    assert len(text) == (8 << 20) + 1
    text, _ = await notebook.run("for i in range(10_000): print(i)")
    assert text.split() == [str(i) for i in range(10_000)]


async def test_a_comm_carries_buffers_both_ways(notebook: Notebook) -> None:
    code = (
        "from comm import get_comm_manager\n"
        "def on_open(comm, message):\n"
        "    @comm.on_msg\n"
        "    def echo(message):\n"
        "        comm.send({'n': 1}, buffers=[bytes(b)[::-1] for b in message['buffers']])\n"
        "get_comm_manager().register_target('echo', on_open)"
    )
    await notebook.run(code)
    number = await notebook.ask("comm_open", {"comm_id": "c1", "target_name": "echo", "data": {}})
    await notebook.until_idle(number)
    payload = os.urandom(100_000)
    await notebook.ask("comm_msg", {"comm_id": "c1", "data": {}}, buffers=(payload, b""))
    while (message := await notebook.receive("iopub"))[0] != "comm_msg":
        pass
    assert message[3] == [payload[::-1], b""]


async def test_the_debugger_stops_at_a_breakpoint() -> None:
    # A guest of its own: on this Python a debugger leaves its tracing behind, which makes later cells slow.
    async with local_guest() as guest:
        notebook = await Notebook.attach(guest)
        await debug_a_cell(notebook)
        await notebook.link.close()


async def debug_a_cell(notebook: Notebook) -> None:
    async def debug(command: str, **arguments: object) -> dict[str, Any]:
        content = {"type": "request", "seq": next(_numbers), "command": command, "arguments": arguments}
        await notebook.ask("debug_request", content, channel="control")
        return (await notebook.receive("control"))[2]

    async def debug_event(name: str) -> dict[str, Any]:
        while True:
            kind, _, content, _ = await notebook.receive("iopub")
            if kind == "debug_event" and content["event"] == name:
                return content

    code = "a = 1\nb = 2\nc = a + b"
    assert (await debug("initialize", clientID="t", adapterID="", pathFormat="path"))["success"]
    attached = asyncio.create_task(debug("attach"))
    await attached
    source = (await debug("dumpCell", code=code))["body"]["sourcePath"]
    await debug("setBreakpoints", source={"path": source}, breakpoints=[{"line": 2}], sourceModified=False)
    await debug("configurationDone")
    number = await notebook.execute(code)
    stopped = await debug_event("stopped")
    # Neither the helper thread nor those that put out what processes print stop, nor do they show up.
    threads = [thread["name"] for thread in (await debug("threads"))["body"]["threads"]]
    assert [name for name in threads if name == "agentvm" or "pipe" in name] == []
    await debug("continue", threadId=stopped["body"]["threadId"])
    await notebook.until_idle(number)
    assert (await notebook.receive("shell"))[2]["status"] == "ok"
    await debug("disconnect", restart=False, terminateDebuggee=True)


async def test_a_subshell_answers_while_the_main_shell_is_busy(notebook: Notebook) -> None:
    await notebook.ask("create_subshell_request", {}, channel="control")
    subshell = (await notebook.receive("control"))[2]["subshell_id"]
    busy = await notebook.execute("import time\nprint('go', flush=True)\ntime.sleep(60)")
    # An interrupt that comes before the cell runs is ignored.
    while (await notebook.receive("iopub"))[2].get("text") != "go\n":
        pass
    header = {"msg_id": "sub", "session": "s", "username": "u", "date": "2026-01-01T00:00:00Z", "version": "5.5"}
    request = [header | {"msg_type": "execute_request", "subshell_id": subshell}, {}, {}, {"code": "1", "silent": True}]
    await notebook.streams["shell"].send([json.dumps(part).encode() for part in request])
    assert (await notebook.receive("shell"))[1] == "sub"
    await notebook.tell_agent("interrupt")
    assert (await notebook.receive("shell"))[1] == busy
    await notebook.ask("delete_subshell_request", {"subshell_id": subshell}, channel="control")
    await notebook.receive("control")


async def test_over_long_messages_are_replaced_by_a_note(shared: LocalGuest) -> None:
    notebook = await Notebook.attach(shared, Limits(max_message=100_000))
    number = await notebook.execute("display('x' * 200_000)\nprint('still here')")
    output = await notebook.until_idle(number)
    notes = [content["text"] for kind, content in output if kind == "stream" and content["name"] == "stderr"]
    assert len(notes) == 1, output
    assert "left out: the limit is 100000 bytes" in notes[0]
    assert ("stream", {"name": "stdout", "text": "still here\n"}) in output
    await notebook.receive("shell")
    await notebook.run("big = 'y' * 200_000")
    number = await notebook.execute("1", user_expressions={"e": "big"})
    _, parent, reply, _ = await notebook.receive("shell")
    assert (parent, reply["status"], reply["ename"]) == (number, "error", "MessageTooLong")
    await notebook.link.close()


async def test_a_host_that_does_not_read_gets_everything_later(shared: LocalGuest) -> None:
    notebook = await Notebook.attach(shared, Limits(window=64 << 10))
    number = await notebook.execute("for i in range(2000): display('x' * 1000)")
    output = await notebook.until_idle(number)
    assert sum(kind == "display_data" for kind, _ in output) == 2000
    assert (await notebook.receive("shell"))[1] == number
    await notebook.link.close()


async def test_the_host_may_dial_again_and_finds_its_variables(shared: LocalGuest) -> None:
    first = await Notebook.attach(shared)
    await first.run("kept = 5")
    first.link.abort()
    second = await Notebook.attach(shared)
    assert (await second.run("print(kept)"))[0] == "5\n"
    await second.link.close()


async def test_a_second_proven_connection_replaces_the_first(shared: LocalGuest) -> None:
    first = await Notebook.attach(shared)
    second = await Notebook.attach(shared)
    assert isinstance(await asyncio.wait_for(first.link.wait_closed(), 5), LinkClosedError)
    assert (await second.run("print(1)"))[0] == "1\n"
    await second.link.close()


async def test_a_channel_can_be_opened_only_once(notebook: Notebook) -> None:
    with pytest.raises(LinkClosedError, match="closed stream iopub"):
        await (await notebook.link.open("iopub")).receive()
    with pytest.raises(LinkClosedError, match="closed stream egress"):
        await (await notebook.link.open("egress")).receive()
    assert (await notebook.run("print(1)"))[0] == "1\n"


async def test_a_closed_channel_can_be_opened_again(notebook: Notebook) -> None:
    notebook.streams["stdin"].close()
    notebook.streams["stdin"] = await notebook.link.open("stdin")
    number = await notebook.execute("input()")
    await notebook.receive("stdin")
    await notebook.ask("input_reply", {"value": ""}, channel="stdin")
    await notebook.until_idle(number)
    await notebook.receive("shell")


async def test_a_wrong_key_is_refused_and_reported(shared: LocalGuest) -> None:
    with pytest.raises(ProofError):
        await connect(shared.endpoint, key=secrets.token_bytes(32), epoch=shared.epoch)
    event = await shared.event("link_refused")
    assert "without a proof" in str(event["reason"]), event
    with pytest.raises(ProofError, match="epoch"):
        await connect(shared.endpoint, key=shared.key, epoch=shared.epoch + 1)
    event = await shared.event("link_refused")
    assert "epoch" in str(event["reason"]), event


async def test_the_agent_answers_facts_on_both_channels(shared: LocalGuest, notebook: Notebook) -> None:
    owner = await shared.control.request("facts", timeout=5)
    user = await notebook.tell_agent("facts")
    assert owner["ipykernel"] == user["ipykernel"]
    assert owner["ipykernel_state"] == "ready"
    assert await notebook.tell_agent("ping") == {"id": 1, "ok": True}
    assert (await notebook.tell_agent("dance"))["error"] == "there is no operation 'dance'"
    await shared.control.request("ping", timeout=5)
    await shared.control.request("clock", timeout=5, time_ns=12345)
    facts = await shared.control.request("facts", timeout=5)
    assert "set_clock 12345" in facts["recorded"]  # type: ignore[operator]


async def test_requests_that_make_no_sense_are_refused_by_name(shared: LocalGuest) -> None:
    async def refused(op: str, **fields: object) -> str:
        with pytest.raises(LinkError) as caught:
            await shared.control.request(op, timeout=5, **fields)
        return caught.value.message

    good = identity_fields(bytes(32), 9)
    assert "there is no operation 'dance'" in await refused("dance")
    assert "time_ns is not an integer" in await refused("clock", time_ns="now")
    assert "epoch is not an integer" in await refused("identity", **good | {"epoch": 1 << 32})
    assert "key is not 32 bytes" in await refused("identity", **good | {"key": "00"})
    assert "entropy is not 64 bytes" in await refused("identity", **good | {"entropy": None})
    assert "hostname is not valid" in await refused("identity", **good | {"hostname": "a b"})
    assert "machine_id is not valid" in await refused("identity", **good | {"machine_id": "../../etc/passwd"})
    assert "randomness is not diverge" in await refused("identity", **good | {"randomness": "other"})
    assert "seed is not 64 bytes" in await refused("identity", **good | {"randomness": "common"})


async def test_a_new_identity_ends_the_old_link_and_renews_the_generators() -> None:
    async with local_guest() as guest:
        notebook = await Notebook.attach(guest)
        await notebook.run("import random, ssl; random.seed(1); state = random.getstate()")
        old_key = guest.key
        answer = await guest.identify(2)
        assert answer == {"epoch": 2, "hostname": "vm-2", "seeded": ["random", "ssl"]}
        assert isinstance(await asyncio.wait_for(notebook.link.wait_closed(), 5), LinkClosedError)
        with pytest.raises(ProofError):
            await connect(guest.endpoint, key=old_key, epoch=2)
        again = await Notebook.attach(guest)
        assert (await again.run("print(random.getstate() == state)"))[0] == "False\n"
        facts = await guest.control.request("facts", timeout=5)
        recorded = [str(call).split()[0] for call in facts["recorded"]]  # type: ignore[union-attr]
        assert recorded[-3:] == ["set_clock", "add_entropy", "set_names"]
        assert int((await again.run("import gc; print(gc.get_freeze_count())"))[0]) > 10_000
        await again.link.close()


async def test_clones_may_share_what_their_user_draws_but_never_the_systems_generators() -> None:
    code = (
        "import os, random, secrets, ssl, uuid\n"
        "print(random.random(), random.gauss(), os.urandom(8), secrets.token_hex(), ssl.RAND_bytes(8), uuid.uuid4())"
    )
    drawn = []
    async with local_guest() as guest:
        for seed in ("aa" * 64, "aa" * 64, "bb" * 64):
            answer = await guest.identify(2, randomness="common", seed=seed)
            assert answer["seeded"] == ["random", "ssl"]
            notebook = await Notebook.attach(guest)
            text, _ = await notebook.run(code)
            drawn.append(text.split(" ", 2))
            await notebook.link.close()
    assert drawn[0][:2] == drawn[1][:2]
    assert drawn[0][0] != drawn[2][0]
    assert len({rest for _, _, rest in drawn}) == 3


async def test_a_fork_knows_its_number_and_what_is_cloned_from_it_as_it_is_keeps_it() -> None:
    async with local_guest() as guest:
        for fork, known in ((0, "None"), (3, "3"), (0, "3"), (12, "12")):
            await guest.identify(2, randomness="keep", fork=fork)
            notebook = await Notebook.attach(guest)
            assert (await notebook.run("import os; print(os.environ.get('AGENTVM_FORK'))"))[0] == f"{known}\n"
            await notebook.link.close()


async def test_a_clone_may_go_on_with_the_generators_as_they_were() -> None:
    async with local_guest() as guest:
        notebook = await Notebook.attach(guest)
        await notebook.run("import random; random.seed(1); _ = random.gauss(); state = random.getstate()")
        answer = await guest.identify(2, randomness="keep")
        assert answer["seeded"] == ["ssl"]
        facts = await guest.control.request("facts", timeout=5)
        assert facts["recorded"][-2:][0] == "add_entropy 64"  # type: ignore[index]
        again = await Notebook.attach(guest)
        assert (await again.run("print(random.getstate() == state)"))[0] == "True\n"
        await again.link.close()


async def test_before_its_identity_a_guest_refuses_every_link() -> None:
    async with local_guest(identify=False) as guest:
        with pytest.raises(ProofError, match="no identity yet"):
            await connect(guest.endpoint, key=bytes(32), epoch=0)
        assert (await guest.event("link_refused"))["reason"] == "the VM has no identity yet"


async def test_quiesce_says_goodbye_and_the_host_dials_again(shared: LocalGuest) -> None:
    notebook = await Notebook.attach(shared)
    await shared.control.request("quiesce", timeout=5)
    assert "about to be saved" in (await notebook.link.wait_closed()).message
    again = await Notebook.attach(shared)
    await again.link.close()


async def test_a_later_control_connection_replaces_an_earlier(shared: LocalGuest) -> None:
    later = await ControlChannel.connect(shared.control_path, lambda event: None)
    await later.request("ping", timeout=5)
    with pytest.raises(LinkClosedError):
        await shared.control.request("ping", timeout=5)
    await later.close()
    shared.control = await ControlChannel.connect(shared.control_path, shared.events.append)


@pytest.mark.parametrize(
    ("code", "exit_code", "number"),
    [("import os; os._exit(3)", 3, None), ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", None, 9)],
)
async def test_the_kernels_death_is_reported_on_both_channels(
    code: str, exit_code: int | None, number: int | None
) -> None:
    async with local_guest() as guest:
        notebook = await Notebook.attach(guest)
        await notebook.execute(f"print('last words', flush=True)\nimport time; time.sleep(0.3)\n{code}")
        event = {"event": "kernel_died", "exit_code": exit_code, "signal": number, "oom": False}
        assert await guest.event("kernel_died") == event
        assert json.loads((await notebook.streams["agent"].receive())[0]) == event
        while (await notebook.receive("iopub"))[2].get("text") != "last words\n":
            pass
        assert (await notebook.tell_agent("interrupt"))["ok"] is False
        with pytest.raises(LinkError, match="ipykernel is dead"):
            await guest.control.request("ready", timeout=5)
        with pytest.raises(LinkError, match="ipykernel is dead"):
            await guest.identify(2)
        await notebook.link.close()


def stop(pid: int) -> None:
    """Stop a process; returns when all of its threads have stopped."""
    os.kill(pid, signal.SIGSTOP)
    while any(
        stat.read_text().rpartition(")")[2].split()[0] != "T" for stat in Path(f"/proc/{pid}/task").glob("*/stat")
    ):
        pass


async def test_a_busy_kernel_that_cannot_confirm_is_no_identity() -> None:
    async with local_guest("--confirm-seconds", "0.2") as guest:
        facts = await guest.control.request("facts", timeout=5)
        # As a C function does that does not give up the interpreter lock: nothing in the process can run.
        stop(int(str(facts["ipykernel_pid"])))
        with pytest.raises(LinkError, match=r"did not confirm in 0\.2 s"):
            await guest.identify(2)
        with pytest.raises(ProofError, match="epoch 2 is not this VM's"):
            await connect(guest.endpoint, key=guest.key, epoch=2)


async def test_a_kernel_that_breaks_its_sockets_is_ended() -> None:
    async with local_guest() as guest:
        notebook = await Notebook.attach(guest)
        await notebook.execute(
            "import contextlib, os\n"
            "for fd in os.listdir('/proc/self/fd'):\n"
            "    with contextlib.suppress(OSError):\n"
            "        if 'socket' in os.readlink(f'/proc/self/fd/{fd}'):\n"
            "            os.write(int(fd), b'\\xff' * 100)\n"
        )
        event = await guest.event("kernel_died")
        assert event["signal"] is not None
        notebook.link.abort()


async def test_the_agents_end_leaves_no_process_behind() -> None:
    async with local_guest() as guest:
        facts = await guest.control.request("facts", timeout=5)
        notebook = await Notebook.attach(guest)
        text, _ = await notebook.run("import subprocess; print(subprocess.Popen(['sleep', '600']).pid)")
        notebook.link.abort()
    for pid in (facts["ipykernel_pid"], int(text)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 0)  # type: ignore[arg-type]
            # Whoever inherited it may not have reaped it yet.
            with open(f"/proc/{pid}/stat") as stat:  # noqa: ASYNC230, PTH123
                assert stat.read().split()[2] == "Z"


async def test_a_python_without_ipykernel_is_reported() -> None:
    with pytest.raises(LinkError, match="ipykernel is dead"):
        async with local_guest(python="/bin/false"):
            pass


async def test_a_guest_that_could_take_no_identity_never_becomes_ready(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import ssl\nssl.RAND_add = None\n")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    python.chmod(0o700)
    with pytest.raises(LinkError, match="ipykernel is dead"):
        async with local_guest(python=str(python)):
            pass


async def ended(pid: int) -> None:
    """Return when a process that is no child of this one has ended."""
    loop = asyncio.get_running_loop()
    gone = loop.create_future()
    pidfd = os.pidfd_open(pid)
    loop.add_reader(pidfd, lambda: gone.done() or gone.set_result(None))
    await asyncio.wait_for(gone, 20)
    loop.remove_reader(pidfd)
    os.close(pidfd)


async def test_a_killed_agent_does_not_hang_the_host() -> None:
    async with local_guest() as guest:
        notebook = await Notebook.attach(guest)
        facts = await guest.control.request("facts", timeout=5)
        waiting = asyncio.create_task(ended(int(str(facts["ipykernel_pid"]))))
        await asyncio.sleep(0)
        os.kill(guest.pid, signal.SIGKILL)
        assert isinstance(await asyncio.wait_for(notebook.link.wait_closed(), 5), LinkClosedError)
        with pytest.raises(LinkError):
            await guest.control.request("ping", timeout=5)
        # ipykernel, which nobody could reach any more, ends by itself.
        await waiting


async def until_blocked(pid: int) -> None:
    """Return when a process uses no CPU any more."""
    process, before = psutil.Process(pid), -1.0
    async with asyncio.timeout(60):
        while (now := sum(process.cpu_times()[:2])) > before:
            before = now
            await asyncio.sleep(0.3)


PRINTS = "import resource\nfor n in range(6000): print(n, '.' * 50_000)"
DISPLAYS = "for n in range(2500): print(n); display('.' * 100_000)"


@pytest.mark.parametrize(("code", "count"), [(PRINTS, 6000), (DISPLAYS, 2500)], ids=["prints", "displays"])
async def test_a_flood_that_nobody_reads_waits_and_loses_nothing(notebook: Notebook, code: str, count: int) -> None:
    pid = int((await notebook.run("import os; print(os.getpid())"))[0])
    used = psutil.Process(pid).memory_info().rss
    number = await notebook.execute(code)
    await until_blocked(pid)
    assert psutil.Process(pid).memory_info().rss - used < 150 << 20
    output = await notebook.until_idle(number)
    _, parent, reply, _ = await notebook.receive("shell")
    assert (parent, reply["status"]) == (number, "ok")
    text = "".join(content["text"] for kind, content in output if kind == "stream")
    assert [int(line.split()[0]) for line in text.splitlines()] == list(range(count))
    if code is DISPLAYS:
        assert sum(kind == "display_data" for kind, _ in output) == count


async def test_a_flood_that_waits_can_be_interrupted(notebook: Notebook) -> None:
    pid = int((await notebook.run("import os; print(os.getpid())"))[0])
    number = await notebook.execute("while True: print('.' * 50_000)")
    await until_blocked(pid)
    assert await notebook.tell_agent("interrupt") == {"id": 1, "ok": True}
    output = await notebook.until_idle(number)
    assert ("error", "KeyboardInterrupt") in [(kind, content.get("ename")) for kind, content in output]
    assert (await notebook.receive("shell"))[2]["ename"] == "KeyboardInterrupt"
    assert (await notebook.run("print(6 * 7)"))[0] == "42\n"
