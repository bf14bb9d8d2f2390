"""Text for a terminal or a ``<pre>``: colours stay, what would steer a terminal goes."""

from __future__ import annotations

import re
from typing import Final

from agentvm_kernel.firewall.context import Context
from agentvm_kernel.firewall.reasons import Reason

# Colours, "erase the rest of the line" and "cursor up", with which progress bars draw.
_KEPT: Final = r"\x1b\[[0-9;:]{0,64}m|\x1b\[[0-2]?K|\x1b\[[0-9]{0,2}A"
_SEQUENCE: Final = (
    r"\x1b\[[0-?]{0,64}[ -/]{0,8}[@-~]"  # control sequences
    r"|\x1b[\]PX^_][^\x07\x1b\x9c]{0,4096}(?:\x07|\x1b\\|\x9c)?"  # titles, hyperlinks, clipboard, sixels
    r"|\x1b[ -/]{0,8}[0-~]?"
)
# Looked for first: that is ten times as fast.
_STEERS: Final = re.compile(r"[\x00-\x07\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_CONTROL: Final = re.compile(rf"({_KEPT})|{_SEQUENCE}|[\x00-\x07\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f]")


def clean_text(text: str, context: Context) -> str:
    """Text as a stream, a traceback or ``text/plain`` has it.

    Args:
        text: Of the guest.
        context: Of the message.
    """
    if not text.isprintable() and _STEERS.search(text):
        cleaned = _CONTROL.sub(lambda found: found[1] or "", text)
        if cleaned != text:
            context.block(Reason.TERMINAL, "a control sequence for terminals")
        return cleaned
    return text


def sound(value: object) -> object:
    """A JSON value without halves of surrogate pairs in its texts, which no encoding has."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [sound(item) for item in value]
    if isinstance(value, dict):
        return {str(sound(key)): sound(item) for key, item in value.items()}
    return value
