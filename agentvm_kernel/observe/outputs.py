"""What a cell has shown, as a digest: of the messages that went to the browser, and of what a notebook keeps of them.

Both give the same digest for the same outputs, so that a notebook's file can be held against the audit log. Streams of
one name that follow each other count as one, as notebooks keep them; a display that is updated counts as what it is at
last; what is cleared does not count. Execution counts and metadata are left out, for front ends change them.

Of text in which a carriage return or a backspace takes back what stood there, and of very many outputs, there is no
digest: front ends keep different parts of the first.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

_MOST: Final = 10_000
_DISPLAYS: Final = frozenset({"display_data", "execute_result"})


class Shown:
    """Follows the outputs of one cell."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._outputs: list[bytes] = []
        self._names: dict[str, list[int]] = {}
        self._stream = ""
        self._text = hashlib.sha256()
        self._is_clearing = False
        self._is_known = True

    @property
    def digest(self) -> str:
        """SHA-256 of all that is shown now, in hexadecimal; empty if nobody can tell."""
        if not self._is_known:
            return ""
        return hashlib.sha256(b"".join([*self._outputs, *self._open_stream()])).hexdigest()

    def take(self, kind: str, content: Mapping[str, Any]) -> None:
        """Take a message, or a notebook's output.

        Args:
            kind: The message's type, or the output's; what is no output is left out.
            content: What is in it.
        """
        if kind == "clear_output":
            self._is_clearing = True
            if not content.get("wait"):
                self._clear()
        elif kind == "update_display_data":
            for place in self._names.get(_display_id(content), ()):
                self._outputs[place] = _digest_of("display", content)
        elif kind == "stream":
            self._take_text(str(content.get("name")), _joined(content.get("text")))
        elif kind in _DISPLAYS or kind == "error":
            self._clear()
            self._close_stream()
            if kind in _DISPLAYS and (name := _display_id(content)):
                self._names.setdefault(name, []).append(len(self._outputs))
            self._add(_digest_of("error" if kind == "error" else "display", content))

    def _take_text(self, name: str, text: str) -> None:
        self._clear()
        if "\r" in text or "\b" in text:
            self._is_known = False
        if name != self._stream:
            self._close_stream()
            self._stream, self._text = name, hashlib.sha256(f"stream {name}\n".encode())
        self._text.update(text.encode(errors="replace"))

    def _open_stream(self) -> list[bytes]:
        return [self._text.digest()] if self._stream else []

    def _close_stream(self) -> None:
        for one in self._open_stream():
            self._add(one)
        self._stream = ""

    def _add(self, one: bytes) -> None:
        if len(self._outputs) < _MOST:
            self._outputs.append(one)
        else:
            self._is_known = False

    def _clear(self) -> None:
        if self._is_clearing:
            self._begin()


def digest_of_outputs(outputs: Iterable[Mapping[str, Any]]) -> str:
    """Return the digest of a cell's outputs as a notebook keeps them; empty if nobody can tell."""
    shown = Shown()
    for output in outputs:
        shown.take(str(output.get("output_type")), output)
    return shown.digest


def _digest_of(kind: str, content: Mapping[str, Any]) -> bytes:
    if kind == "error":
        value: Any = [content.get("ename"), content.get("evalue"), content.get("traceback")]
    else:
        data = content.get("data")
        value = {mime: _canonical(mime, one) for mime, one in data.items()} if isinstance(data, dict) else {}
    text = json.dumps([kind, value], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).digest()


def _canonical(mime: str, value: Any) -> Any:
    """Return a value as it is in messages: notebooks keep texts as lists of lines, too."""
    if mime.endswith("json"):
        return value
    if not isinstance(value, list | str):
        return value
    text = _joined(value)
    return "".join(text.split()) if mime.startswith("image/") and mime != "image/svg+xml" else text


def _joined(value: Any) -> str:
    return "".join(map(str, value)) if isinstance(value, list) else str(value)


def _display_id(content: Mapping[str, Any]) -> str:
    transient = content.get("transient")
    return str(transient.get("display_id") or "") if isinstance(transient, dict) else ""
