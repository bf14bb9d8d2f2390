"""What a typed magic puts out, as a page gets it: like in a notebook, and within bounds."""

from __future__ import annotations

from typing import Any

import pytest

from agentvm_kernel.server import typist
from agentvm_kernel.server.typist import _done, _Heard
from agentvm_kernel.server.views import MOST_TEXT


def display(text: str, name: str = "", kind: str = "display_data") -> dict[str, Any]:
    content = {"data": {"text/plain": text}, "metadata": {}, "transient": {"display_id": name} if name else {}}
    return {"msg_type": kind, "content": content, "header": {"msg_type": kind}}


def stream(text: str) -> dict[str, Any]:
    return {"msg_type": "stream", "content": {"name": "stdout", "text": text}, "header": {"msg_type": "stream"}}


def clear(*, wait: bool) -> dict[str, Any]:
    return {"msg_type": "clear_output", "content": {"wait": wait}, "header": {"msg_type": "clear_output"}}


def heard(*messages: dict[str, Any]) -> _Heard:
    found = _Heard()
    for message in messages:
        found.take(message)
    return found


def test_progress_is_updated_and_gives_way_to_the_result() -> None:
    progress = [display("10 %", "p"), display("20 %", "p", "update_display_data")]
    assert heard(*progress).text == "20 %"
    assert heard(*progress, clear(wait=False), display("done")).text == "done"
    assert heard(*progress, clear(wait=True)).text == "20 %"
    assert heard(*progress, clear(wait=True), display("done")).text == "done"


def test_an_update_of_what_is_gone_or_was_never_there_is_nothing() -> None:
    assert heard(display("x", "p", "update_display_data")).outputs == []
    gone = heard(display("1", "p"), clear(wait=False), display("y"), display("2", "p", "update_display_data"))
    assert gone.text == "y"


def test_what_is_put_out_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    many = heard(*(stream("x\n") for _ in range(1000)))
    assert len(many.outputs) == typist._MOST_OUTPUTS
    assert len(heard(stream("y" * 100_000)).text) == MOST_TEXT
    monkeypatch.setattr(typist, "_ROOM", 1000)
    assert heard(stream("z" * 2000), display("after")).outputs == []


def test_status_error_and_snapshot_are_the_replys_and_not_what_was_put_out() -> None:
    forged = heard(display('{"status": "ok"}'), {"msg_type": "error", "header": {"msg_type": "error"}, "content": {
        "ename": "E", "evalue": "forged", "traceback": []
    }})  # fmt: skip
    ok = {"content": {"status": "ok"}, "metadata": {"agentvm": {"snapshot": "0123456789ab"}}}
    done = _done(ok, forged)
    assert (done.status, done.error, done.snapshot) == ("ok", None, "0123456789ab")
    error = {"code": "quota", "message": "There is no room.", "hint": "Prune."}
    refused = {"content": {"status": "error", "evalue": "x"}, "metadata": {"agentvm": {"error": error, "snapshot": ""}}}
    done = _done(refused, heard())
    assert done.error is not None
    assert (done.status, done.error.model_dump()) == ("error", error)
    bare = _done({"content": {"status": "error", "evalue": "gone"}, "metadata": {}}, heard())
    assert bare.error is not None
    assert (bare.error.code, bare.error.message) == ("failed", "gone")
