"""Pictures as data: those that every browser decodes as nothing else, and of a size that it can hold."""

from __future__ import annotations

import base64
import binascii
import struct
from typing import Final

from agentvm_kernel.firewall.context import Context
from agentvm_kernel.firewall.reasons import Reason

MAX_PIXELS: Final = 100_000_000

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
    if pixels(mime, head) > MAX_PIXELS:
        context.block(Reason.SIZE, "a picture of more than 100 million pixels")
        return None
    return value


def pixels(mime: str, head: bytes) -> int:
    """Return how many pixels a picture says it has; 0 where that stands further inside.

    Args:
        mime: One of `TYPES`.
        head: Its first 24 bytes, or more.
    """
    if mime == "image/png" and len(head) >= 24:
        width, height = struct.unpack(">II", head[16:24])
    elif mime == "image/gif" and len(head) >= 10:
        width, height = struct.unpack("<HH", head[6:10])
    else:
        return 0
    return int(width * height)
