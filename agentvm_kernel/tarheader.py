"""Headers of tar archives, read without trust: nothing follows from a header but what the caller makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

BLOCK: Final = 512
_MAGICS: Final = (b"ustar\x0000", b"ustar  \x00")


@dataclass(frozen=True)
class Header:
    """A member's header, as it stands.

    Attributes:
        name: Its name, or the name's last part.
        prefix: The name's first part, in ustar archives.
        kind: Its type flag: ``b"0"`` for a plain file.
        size: Bytes that follow.
        mode: Permissions, and more.
        mtime: Seconds since 1970.
        link: What a link leads to.
    """

    name: bytes
    prefix: bytes
    kind: bytes
    size: int
    mode: int
    mtime: int
    link: bytes


def read_header(block: bytes) -> Header | None:
    """Read a block; None for one of zeros, which ends an archive.

    Raises:
        ValueError: it is no header.
    """
    if block == bytes(BLOCK):
        return None
    total = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    if block[257:265] not in _MAGICS or read_number(block[148:156]) != total:
        raise ValueError("no tar header")
    return Header(
        name=block[:100].rstrip(b"\0"),
        prefix=block[345:500].rstrip(b"\0"),
        kind=block[156:157],
        size=read_number(block[124:136]),
        mode=read_number(block[100:108]),
        mtime=read_number(block[136:148]),
        link=block[157:257].rstrip(b"\0"),
    )


def read_number(field: bytes) -> int:
    """Return a number as tar writes it: octal, or in base 256 where that is too short.

    Raises:
        ValueError: it is none.
    """
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    text = field.rstrip(b" \0").decode("ascii")
    if not text.isdigit():
        raise ValueError("no number in a tar header")
    return int(text, 8)
