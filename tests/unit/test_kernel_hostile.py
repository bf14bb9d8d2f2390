"""A guest that lies: what it may not say does not reach a client, and what it may, still does."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from unittest.mock import ANY

import pytest
from kernel_harness import TIMEOUT, outputs, parts_of, running, types

from agentvm_kernel.supervisor.execution_messages import digest_of

PARENT = {"msg_id": "p"}


def bad_iopub() -> list[tuple[str, list[bytes]]]:
    good = parts_of("stream", {"name": "stdout", "text": "x"})
    deep = b"[" * 100_000
    return [
        ("no parts", []),
        ("too few parts", good[:3]),
        ("random bytes", [b"\xff\x00\x80", *good[1:]]),
        ("header is a list", [b"[]", *good[1:]]),
        ("header without type", [b"{}", *good[1:]]),
        ("header type is a number", [b'{"msg_type": 5}', *good[1:]]),
        ("header is deep", [deep, *good[1:]]),
        ("header is huge", [b'{"msg_type": "stream", "x": "' + b"y" * 70_000 + b'"}', *good[1:]]),
        ("header has a huge number", [b'{"msg_type": "stream", "execution_count": ' + b"9" * 5000 + b"}", *good[1:]]),
        ("header has NaN", [b'{"msg_type": "stream", "execution_count": NaN}', *good[1:]]),
        ("parent is a string", [good[0], b'"x"', *good[2:]]),
        ("metadata is null", [*good[:2], b"null", good[3]]),
        ("metadata is huge", [*good[:2], b'{"x": "' + b"y" * (5 << 20) + b'"}', good[3]]),
        ("content is a list", [*good[:3], b"[]"]),
        ("content is cut", [*good[:3], b'{"a": ']),
        ("content is no UTF-8", [*good[:3], b'{"a": "\xff"}']),
        ("content is deep", [*good[:3], b'{"a": ' + deep]),
        ("content is large and no JSON", [*good[:3], b'{"a": "' + b"y" * (1 << 20) + b'"']),
        ("unknown type", parts_of("rm_rf", {})),
        ("a reply on iopub", parts_of("execute_reply", {"status": "ok"})),
        ("a welcome, which is the host's to give", parts_of("iopub_welcome", {"subscription": ""})),
        ("a shutdown, which is the host's to announce", parts_of("shutdown_reply", {"restart": True})),
        ("a status that does not exist", parts_of("status", {"execution_state": "dead"})),
        ("a status that is a list", parts_of("status", {"execution_state": ["idle"]})),
    ]


@pytest.mark.parametrize(("name", "parts"), bad_iopub(), ids=[name for name, _ in bad_iopub()])
async def test_what_may_not_be_on_iopub_is_dropped_and_the_rest_goes_on(
    tmp_path: Path, name: str, parts: list[bytes]
) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        guest.say("iopub", parts)
        guest.say("iopub", parts_of("stream", {"name": "stdout", "text": "after"}))
        message = await client.get_iopub_msg(timeout=TIMEOUT)
    assert message["content"].get("text") == "after", name


async def test_replies_that_were_not_asked_for_are_dropped(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        client.execute("x")
        asked = await guest.asked()
        guest.say("shell", parts_of("execute_reply", {"status": "ok", "execution_count": 0}, {"msg_id": "unknown"}))
        guest.say("shell", parts_of("execute_reply", {"status": "ok", "execution_count": 1}))
        guest.say("shell", parts_of("complete_reply", {"status": "ok", "execution_count": 2}, asked.header))
        guest.say("control", parts_of("execute_reply", {"status": "ok", "execution_count": 3}, asked.header))
        guest.say("shell", parts_of("shutdown_reply", {"status": "ok", "execution_count": 4}, asked.header))
        guest.reply(asked, {"status": "ok", "execution_count": 5})
        guest.reply(asked, {"status": "ok", "execution_count": 6})
        client.execute("y")
        guest.reply(await guest.asked(), {"status": "ok", "execution_count": 7})
        replies = [(await client.get_shell_msg(timeout=TIMEOUT))["content"]["execution_count"] for _ in range(2)]
    assert replies == [5, 7]


async def test_the_guest_cannot_forge_what_the_host_knows_about_a_run(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        client.execute("x")
        asked = await guest.asked()
        guest.status(asked, "busy")
        lie = {"agentvm": {"run": 99, "vm": "other", "code": "other"}, "started": "never", "mine": 1}
        guest.say("shell", parts_of("execute_reply", {"status": "ok"}, asked.header, lie))
        metadata = (await client.get_shell_msg(timeout=TIMEOUT))["metadata"]
    assert datetime.fromisoformat(metadata.pop("started")).tzinfo is not None
    assert metadata == {"agentvm": {"run": 1, "code": digest_of("x"), "vm": "vm-1", "snapshot": "", "facts": ANY}}


async def test_input_is_not_asked_where_it_is_not_allowed(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        client.execute("first", allow_stdin=False)
        refused = await guest.asked()
        guest.say("stdin", parts_of("input_request", {"prompt": "password:"}, refused.header))
        guest.say("stdin", parts_of("input_request", {"prompt": "password:"}))
        client.execute("second", allow_stdin=True)
        allowed = await guest.asked()
        for number in range(200):
            guest.say("stdin", parts_of("input_request", {"prompt": str(number), "password": False}, allowed.header))
        guest.reply(allowed, {"status": "ok"})
        await client.get_shell_msg(timeout=TIMEOUT)
        guest.say("stdin", parts_of("input_request", {"prompt": "after the reply"}, allowed.header))
        prompts = [(await client.get_stdin_msg(timeout=TIMEOUT))["content"]["prompt"] for _ in range(64)]
        client.execute("third", allow_stdin=True)
        last = await guest.asked()
        guest.say("stdin", parts_of("input_request", {"prompt": "third"}, last.header))
        assert (await client.get_stdin_msg(timeout=TIMEOUT))["content"]["prompt"] == "[VM] third"
    assert prompts == [f"[VM] {number}" for number in range(64)]


async def test_large_contents_pass_byte_for_byte(tmp_path: Path) -> None:
    text = "ä\n\U0001f600" * 400_000
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        guest.say("iopub", parts_of("stream", {"name": "stdout", "text": text}))
        message = await client.get_iopub_msg(timeout=TIMEOUT)
    assert message["content"]["text"] == text


async def test_a_flood_of_bad_messages_is_counted_and_its_log_bounded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        for number in range(1000):
            guest.say("iopub", parts_of(f"made up {number}", {}))
        guest.say("iopub", parts_of("stream", {"name": "stdout", "text": "after"}))
        await client.get_iopub_msg(timeout=TIMEOUT)
        side = kernel.guest_side
        assert side.dropped.total() == 1000
    assert len([record for record in caplog.records if "made up" in record.getMessage()]) <= 100


@pytest.mark.parametrize(
    "message",
    [b"no json", b"[1]", json.dumps({"event": "x" * 70_000}).encode()],
    ids=["no JSON", "no object", "too long"],
)
async def test_nonsense_of_the_agent_ends_the_vm_with_a_protocol_error(tmp_path: Path, message: bytes) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        msg_id = client.execute("x")
        await guest.asked()
        guest.say("agent", [message])
        said = await outputs(client, msg_id)
    assert types(said) == ["busy", "error", "idle"]
    assert said[1]["content"]["ename"] == "ProtocolError"
