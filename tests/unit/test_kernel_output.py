"""How much output a cell may have, and how fast."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from kernel_harness import (
    TIMEOUT,
    ScriptedSupervisor,
    ask,
    outputs,
    parts_of,
    replied,
    running,
    types,
    within,
)

from agentvm_kernel.firewall.firewall import Firewall
from agentvm_kernel.kernel import output
from agentvm_kernel.kernel.limits import HeldLimits
from agentvm_kernel.kernel.output import OutputGate, Verdict
from agentvm_kernel.kernel.requests import Request
from agentvm_kernel.kernel.wire import ClientMessage, check_guest
from agentvm_kernel.profiles import Limits

MIB = 1 << 20


def supervisor(**limits: int) -> ScriptedSupervisor:
    made = ScriptedSupervisor()
    made.given = Limits.model_validate(limits)
    return made


def texts(messages: list[dict[str, object]], name: str) -> str:
    streams = [m["content"] for m in messages if m["msg_type"] == "stream"]
    return "".join(str(content["text"]) for content in streams if content["name"] == name)  # type: ignore[index]


async def test_what_is_too_much_is_left_out_with_one_note_and_the_cell_goes_on(tmp_path: Path) -> None:
    async with running(tmp_path, supervisor(output_mib=1)) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        msg_id = client.execute("flood()")
        asked = await guest.asked()
        guest.begin(asked)
        for _ in range(10):
            guest.output(asked, "x" * (MIB // 4))
        guest.finish(asked)
        messages = await outputs(client, msg_id)
        assert len(texts(messages, "stdout")) == 3 * MIB // 4
        note = texts(messages, "stderr")
        assert note.count("left out") == 1
        assert "more than 1 MiB, the output limit of profile test; change it with %limits output=SIZE" in note
        assert (await replied(client, msg_id))["content"]["status"] == "ok"  # type: ignore[index]


async def test_the_next_cell_has_its_own_measure(tmp_path: Path) -> None:
    async with running(tmp_path, supervisor(output_mib=1)) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        for _ in range(2):
            msg_id = client.execute("flood()")
            asked = await guest.asked()
            guest.begin(asked)
            guest.output(asked, "x" * MIB)
            guest.output(asked, "y")
            guest.finish(asked)
            assert "left out" in texts(await outputs(client, msg_id), "stderr")


async def test_a_long_message_is_cleaned_aside_and_keeps_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, begun, go_on = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    clean = Firewall.output

    def slow(self, msg_type, content, *rest):  # type: ignore[no-untyped-def]
        if b"long" in content:
            loop.call_soon_threadsafe(begun.set)
            assert go_on.wait(TIMEOUT)
        return clean(self, msg_type, content, *rest)

    monkeypatch.setattr(Firewall, "output", slow)
    async with running(tmp_path, supervisor()) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        msg_id = client.execute("say()")
        asked = await guest.asked()
        guest.begin(asked)
        data = {"text/html": "<p onclick=x>" + "long " * 8000}
        guest.say("iopub", parts_of("display_data", {"data": data, "metadata": {}}, asked.header))
        guest.output(asked, "after")
        guest.finish(asked)
        await within(begun.is_set)
        go_on.set()  # the loop is free
        messages = await outputs(client, msg_id)
        assert types(messages)[-4:] == ["display_data", "stream", "stream", "idle"]
        assert "blocked: a script in an attribute" in texts(messages, "stderr")


PICTURE = '<svg xmlns="http://www.w3.org/2000/svg"><defs><g id="a"/></defs>' + '<use href="#a"/>' * 60 + "</svg>"
PICTURES = {"data": {"image/svg+xml": PICTURE}, "metadata": {}}
TEXT = {"data": {"text/plain": "x"}, "metadata": {}}


@pytest.mark.parametrize(
    ("aside", "kind", "content", "more"),
    [
        (True, "display_data", PICTURES, {}),
        (True, "display_data", TEXT, {"metadata": {"more": "x" * 2000}}),
        (True, "comm_msg", {"comm_id": "c", "data": {}}, {"buffers": [b"x" * 2000]}),
        (True, "stream", {"name": "stdout", "text": "x" * 20_000}, {}),
        (False, "stream", {"name": "stdout", "text": "x" * 2000}, {}),
        (False, "display_data", TEXT, {}),
    ],
)
async def test_what_can_take_long_to_clean_is_cleaned_aside(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    aside: bool,
    kind: str,
    content: dict[str, object],
    more: dict[str, Any],
) -> None:
    cleaned: list[bool] = []
    clean = Firewall.output

    def noted(self, *parts):  # type: ignore[no-untyped-def]
        cleaned.append(threading.current_thread() is not threading.main_thread())
        return clean(self, *parts)

    monkeypatch.setattr(Firewall, "output", noted)
    async with running(tmp_path, supervisor()) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        msg_id = client.execute("say()")
        asked = await guest.asked()
        guest.begin(asked)
        guest.say("iopub", parts_of(kind, content, asked.header, **more))
        guest.finish(asked)
        await outputs(client, msg_id)
    assert cleaned == [aside]


async def test_clients_are_answered_while_a_long_reply_is_cleaned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, begun, go_on = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    clean = Firewall.reply

    def slow(self, msg_type, content, block):  # type: ignore[no-untyped-def]
        if b"svg" in content:
            loop.call_soon_threadsafe(begun.set)
            assert go_on.wait(TIMEOUT)
        return clean(self, msg_type, content, block)

    monkeypatch.setattr(Firewall, "reply", slow)
    async with running(tmp_path, supervisor()) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        msg_id = client.execute("say()", user_expressions={"picture": "picture"})
        asked = await guest.asked()
        guest.begin(asked)
        said = {"picture": {"status": "ok", **PICTURES}}
        guest.reply(asked, {"status": "ok", "execution_count": 1, "payload": [], "user_expressions": said})
        guest.status(asked, "idle")
        await within(begun.is_set)
        assert await replied(client, await ask(client, "connect_request", {}, "control"), "control")
        go_on.set()
        reply = await replied(client, msg_id)
        assert "<img" in str(reply["content"]["user_expressions"]["picture"]["data"])  # type: ignore[index]
        await outputs(client, msg_id)


@pytest.mark.parametrize("kind", ["display_data", "update_display_data", "comm_msg", "clear_output"])
async def test_everything_counts_as_output(tmp_path: Path, kind: str) -> None:
    async with running(tmp_path, supervisor(output_mib=1)) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        msg_id = client.execute("flood()")
        asked = await guest.asked()
        guest.begin(asked)
        guest.say("iopub", parts_of(kind, {"comm_id": "c", "data": {}}, asked.header, buffers=[b"x" * MIB]))
        guest.output(asked, "after")
        guest.finish(asked)
        messages = await outputs(client, msg_id)
        assert kind not in types(messages)
        assert texts(messages, "stdout") == ""
        assert "left out" in texts(messages, "stderr")


async def test_the_error_that_ends_a_flood_is_shown_once(tmp_path: Path) -> None:
    async with running(tmp_path, supervisor(output_mib=1)) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        msg_id = client.execute("flood()")
        asked = await guest.asked()
        guest.begin(asked)
        guest.output(asked, "x" * MIB)
        guest.say("iopub", parts_of("error", {"ename": "E", "evalue": "x" * MIB, "traceback": []}, asked.header))
        for _ in range(3):
            guest.say("iopub", parts_of("error", {"ename": "E", "evalue": "v", "traceback": []}, asked.header))
        guest.finish(asked)
        errors = [m["content"]["evalue"] for m in await outputs(client, msg_id) if m["msg_type"] == "error"]  # type: ignore[index]
        assert errors == ["v"]


async def test_the_rate_is_held_by_not_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await blocked.wait()

    async with running(tmp_path, supervisor(output_mib_per_second=1)) as kernel, kernel.client() as client:
        import asyncio

        blocked = asyncio.Event()
        monkeypatch.setattr(output, "sleep", sleep)
        guest = await kernel.guest()
        client.execute("flood()")
        asked = await guest.asked()
        guest.begin(asked)
        for _ in range(5):
            guest.output(asked, "x" * (2 * MIB))
        await within(lambda: slept)
        waiting = guest.link.streams["iopub"].to_host.qsize()
        assert waiting == 4
        assert slept[0] == pytest.approx(1, abs=0.3)
        # Whatever waits there, an interrupt does not wait behind it.
        await ask(client, "interrupt_request", {}, "control")
        async with asyncio.timeout(TIMEOUT):
            (raw,) = await guest.link.streams["agent"].to_guest.get()
        assert json.loads(raw)["op"] == "interrupt"
        assert guest.link.streams["iopub"].to_host.qsize() == waiting
        blocked.set()


def gate(**limits: int) -> tuple[OutputGate, list[float]]:
    held = HeldLimits()
    held.now = Limits.model_validate(limits)
    clock = [100.0]
    return OutputGate(held, lambda: clock[0]), clock


def message(size: int, kind: str = "stream"):  # type: ignore[no-untyped-def]
    return check_guest("iopub", parts_of(kind, {"text": "x" * size}))


async def test_after_a_rest_a_seconds_worth_passes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(output, "sleep", sleep)
    held, clock = gate(output_mib_per_second=1)
    await held.pace(None, message(MIB // 2))
    await held.pace(None, message(MIB // 4))
    assert slept == []
    await held.pace(None, message(MIB))
    assert slept == [pytest.approx(0.75, abs=0.01)]
    clock[0] += 60
    await held.pace(None, message(MIB // 2))
    assert len(slept) == 1


async def test_what_waits_when_a_cell_is_over_comes_at_once_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(output, "sleep", sleep)
    held, _ = gate(output_mib_per_second=1)
    header = {"msg_type": "execute_request"}
    request = Request("shell", ClientMessage([], header, b"", b"", b"", b"", []), replied=True, backlog=20 * MIB)
    for _ in range(2):
        await held.pace(request, message(10 * MIB))
    assert slept == []
    await held.pace(request, message(10 * MIB))
    assert len(slept) == 1


def test_output_that_belongs_to_no_cell_is_bounded_until_the_next_begins() -> None:
    held, _ = gate(output_mib=1)
    verdicts = [held.judge(None, message(MIB // 2)) for _ in range(3)]
    assert verdicts == [Verdict.SHOWN, Verdict.LEFT_OUT, Verdict.LEFT_OUT]
    held.begin()
    assert held.judge(None, message(MIB // 2)) is Verdict.SHOWN


def test_many_small_messages_count_for_more_than_what_is_in_them() -> None:
    held, _ = gate(output_mib=1)
    request = Request("shell", ClientMessage([], {}, b"", b"", b"", b"", []))
    one = message(1)
    shown = sum(held.judge(request, one) is Verdict.SHOWN for _ in range(4096))
    assert 1000 < shown < 2048


def test_what_a_browser_has_to_draw_counts_more_than_its_bytes() -> None:
    header = {"msg_type": "execute_request"}
    shown = {}
    for kind in ("stream", "update_display_data", "display_data"):
        held, _ = gate(output_mib=1)
        request = Request("shell", ClientMessage([], header, b"", b"", b"", b"", []))
        verdicts = [held.judge(request, message(0, kind)) for _ in range(1000)]
        shown[kind] = verdicts.count(Verdict.SHOWN)
    assert shown == {"stream": 1000, "update_display_data": 1000, "display_data": 31}


@pytest.mark.parametrize(("kind", "paused"), [("stream", False), ("display_data", True), ("comm_msg", True)])
async def test_what_a_browser_has_to_draw_comes_slower(
    monkeypatch: pytest.MonkeyPatch, kind: str, paused: bool
) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(output, "sleep", sleep)
    held, _ = gate(output_mib_per_second=1)
    for _ in range(40):
        await held.pace(None, message(0, kind))
    assert bool(slept) is paused
