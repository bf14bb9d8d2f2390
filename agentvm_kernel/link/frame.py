"""Frames: what travels on a link, and the decoder that cuts a byte stream into them.

A frame is a header of 12 bytes in network order (type, flags, stream, epoch, length) and a payload.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from agentvm_kernel.errors import ProtocolError

HEADER: Final = struct.Struct(">BBHII")
MAX_PAYLOAD: Final = 65536
MAX_FRAME: Final = HEADER.size + MAX_PAYLOAD

# One write to a virtio-serial port moves at most 32 KiB: a data frame of this size goes out whole.
DATA_CHUNK: Final = 32768 - HEADER.size

# The first byte is no frame type, so that a preamble in the place of a header is recognised.
MAGIC: Final = bytes.fromhex("a7414756 4d4c4b31 f09c3e51 d28b6ac7")

HELLO: Final = 1
PROOF: Final = 2
OPEN: Final = 3
DATA: Final = 4
CREDIT: Final = 5
PING: Final = 6
PONG: Final = 7
CLOSE: Final = 8
BYE: Final = 9

NAMES: Final = {
    HELLO: "HELLO",
    PROOF: "PROOF",
    OPEN: "OPEN",
    DATA: "DATA",
    CREDIT: "CREDIT",
    PING: "PING",
    PONG: "PONG",
    CLOSE: "CLOSE",
    BYE: "BYE",
}

# Shortest and longest payload by type.
_LENGTHS: Final = {
    HELLO: (1, 256),
    PROOF: (32, 32),
    OPEN: (1, 64),
    DATA: (1, MAX_PAYLOAD),
    CREDIT: (4, 4),
    PING: (8, 8),
    PONG: (8, 8),
    CLOSE: (0, 0),
    BYE: (0, 256),
}


class Frame(NamedTuple):
    """One frame.

    Attributes:
        type: One of the type constants of this module.
        stream: Number of the stream it belongs to; 0 for the link's own.
        epoch: The sender's epoch.
        payload: The bytes after the header.
    """

    type: int
    stream: int
    epoch: int
    payload: bytes


def encode_frame(kind: int, stream: int, epoch: int, payload: bytes = b"") -> bytes:
    """Return a frame's bytes."""
    return HEADER.pack(kind, 0, stream, epoch, len(payload)) + payload


def check_header(header: tuple[int, int, int, int, int]) -> None:
    """Refuse a header that the protocol does not allow.

    Raises:
        ProtocolError: naming the field.
    """
    kind, flags, _stream, _epoch, length = header
    bounds = _LENGTHS.get(kind)
    if bounds is None:
        raise ProtocolError(f"Frame type {kind} is unknown.")
    if flags:
        raise ProtocolError(f"Frame flags {flags:#04x} of {NAMES[kind]} are not 0.")
    if not bounds[0] <= length <= bounds[1]:
        raise ProtocolError(f"Frame length {length} of {NAMES[kind]} is outside {bounds[0]} to {bounds[1]}.")


class FrameDecoder:
    """Cuts bytes into frames, however they are split.

    Between two calls of `push`, with all frames taken out, it holds less than one frame (``MAX_FRAME`` bytes).
    """

    def __init__(self) -> None:
        self._data = b""
        self._position = 0
        self._tail = bytearray()
        self._needed = 0

    @property
    def buffered(self) -> int:
        """Bytes held that belong to no frame yet."""
        return len(self._tail) + len(self._data) - self._position

    def push(self, data: bytes) -> None:
        """Add received bytes. Call `pop` until it returns None before the next push."""
        if not self._tail:
            self._data, self._position = data, 0
            return
        self._tail += data
        if len(self._tail) >= self._needed:
            self._data, self._position = bytes(self._tail), 0
            self._tail.clear()

    def pop(self) -> Frame | None:
        """Return the next complete frame, or None when more bytes are needed.

        Raises:
            ProtocolError: a header field is not valid. The decoder stays in front of that header (see `rest`).
        """
        data, position = self._data, self._position
        start = position + HEADER.size
        if start > len(data):
            self._keep(HEADER.size)
            return None
        header = HEADER.unpack_from(data, position)
        kind, flags, stream, epoch, length = header
        if flags or kind != DATA or not 0 < length <= MAX_PAYLOAD:
            check_header(header)
        end = start + length
        if end > len(data):
            self._keep(HEADER.size + length)
            return None
        self._position = end
        return Frame(kind, stream, epoch, data[start:end])

    def rest(self) -> bytes:
        """Take out everything that belongs to no frame yet; the decoder is empty afterwards."""
        rest = bytes(self._tail) + self._data[self._position :]
        self._data, self._position = b"", 0
        self._tail.clear()
        return rest

    def _keep(self, needed: int) -> None:
        if self._position < len(self._data):
            self._tail += self._data[self._position :]
            self._needed = needed
        self._data, self._position = b"", 0
