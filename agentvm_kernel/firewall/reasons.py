"""Why something of the guest's output was not let through: a fixed set, so that it can label metrics and events."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Why output was blocked; the value is its name in notes, events and metrics."""

    MESSAGE = "message"
    MIME = "mime"
    SCRIPT = "script"
    MARKUP = "markup"
    STYLE = "style"
    REMOTE = "remote"
    LINK = "link"
    RENDERER = "renderer"
    TERMINAL = "terminal"
    PAYLOAD = "payload"
    COMM = "comm"
    WIDGET = "widget"
    INPUT = "input"
    SIZE = "size"
    RATE = "rate"
    MALFORMED = "malformed"
