"""What a guest writes, made harmless for a terminal: plain text and colours pass, everything else is dropped.

A terminal obeys what it is shown: it can be made to type, to copy, to rename its window, to hide text. Sequences are
told apart as in ECMA-48: a control sequence (CSI) has parameters and a final character, a control string (OSC, DCS and
others) goes on to its terminator.
"""

from __future__ import annotations

import codecs
import enum
import re
import unicodedata
from typing import Final

RESET: Final = "\x1b[0m"
_MAX_PARAMETERS: Final = 64
_MAX_STRING: Final = 4096
_COLOURS: Final = re.compile(r"[0-9;:]*")
_TEXT_CONTROLS: Final = "\n\t\r"
_STRING_STARTS: Final = "]PX^_"
_STRING_ENDS: Final = "\x07\x18\x1a\n"
_PLAIN: Final = re.compile(r"[\n\t\r -~]*")
# Controls, format characters (some change the order in which what follows is shown), line and paragraph separators.
_HIDDEN: Final = frozenset({"Cc", "Cf", "Zl", "Zp"})
_JOINERS: Final = "\u200c\u200d"


class _State(enum.Enum):
    """Where in a sequence the filter is."""

    TEXT = enum.auto()
    ESCAPE = enum.auto()
    CONTROL = enum.auto()
    STRING = enum.auto()


class TerminalFilter:
    """Filters one stream, however it is cut into pieces; holds a bounded amount of it."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._state = _State.TEXT
        self._sequence = ""
        self._length = 0
        self._coloured = False

    def feed(self, data: bytes) -> bytes:
        """Return what may be shown of a piece."""
        text = self._decoder.decode(data)
        shown = []
        place = 0
        while place < len(text):
            if self._state is _State.TEXT and (plain := _PLAIN.match(text, place)) and plain.group():
                shown.append(plain.group())
                place = plain.end()
            else:
                shown.append(self._take(text[place]))
                place += 1
        return "".join(shown).encode()

    def end(self) -> bytes:
        """Return what has to be shown at the end: colours do not outlive what set them."""
        return (RESET if self._coloured else "").encode()

    def _take(self, char: str) -> str:
        if self._state is _State.STRING:
            self._length += 1
            if char in _STRING_ENDS or self._length > _MAX_STRING:
                self._state = _State.TEXT
                return char if char == "\n" else ""
            if char == "\x1b":
                self._state = _State.ESCAPE
            return ""
        if char == "\x1b":
            self._state = _State.ESCAPE
            return ""
        if self._state is _State.ESCAPE:
            return self._begin(char)
        if self._state is _State.CONTROL:
            return self._control(char)
        return "" if unicodedata.category(char) in _HIDDEN and char not in _JOINERS else char

    def _begin(self, char: str) -> str:
        """Take what follows an escape character."""
        self._sequence, self._length = "", 0
        if char == "[":
            self._state = _State.CONTROL
        elif char in _STRING_STARTS:
            self._state = _State.STRING
        elif not " " <= char <= "/":  # those lead on to a final character
            self._state = _State.TEXT
        return ""

    def _control(self, char: str) -> str:
        if " " <= char <= "?" and len(self._sequence) < _MAX_PARAMETERS:
            self._sequence += char
            return ""
        self._state = _State.TEXT
        if char == "m" and _COLOURS.fullmatch(self._sequence):
            self._coloured = True
            return f"\x1b[{self._sequence}m"
        return char if char in _TEXT_CONTROLS else ""
