"""What a typed magic puts out, as a page gets it: like in a notebook, and within bounds."""

from __future__ import annotations

from typing import Any

import pytest

from agentvm_kernel.errors import ApiError
from agentvm_kernel.kernel.answers import OF_HOST
from agentvm_kernel.server import typist
from agentvm_kernel.server.errors import status_of
from agentvm_kernel.server.typist import _done, _Heard
from agentvm_kernel.server.views import MOST_TEXT


def display(text: str, kind: str = "display_data", **metadata: object) -> dict[str, Any]:
    content = {"data": {"text/plain": text}, "metadata": {}, "transient": {}}
    return {"msg_type": kind, "content": content, "header": {"msg_type": kind}, "metadata": metadata or OF_HOST}


def heard(*messages: dict[str, Any]) -> _Heard:
    found = _Heard()
    for message in messages:
        found.take(message)
    return found


def test_only_what_the_host_shows_is_heard() -> None:
    others = [display("x", agentvm=said) for said in (None, True, {}, {"host": False}, {"host": True, "more": 1})]
    more = [display("x", other={"host": True}), display("x", "update_display_data"), display("x", "clear_output")]
    found = heard(*others, display("mine\n"), *more)
    assert (found.text, len(found.outputs)) == ("mine", 1)


def test_what_is_put_out_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(heard(display("y" * 100_000)).text) == MOST_TEXT
    monkeypatch.setattr(typist, "_ROOM", 1000)
    assert heard(display("z" * 2000), display("after")).outputs == []


def test_status_error_and_snapshot_are_the_replys_and_not_what_was_put_out() -> None:
    forged = heard(display('{"status": "error"}'))
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
    assert status_of(ApiError(bare.error.code, bare.error.message)) == 409, "as where it was interrupted"
