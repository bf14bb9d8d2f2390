"""Pictures as data: those that every browser decodes as nothing else, and of a size that it can hold."""

from __future__ import annotations

import base64
import binascii
import struct
from html import escape
from typing import Final

from agentvm_kernel.firewall.context import Context
from agentvm_kernel.firewall.reasons import Reason

MAX_PIXELS: Final = 100_000_000
MAX_SVG_CHARACTERS: Final = 8 * 1024 * 1024

_BASE64: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=\r\n"
_SIGNATURES: Final = {
    "image/png": (b"\x89PNG\r\n\x1a\n",),
    "image/jpeg": (b"\xff\xd8\xff",),
    "image/gif": (b"GIF87a", b"GIF89a"),
    "image/webp": (b"RIFF",),
}
TYPES: Final = frozenset(_SIGNATURES)


def clean_picture(mime: str, value: object, context: Context) -> str | None:
    """A picture in base64.

    Args:
        mime: One of `TYPES`.
        value: What the guest gives.
        context: Of the message.

    Returns:
        It, or None if it is not what it says.
    """
    if not isinstance(value, str) or not value.isascii() or value.encode().translate(None, _BASE64):
        context.block(Reason.MALFORMED, "a picture that is not base64")
        return None
    try:
        head = base64.b64decode("".join(value[:64].split())[:44])
    except binascii.Error:
        context.block(Reason.MALFORMED, "a picture that is not base64")
        return None
    if not head.startswith(_SIGNATURES[mime]):
        context.block(Reason.MALFORMED, "a picture of another format than it says")
        return None
    if _pixels(mime, head) > MAX_PIXELS:
        context.block(Reason.SIZE, "a picture of more than 100 million pixels")
        return None
    return value


def _pixels(mime: str, head: bytes) -> int:
    """How many pixels a picture says it has; 0 where that stands further inside."""
    if mime == "image/png" and len(head) >= 24:
        width, height = struct.unpack(">II", head[16:24])
    elif mime == "image/gif" and len(head) >= 10:
        width, height = struct.unpack("<HH", head[6:10])
    else:
        return 0
    return int(width * height)


def clean_svg(value: object, size: dict[str, object], context: Context) -> str | None:
    """An SVG as an image element: there a browser runs no script of it, follows no link and fetches nothing.

    Args:
        value: What the guest gives.
        size: ``width`` and ``height`` in pixels, if they are given.
        context: Of the message.

    Returns:
        HTML, or None.
    """
    if not isinstance(value, str):
        context.block(Reason.MALFORMED, "an SVG that is no text")
        return None
    if len(value) > MAX_SVG_CHARACTERS:
        context.block(Reason.SIZE, "an SVG of more than 8 million characters")
        return None
    data = base64.b64encode(value.encode("utf-8", "replace")).decode()
    given = "".join(f' {escape(name)}="{number}"' for name, number in size.items() if name in {"width", "height"})
    return f'<img alt="SVG"{given} style="max-width: 100%" src="data:image/svg+xml;base64,{data}">'
