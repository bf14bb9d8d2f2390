"""Recordings: what was recorded is replayed, nothing else; credentials are not in them; files are distrusted."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentvm_kernel.egress.cassette import LARGEST_BODY, Cassette, Request, Response
from agentvm_kernel.errors import AgentVMError, CassetteError, HostError


def request(path: str = "/", body: bytes = b"", method: str = "GET", *headers: tuple[str, str]) -> Request:
    return Request(method, f"https://api.example.org{path}", list(headers), body)


def response(body: bytes = b"hello", *headers: tuple[str, str]) -> Response:
    return Response(200, "OK", list(headers), body)


def recorded(folder: Path, *exchanges: tuple[Request, Response]) -> Path:
    cassette = Cassette.record(folder, "demo")
    for asked, answered in exchanges:
        cassette.add(asked, answered)
    cassette.close()
    return cassette.path


def test_what_was_recorded_is_answered_byte_for_byte(tmp_path: Path) -> None:
    body = bytes(range(256))
    path = recorded(
        tmp_path,
        (request("/a"), response(body, ("Content-Type", "x/y"))),
        (request("/a", "größer".encode(), "POST"), response("schön".encode())),
    )
    assert path.name == "demo.cassette.jsonl"
    assert path.stat().st_mode & 0o777 == 0o600
    cassette = Cassette.replay(tmp_path, "demo")
    assert not cassette.recording
    assert cassette.answer(request("/a", "größer".encode(), "POST")) == response("schön".encode())
    assert cassette.answer(request("/a")) == response(body, ("Content-Type", "x/y"))
    assert cassette.exchanges == 0


def test_the_same_request_gets_its_answers_in_order_and_no_more(tmp_path: Path) -> None:
    recorded(tmp_path, (request(), response(b"1")), (request(), response(b"2")))
    cassette = Cassette.replay(tmp_path, "demo")
    assert [cassette.answer(request()).body for _ in range(2)] == [b"1", b"2"]
    with pytest.raises(CassetteError, match="not recorded so often"):
        cassette.answer(request())


@pytest.mark.parametrize("other", [request("/b"), request("/?"), request("/", b"x"), request(method="HEAD")])
def test_what_was_not_recorded_fails_and_is_named(tmp_path: Path, other: Request) -> None:
    recorded(tmp_path, (request(), response()))
    with pytest.raises(CassetteError, match=f"{other.method} https://api.example.org.*not recorded") as caught:
        Cassette.replay(tmp_path, "demo").answer(other)
    assert "Record anew" in caught.value.hint


def test_credentials_are_not_written_and_make_no_difference(tmp_path: Path) -> None:
    names = [
        "Authorization",
        "cookie",
        "X-Api-Key",
        "api-key",
        "Private-Token",
        "X-Goog-Api-Key",
        "Proxy-Authorization",
    ]
    private = [(name, "hunter2") for name in names]
    asked = request("/?q=1&api_key=hunter2&token=hunter2#x", b"", "GET", *private, ("Accept", "text/plain"))
    path = recorded(tmp_path, (asked, response(b"", ("Set-Cookie", "sid=hunter2; Path=/"))))
    text = path.read_text()
    assert "hunter2" not in text
    assert "text/plain" in text
    again = Cassette.replay(tmp_path, "demo").answer(request("/?q=1&api_key=other&token=more#x"))
    assert again.headers == [("Set-Cookie", "sid=REDACTED; Path=/")]


def test_headers_that_frame_a_body_are_not_kept_but_for_head(tmp_path: Path) -> None:
    framing = [("Content-Length", "5"), ("Transfer-Encoding", "chunked"), ("Connection", "close"), ("ETag", "x")]
    recorded(tmp_path, (request(), response(b"hello", *framing)), (request(method="HEAD"), response(b"", *framing)))
    cassette = Cassette.replay(tmp_path, "demo")
    assert cassette.answer(request()).headers == [("ETag", "x")]
    assert cassette.answer(request(method="HEAD")).headers == [("Content-Length", "5"), ("ETag", "x")]


def test_a_recording_is_never_overwritten(tmp_path: Path) -> None:
    path = recorded(tmp_path, (request(), response()))
    before = path.read_bytes()
    with pytest.raises(CassetteError, match="already"):
        Cassette.record(tmp_path, "demo")
    assert path.read_bytes() == before


def test_after_its_end_nothing_is_added(tmp_path: Path) -> None:
    cassette = Cassette.record(tmp_path, "demo")
    cassette.close()
    cassette.close()
    with pytest.raises(CassetteError, match="ended"):
        cassette.add(request(), response())


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a.b", "-x", "x" * 65, "a\n"])
def test_names_are_plain(tmp_path: Path, name: str) -> None:
    for begin in (Cassette.record, Cassette.replay):
        with pytest.raises(CassetteError, match="no name"):
            begin(tmp_path, name)


def test_a_missing_recording_or_folder_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(CassetteError, match="There is no recording"):
        Cassette.replay(tmp_path, "demo")
    with pytest.raises(CassetteError, match="no absolute path of a folder that is there"):
        Cassette.record(tmp_path / "gone", "demo")
    with pytest.raises(HostError):  # where nothing can be made
        Cassette.record(Path("/proc"), "demo")


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cassette = Cassette.record(tmp_path, "demo")
    cassette.add(request(), response())
    write = os.write
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:10]))
        with pytest.raises(CassetteError, match="no room"):
            cassette.add(request("/b"), response())
    cassette.close()
    assert Cassette.replay(tmp_path, "demo").exchanges == 1


HEAD = {"format": "agentvm-cassette", "version": 1}
PART: dict[str, Any] = {"headers": [], "body": "", "encoding": "utf-8"}
GOOD = {
    "request": {"method": "GET", "url": "https://a.example/", **PART},
    "response": {"status": 200, "reason": "OK", **PART},
}


def changed(part: str, **fields: object) -> dict[str, Any]:
    return GOOD | {part: GOOD[part] | fields}


def write(folder: Path, *lines: object) -> None:
    text = "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
    (folder / "demo.cassette.jsonl").write_text(text)


def test_the_format_is_as_documented(tmp_path: Path) -> None:
    write(tmp_path, HEAD, GOOD)
    assert Cassette.replay(tmp_path, "demo").exchanges == 1


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "[]",
        "[" * 100_000,
        GOOD | {"more": 1},
        changed("request", method="get it"),
        changed("request", url="file:///etc/passwd"),
        changed("request", url="https://a.example/\r\nHost: b"),
        changed("request", encoding="pickle"),
        changed("request", encoding="base64", body="!"),
        changed("response", status=101),
        changed("response", status="200"),
        changed("response", reason="OK\r\nSet-Cookie: a=b"),
        changed("response", headers=[["A", "b\r\nC: d"]]),
        changed("response", headers=[["A:", "b"]]),
        changed("response", headers=[["A", "b"]] * 257),
        changed("response", body="x" * (LARGEST_BODY + 1)),
    ],
)
def test_a_file_that_somebody_else_made_cannot_say_what_the_format_does_not_allow(tmp_path: Path, bad: object) -> None:
    write(tmp_path, HEAD, GOOD, bad)
    with pytest.raises(CassetteError, match=r"demo\.cassette\.jsonl:3"):
        Cassette.replay(tmp_path, "demo")


@pytest.mark.parametrize("head", ["", "{}", {"format": "other", "version": 1}, HEAD | {"version": 2}, HEAD | {"x": 1}])
def test_another_format_or_version_is_refused(tmp_path: Path, head: object) -> None:
    write(tmp_path, head, GOOD)
    with pytest.raises(CassetteError, match="demo"):
        Cassette.replay(tmp_path, "demo")


def test_a_recording_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = recorded(tmp_path, (request(), response()))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CassetteError, match="cut off"):
        Cassette.replay(tmp_path, "demo")


def test_only_a_plain_file_is_read(tmp_path: Path) -> None:
    path = recorded(tmp_path, (request(), response()))
    moved = path.rename(tmp_path / "moved")
    path.symlink_to(moved)
    with pytest.raises(HostError):
        Cassette.replay(tmp_path, "demo")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CassetteError, match="no file"):
        Cassette.replay(tmp_path, "demo")


@given(content=st.binary(max_size=300))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_end_in_one_of_our_errors(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "demo.cassette.jsonl").write_bytes(json.dumps(HEAD).encode() + b"\n" + content + b"\n")
    with pytest.raises(AgentVMError):
        Cassette.replay(tmp_path, "demo")
