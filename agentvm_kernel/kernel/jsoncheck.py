"""Is this hostile JSON a well-formed object? Answered without building it in memory.

A parsed document can take fifty times the room of its text (``[[],[],[]…``), so only small ones, and middling ones with
few elements, are parsed, which is fastest; all others are scanned in place.
"""

from __future__ import annotations

import codecs
import json
import re
from typing import Final, NoReturn

PARSE_LIMIT: Final = 256 * 1024
"""Up to this many bytes a document is parsed (at most about 15 MB while it lasts)."""

_PLAIN_LIMIT: Final = 4 * 1024 * 1024
_PLAIN_ELEMENTS: Final = 100_000
_MAX_DEPTH: Final = 200
_MAX_TOKENS: Final = 1_000_000
_CHUNK: Final = 1 << 20

# Before Python 3.11.5 a possessive group with a choice in it matches wrongly (CPython issue 106052): only what has none
# is possessive here, and what is not has a bound, so that the matcher's memory has one.
_SPACE: Final = rb"[ \t\r\n]*+"
_STRING: Final = rb'"[^"\\\x00-\x1f]*+(?:\\["\\/bfnrtu][^"\\\x00-\x1f]*+)*+"'
_BAD_ESCAPE: Final = re.compile(rb"(?<!\\)(?:\\\\)*+\\u(?![0-9a-fA-F]{4})")
_SCALAR: Final = rb"(?:-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?|true|false|null)"
_ROW: Final = 1000
_PLAIN: Final = rb"(?:" + _STRING + rb"|" + _SCALAR + rb")"
_TOKEN: Final = re.compile(
    _SPACE + rb"(?:(?P<string>" + _STRING + rb")|(?P<scalar>" + _SCALAR + rb")|(?P<mark>[{}\[\]:,]))"
)
_COMMA: Final = _SPACE + rb"," + _SPACE


def _listed(item: bytes) -> bytes:
    return item + rb"(?:" + _COMMA + item + rb"){0,%d}" % _ROW


_PAIR: Final = _STRING + _SPACE + rb":" + _SPACE
_FLAT: Final = (
    rb"(?:"
    + _PLAIN
    + (rb"|\{" + _SPACE + rb"(?:" + _listed(_PAIR + _PLAIN) + rb")?" + _SPACE + rb"\}")
    + (rb"|\[" + _SPACE + rb"(?:" + _listed(_PLAIN) + rb")?" + _SPACE + rb"\]")
    + rb")"
)
_ITEMS: Final = re.compile(_SPACE + _listed(_FLAT))
_PAIRS: Final = re.compile(_SPACE + _listed(_PAIR + _FLAT))
_END: Final = re.compile(rb"[ \t\r\n]*+\Z")


def parse_object(data: bytes) -> dict[str, object]:
    """Parse a JSON object that may be hostile.

    Args:
        data: The text; the caller has bounded its length.

    Raises:
        ValueError: it is no JSON object.
    """
    try:
        value = json.loads(data.decode(), parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def check_object(data: bytes) -> None:
    """Make sure that a text of any length is one JSON object, in bounded memory.

    Raises:
        ValueError: it is not, or it has more than a million tokens.
    """
    if data == b"{}":
        return
    if len(data) <= PARSE_LIMIT or is_plain(data):
        parse_object(data)
        return
    _check_utf8(data)
    if bad := _BAD_ESCAPE.search(data):
        raise ValueError(f"not JSON at byte {bad.start()}")
    _scan(data)


def is_plain(data: bytes) -> bool:
    """Whether a document is mostly long strings, such as an image."""
    return len(data) <= _PLAIN_LIMIT and sum(map(data.count, (b"[", b"{", b","))) <= _PLAIN_ELEMENTS


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _check_utf8(data: bytes) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(data), _CHUNK):
        decoder.decode(data[start : start + _CHUNK])
    decoder.decode(b"", final=True)


def _scan(data: bytes) -> None:
    """Walk over the tokens with a stack of the open brackets; ``want`` is what the grammar allows next.

    Rows of plain values, and of flat objects and arrays, count as one token: data of plots is mostly that.
    """
    position, want = 0, "{"
    stack: list[bytes] = []
    for _ in range(_MAX_TOKENS):
        if row := _row(data, position, want, stack):
            position, want = row.end(), ","
            continue
        match = _TOKEN.match(data, position)
        if match is None:
            raise ValueError(f"not JSON at byte {position}")
        position, want = match.end(), _step(match, want, stack)
        if not stack:
            if _END.match(data, position) is None:
                raise ValueError("something follows the object")
            return
    raise ValueError(f"more than {_MAX_TOKENS} tokens")


def _row(data: bytes, position: int, want: str, stack: list[bytes]) -> re.Match[bytes] | None:
    if want.startswith("key"):
        return _PAIRS.match(data, position)
    if want.startswith("value") and stack[-1] == b"[":
        return _ITEMS.match(data, position)
    return None


def _step(match: re.Match[bytes], want: str, stack: list[bytes]) -> str:
    """Return what may follow a token: ``value``, ``value]``, ``key``, ``key}``, ``:`` or ``,`` (a comma or an end)."""
    kind = match.lastgroup
    mark = match["mark"] if kind == "mark" else b""
    if want in {"value", "value]", "{"} and mark in {b"{", b"["}:
        return _open(mark, want, stack)
    if want in {"value", "value]"} and not mark:
        return ","
    if want in {"key", "key}"} and kind == "string":
        return ":"
    if want == ":" and mark == b":":
        return "value"
    if want == "," and mark == b",":
        return "key" if stack[-1] == b"{" else "value"
    if (mark == b"}" and stack[-1:] == [b"{"] and want in {"key}", ","}) or (
        mark == b"]" and stack[-1:] == [b"["] and want in {"value]", ","}
    ):
        stack.pop()
        return ","
    raise ValueError(f"unexpected token at byte {match.start()}")


def _open(mark: bytes, want: str, stack: list[bytes]) -> str:
    if want == "{" and mark != b"{":
        raise ValueError("not an object")
    if len(stack) >= _MAX_DEPTH:
        raise ValueError("nested too deeply")
    stack.append(mark)
    return "key}" if mark == b"{" else "value]"
