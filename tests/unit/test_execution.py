"""Cells that are run without a notebook: in real guests on this host, and in scripted hostile ones."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio
from local_guest import LocalGuest, local_guest

from agentvm_kernel.errors import LinkClosedError, LinkError, VMEndedError
from agentvm_kernel.kernel import execution
from agentvm_kernel.kernel.endings import never
from agentvm_kernel.kernel.execution import CellResult, OutputLimits, Runner, running
from agentvm_kernel.kernel.jsoncheck import PARSE_LIMIT
from agentvm_kernel.link.connection import connect

pytestmark = pytest.mark.asyncio(loop_scope="module")


@asynccontextmanager
async def attached(guest: LocalGuest) -> AsyncIterator[Runner]:
    link = await connect(guest.endpoint, key=guest.key, epoch=guest.epoch, limits=execution.LINK_LIMITS)
    try:
        async with running(link, never()) as runner:
            yield runner
    finally:
        await link.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[LocalGuest]:
    async with local_guest() as guest:
        yield guest


@pytest_asyncio.fixture(loop_scope="module")
async def runner(shared: LocalGuest) -> AsyncIterator[Runner]:
    async with attached(shared) as made:
        yield made


async def test_output_result_and_displays_are_collected(runner: Runner) -> None:
    code = "import sys\nprint('out')\nprint('err', file=sys.stderr)\ndisplay('a'); display('b')\n6 * 7"
    cell = await runner.run(code, timeout=30)
    assert (cell.status, cell.stdout, cell.stderr, cell.result) == ("ok", "out\n", "err\n", "42")
    assert (cell.displays, cell.dropped, cell.error, cell.reason) == (2, 0, None, "")
    assert cell.count is not None
    again = await runner.run("print(_, _ih[-2][:10])", timeout=30)
    assert again.stdout == "42 import sys\n"
    assert again.count == cell.count + 1
    assert again.seconds > 0


async def test_an_exception_is_a_result_and_the_guest_goes_on(runner: Runner) -> None:
    cell = await runner.run("print('before')\n1 / 0", timeout=30)
    assert (cell.status, cell.stdout) == ("error", "before\n")
    assert cell.error
    assert (cell.error.name, cell.error.value) == ("ZeroDivisionError", "division by zero")
    assert "ZeroDivisionError" in cell.error.traceback
    assert (await runner.run("1", timeout=30)).result == "1"


async def test_nobody_can_be_asked_for_input(runner: Runner) -> None:
    cell = await runner.run("input()", timeout=30)
    assert cell.error
    assert cell.error.name == "StdinNotImplementedError"


async def test_what_goes_beyond_the_limit_is_counted_and_said(runner: Runner) -> None:
    cell = await runner.run("print('x' * 150); print('y' * 50)\n'z' * 200", timeout=30, limits=OutputLimits(kept=100))
    assert cell.stdout == f"{'x' * 100}\n[102 more characters were left out]\n"
    assert cell.result == f"'{'z' * 99}\n[102 more characters were left out]\n"
    assert (cell.status, cell.dropped) == ("ok", 204)


async def test_a_megabyte_in_one_piece_is_kept(runner: Runner) -> None:
    cell = await runner.run("print('x' * 1_000_000)", timeout=30)
    assert len(cell.stdout) == 1_000_001


async def test_a_flood_is_cut_off_and_the_guest_goes_on(runner: Runner) -> None:
    code = "while True: print('x' * 10_000, flush=True)"
    cell = await runner.run(code, timeout=60, limits=OutputLimits(kept=1000, taken=1 << 20))
    assert (cell.status, cell.reason) == ("flood", "It put out more than 1 MiB.")
    assert cell.stdout.startswith("x" * 1000 + "\n[")
    assert (await runner.run("2", timeout=30)).result == "2"


async def test_a_cell_that_is_too_slow_is_interrupted_and_the_guest_goes_on(runner: Runner) -> None:
    cell = await runner.run("import time\nprint('begun', flush=True)\ntime.sleep(60)", timeout=1)
    assert (cell.status, cell.stdout, cell.reason) == ("timeout", "begun\n", "It was not done within 1 s.")
    assert cell.error
    assert cell.error.name == "KeyboardInterrupt"
    assert (await runner.run("3", timeout=30)).result == "3"


async def test_a_cell_that_cannot_be_interrupted_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "_GRACE", 0.2)
    code = "import time\nwhile True:\n    try:\n        time.sleep(60)\n    except KeyboardInterrupt:\n        pass"
    async with local_guest() as guest, attached(guest) as runner:
        cell = await runner.run(code, timeout=0.5)
    assert (cell.status, cell.error, cell.count) == ("timeout", None, None)


async def test_the_death_of_the_guests_python_is_a_result_with_its_last_words() -> None:
    code = "import os, time\nprint('last words', flush=True)\ntime.sleep(0.3)\nos._exit(3)"
    async with local_guest() as guest, attached(guest) as runner:
        cell = await runner.run(code, timeout=60)
        assert (cell.status, cell.stdout) == ("died", "last words\n")
        assert cell.reason == "The Python process in the VM ended with exit code 3."
        assert (await runner.run("1", timeout=60)).status == "died"


async def test_what_ended_the_vm_is_the_reason() -> None:
    lost = asyncio.get_running_loop().create_future()
    async with local_guest() as guest:
        link = await connect(guest.endpoint, key=guest.key, epoch=guest.epoch)
        async with running(link, lost) as runner:
            cell = asyncio.create_task(runner.run("import time; time.sleep(60)", timeout=60))
            os.kill(guest.pid, signal.SIGKILL)
            await link.wait_closed()
            lost.set_result(VMEndedError("QEMU was killed."))
            assert (await cell).reason == "QEMU was killed."
        await link.close()


# Scripted guests.


class ScriptedStream:
    """Answers each request of the shell with what the test wants."""

    def __init__(self, link: ScriptedLink) -> None:
        self.link = link
        self.messages: asyncio.Queue[list[bytes] | LinkError] = asyncio.Queue()

    async def send(self, parts: Sequence[bytes]) -> None:
        header = json.loads(parts[0])
        if "msg_id" in header:
            self.link.script(header["msg_id"])
        else:
            self.messages.put_nowait([json.dumps({"id": header["id"], "ok": True}).encode()])

    async def receive(self) -> list[bytes]:
        message = await self.messages.get()
        if isinstance(message, LinkError):
            raise message
        return message


class ScriptedLink:
    """A guest that says, for a cell, only what a test lets it say."""

    def __init__(self, *said: tuple[str, str, object]) -> None:
        self.said = said
        self.streams: dict[str, ScriptedStream] = {}
        self.closed: asyncio.Future[LinkError] = asyncio.get_running_loop().create_future()

    def script(self, request: str) -> None:
        for channel, kind, content in self.said:
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            parent = {"msg_id": "another" if kind.startswith("other:") else request}
            header = {"msg_id": "m", "msg_type": kind.removeprefix("other:")}
            self.streams[channel].messages.put_nowait(
                [json.dumps(header).encode(), json.dumps(parent).encode(), b"{}", body]
            )

    async def open(self, service: str) -> ScriptedStream:
        return self.streams.setdefault(service, ScriptedStream(self))

    def hold(self, *, drain: bool = True) -> AbstractAsyncContextManager[None]:
        raise NotImplementedError

    async def close(self) -> None:
        pass

    async def wait_closed(self) -> LinkError:
        return await asyncio.shield(self.closed)


OK = ("shell", "execute_reply", {"status": "ok", "execution_count": 1})
IDLE = ("iopub", "status", {"execution_state": "idle"})


async def told(*said: tuple[str, str, object], **options: Any) -> CellResult:
    async with running(ScriptedLink(*said), never()) as runner:
        return await runner.run("code", **{"timeout": 30} | options)


async def test_a_cell_is_over_only_with_reply_and_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "_GRACE", 0.01)
    assert (await told(OK, IDLE)).status == "ok"
    assert (await told(OK, timeout=0.1)).status == "timeout"
    assert (await told(IDLE, timeout=0.1)).status == "timeout"


async def test_what_belongs_to_another_cell_or_is_no_message_is_left_out() -> None:
    stream = {"name": "stdout", "text": "mine"}
    cell = await told(
        ("iopub", "other:stream", {"name": "stdout", "text": "theirs"}),
        ("shell", "other:execute_reply", {"status": "error"}),
        ("iopub", "stream", b"[]"),
        ("iopub", "stream", b"{"),
        ("iopub", "execute_reply", {"status": "error"}),
        ("iopub", "stream", {"name": "stdout", "text": 5}),
        ("iopub", "execute_result", {"data": ["x"]}),
        ("iopub", "execute_result", {"data": {"text/plain": ["x"]}}),
        ("iopub", "stream", stream),
        OK,
        IDLE,
    )
    assert (cell.status, cell.stdout, cell.result) == ("ok", "mine", "")


@pytest.mark.parametrize("reply", [{}, {"status": ["ok"]}, {"status": "aborted"}, {"status": "error", "ename": "E"}])
async def test_a_reply_that_does_not_say_ok_is_an_error(reply: dict[str, object]) -> None:
    cell = await told(("shell", "execute_reply", reply | {"execution_count": True}), IDLE)
    assert (cell.status, cell.count) == ("error", None)
    assert cell.error
    assert cell.error.name == reply.get("ename", "")


async def test_an_exceptions_text_is_bounded() -> None:
    error = {"ename": "E" * 100_000, "evalue": "v" * 150_000, "traceback": ["t" * 1000] * 10 + [5]}
    cell = await told(("iopub", "error", error), ("shell", "execute_reply", {"status": "error"}), IDLE)
    assert cell.error
    assert (len(cell.error.name), len(cell.error.value)) == (200, 100_000)
    assert cell.error.traceback.endswith("t\n5")


async def test_content_that_would_take_much_memory_is_counted_only() -> None:
    bomb = b'{"name": "stdout", "text": "t", "x": [' + b"[]," * (PARSE_LIMIT // 2) + b"[]]}"
    cell = await told(("iopub", "execute_result", bomb), ("iopub", "stream", bomb.replace(b"name", b"nome")), OK, IDLE)
    assert (cell.stdout, cell.result, cell.dropped) == ("", "", 2 * len(bomb))


@pytest.mark.parametrize("ascii_only", [True, False])
async def test_of_a_text_that_is_too_long_the_beginning_is_kept(ascii_only: bool) -> None:
    text = 'a"\\\n\u00e4\U0001f600' * (1 << 20)
    content = json.dumps({"name": "stderr", "text": text}, ensure_ascii=ascii_only).encode()
    cell = await told(("iopub", "stream", content), OK, IDLE)
    kept, note = cell.stderr[:-1].rsplit("\n", 1)
    assert len(kept) > 100_000
    assert text.startswith(kept[:-1])
    assert note == f"[{cell.dropped} bytes were left out]"
    assert cell.stdout == ""


async def test_every_text_can_be_written_to_a_file() -> None:
    half = b'"a\\ud800"'
    cell = await told(
        ("iopub", "stream", b'{"name": "stdout", "text": ' + half + b"}"),
        ("iopub", "execute_result", b'{"data": {"text/plain": ' + half + b"}}"),
        ("iopub", "error", b'{"ename": ' + half + b', "evalue": ' + half + b', "traceback": [' + half + b"]}"),
        ("shell", "execute_reply", {"status": "error"}),
        IDLE,
    )
    assert cell.error
    assert {cell.stdout, cell.result, cell.error.name, cell.error.value, cell.error.traceback} == {"a?"}


async def test_messages_of_any_kind_count_as_a_flood() -> None:
    noise = ("iopub", "other:stream", {"text": "x" * 1000})
    cell = await told(*[noise] * 20, timeout=3600, limits=OutputLimits(taken=10_000))
    assert cell.status == "flood"


async def test_what_arrives_just_after_the_news_of_the_death_is_kept() -> None:
    link = ScriptedLink(("iopub", "stream", {"name": "stdout", "text": "last words"}))
    death = json.dumps({"event": "kernel_died", "exit_code": 1}).encode()
    async with running(link, never()) as runner:
        link.streams["agent"].messages.put_nowait([death])
        cell_started = asyncio.get_running_loop().create_future()
        say, link.script = link.script, cell_started.set_result  # type: ignore[method-assign]
        task = asyncio.create_task(runner.run("code", timeout=30))
        number = await cell_started
        for _ in range(20):
            await asyncio.sleep(0)
        say(number)
        cell = await task
    assert (cell.status, cell.stdout) == ("died", "last words")


async def test_a_guest_that_closes_a_stream_has_died(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "_BETTER_REASON", 0.01)
    link = ScriptedLink()
    async with running(link, never()) as runner:
        link.streams["iopub"].messages.put_nowait(LinkClosedError("The guest closed stream iopub."))
        cell = await runner.run("code", timeout=30)
    assert (cell.status, cell.reason) == ("died", "The guest closed stream iopub.")
