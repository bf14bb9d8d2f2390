"""Compares pictures by their pixels; they come from guests and from files, so that little of them is decoded."""

from __future__ import annotations

import base64
import binascii
import io
import struct
import zlib
from dataclasses import dataclass
from typing import Final

from PIL import Image, ImageChops

FORMATS: Final = {"image/png": "PNG", "image/jpeg": "JPEG"}
MOST_PIXELS: Final = 25_000_000
_MOST_TEXT: Final = 64 << 20
_BROKEN: Final = (
    OSError, ValueError, SyntaxError, EOFError, OverflowError, struct.error, zlib.error, binascii.Error,
    Image.DecompressionBombError,
)  # fmt: skip


class PictureError(Exception):
    """A picture cannot be decoded, or is too large for that; the text says why."""


@dataclass(frozen=True)
class Tolerance:
    """How much pictures may differ.

    Attributes:
        level: By how much a channel of a pixel, 0 to 255.
        share: Of the pixels, how many may differ by more, 0 to 1.
    """

    level: int = 0
    share: float = 0.0


def compare_pictures(kind: str, saved: str, shown: str, tolerance: Tolerance) -> str:
    """Return in what two pictures differ; empty if they are alike.

    Args:
        kind: One of `FORMATS`.
        saved: The first, base64.
        shown: The second.
        tolerance: How much they may differ.

    Raises:
        PictureError: one cannot be decoded.
    """
    first, second = _decoded(kind, saved), _decoded(kind, shown)
    if first.size != second.size:
        return f"{first.width} x {first.height} pixels before, {second.width} x {second.height} now"
    differing = _differing(first, second, tolerance.level)
    pixels = first.width * first.height
    if differing <= tolerance.share * pixels:
        return ""
    by = f" by more than {tolerance.level}" if tolerance.level else ""
    return f"{differing} of {pixels} pixels differ{by}"


def _differing(first: Image.Image, second: Image.Image, level: int) -> int:
    bands = ImageChops.difference(first, second).split()
    most = bands[0]
    for band in bands[1:]:
        most = ImageChops.lighter(most, band)
    return sum(most.histogram()[level + 1 :])


def _decoded(kind: str, text: str) -> Image.Image:
    if len(text) > _MOST_TEXT:
        raise PictureError("a picture is too large to be decoded")
    try:
        content = base64.b64decode("".join(text.split()), validate=True)
        with Image.open(io.BytesIO(content), formats=[FORMATS[kind]]) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise PictureError(f"a picture has more than {MOST_PIXELS} pixels")
            return picture.convert("RGBA")
    except _BROKEN as error:
        raise PictureError(f"a picture cannot be decoded ({type(error).__name__})") from error
