"""Signatures, headers, and the check of hostile JSON."""

from __future__ import annotations

import json
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jupyter_client.session import Session

from agentvm_kernel.kernel import jsoncheck
from agentvm_kernel.kernel.jsoncheck import check_object
from agentvm_kernel.kernel.wire import Wire, WireError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def scanned(data: bytes) -> None:
    """Check with the scanner, however small the document is."""
    with mock.patch.object(jsoncheck, "PARSE_LIMIT", -1), mock.patch.object(jsoncheck, "_PLAIN_LIMIT", -1):
        check_object(data)


@settings(deadline=None)
@given(st.dictionaries(st.text(), VALUES, max_size=6), st.sampled_from([None, 2]), st.booleans())
def test_the_scanner_accepts_every_object(value: dict[str, object], indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    try:
        data = text.encode()
    except UnicodeEncodeError:
        return  # a lone surrogate, which JSON over UTF-8 cannot carry
    scanned(data)


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=5), VALUES, max_size=6), st.data())
def test_the_scanner_agrees_with_the_parser_on_damaged_documents(value: dict[str, object], data: st.DataObject) -> None:
    document = bytearray(json.dumps(value).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(document) - 1))
        if data.draw(st.booleans()):
            document[at] = data.draw(st.sampled_from(b'{}[]",:0aE.-\\ \n\x00\xff'))
        else:
            del document[at : at + data.draw(st.integers(1, 3))]
            document = document or bytearray(b"x")
    assert accepted(scanned, bytes(document)) == accepted(jsoncheck.parse_object, bytes(document))


def accepted(check, document: bytes) -> bool:  # type: ignore[no-untyped-def]
    try:
        check(document)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b"{",
        b"1",
        b'"a"',
        b'{"a"}',
        b'{"a":}',
        b'{"a":1,}',
        b"{,}",
        b'{"a":[1,]}',
        b'{"a":[,1]}',
        b'{"a":1}x',
        b'{"a":NaN}',
        b'{"a":01}',
        b'{"a":"\x01"}',
        b'{"a":"\xff"}',
        b'{"a":[1 2]}',
        b'{"a":[}',
        b'{"a":{]}',
        b"{1:2}",
        b'{"a":"\\x"}',
        b'{"a":' + b"[" * 300 + b"]" * 300 + b"}",
    ],
)
def test_the_scanner_refuses_what_is_no_object(document: bytes) -> None:
    assert not accepted(scanned, document)


def test_a_document_of_too_many_tokens_is_refused_without_being_built() -> None:
    nested = b'{"a":[' + b"[[[]]]," * 400_000 + b"[]]}"
    with pytest.raises(ValueError, match="tokens"):
        check_object(nested)


def test_data_of_plots_is_accepted_however_long() -> None:
    check_object(json.dumps({"y": list(range(1_000_000)), "points": [{"x": 1, "y": 2}] * 100_000}).encode())


def frames(wire: Wire, **changes: object) -> list[bytes]:
    _, packed = wire.pack("execute_request", {"code": "1"})
    return [b"identity", *packed]


def test_a_signed_message_is_taken_once() -> None:
    wire = Wire(Session(key=b"k"))
    message = frames(wire)
    assert wire.unpack(message).msg_type == "execute_request"
    with pytest.raises(WireError, match="repeated"):
        wire.unpack(message)


def test_a_message_of_another_key_is_refused() -> None:
    with pytest.raises(WireError, match="signature"):
        Wire(Session(key=b"k")).unpack(frames(Wire(Session(key=b"other"))))


def test_without_a_key_nothing_is_signed() -> None:
    wire = Wire(Session(key=b""))
    message = frames(wire)
    assert message[2] == b""
    assert wire.unpack(message).msg_id


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda m: [part for part in m if part != b"<IDS|MSG>"], "delimiter"),
        (lambda m: m[:5], "too few"),
        (lambda m: [*m[:3], b"[]", *m[4:]], "header"),
        (lambda m: [*m[:3], b'{"msg_id": 1, "msg_type": "x"}', *m[4:]], "msg_id"),
    ],
)
def test_a_malformed_message_is_refused(damage, reason: str) -> None:  # type: ignore[no-untyped-def]
    wire = Wire(Session(key=b""))
    with pytest.raises(WireError, match=reason):
        wire.unpack(damage(frames(wire)))


def test_only_so_many_signatures_are_remembered() -> None:
    wire = Wire(Session(key=b"k"))
    with mock.patch("agentvm_kernel.kernel.wire._REMEMBERED_SIGNATURES", 10):
        for _ in range(50):
            wire.unpack(frames(wire))
        assert len(wire._seen) == 10
