"""Secrets are taken out of what comes back: in every usual form, in any pieces, without a change of length."""

from __future__ import annotations

import base64
import html
import itertools
import json
import urllib.parse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentvm_kernel.egress.redaction import Redaction

SECRET = 'sk-live/+a"b<c&d=0123'
MASK = b"agentvm-secret-KEY"


def redaction(*encoded: bytes) -> Redaction:
    return Redaction([(SECRET.encode(), MASK)], encoded)


@pytest.mark.parametrize(
    "form",
    [
        SECRET,
        json.dumps(SECRET),
        json.dumps(SECRET).replace("/", "\\/"),
        html.escape(SECRET),
        urllib.parse.quote(SECRET, safe=""),
        urllib.parse.urlencode({"key": SECRET}),
        base64.b64encode(SECRET.encode()).decode(),
    ],
)
def test_every_usual_form_is_found_and_no_length_changes(form: str) -> None:
    text = f"you sent {form}!".encode()
    clean = redaction().whole(text)
    assert len(clean) == len(text)
    assert MASK in clean
    assert b"0123" not in clean
    assert b"c2st" not in clean


def test_what_holds_a_secret_in_another_form_is_blotted_out() -> None:
    credentials = base64.b64encode(f"x:{SECRET}".encode())
    clean = redaction(credentials).whole(b"Basic " + credentials)
    assert clean.startswith(b"Basic agentvm-secret**")
    assert len(clean) == len(credentials) + 6


@given(before=st.binary(max_size=50), after=st.binary(max_size=50), cuts=st.lists(st.integers(0, 130), max_size=10))
def test_it_is_found_in_a_stream_however_that_is_cut(before: bytes, after: bytes, cuts: list[int]) -> None:
    data = before + SECRET.encode() + after
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    stream = redaction()
    pieces = [stream.feed(data[start:end]) for start, end in itertools.pairwise(places)]
    out = b"".join(pieces) + stream.rest()
    assert out == redaction().whole(data)
    assert SECRET.encode() not in out


def test_nothing_is_held_back_that_cannot_be_the_beginning_of_a_secret() -> None:
    stream = redaction()
    assert stream.feed(b'data: {"text": "hello"}\n\n') == b'data: {"text": "hello"}\n\n'
    assert stream.feed(b"it is sk-li") == b"it is "
    assert stream.feed(b"ly") == b"sk-lily"
    assert stream.rest() == b""


def test_without_secrets_all_passes() -> None:
    stream = Redaction([])
    assert stream.feed(b"anything") == b"anything"
