"""Messages: lists of byte strings, as they are written into a stream.

A message is its number of parts (u32), the length of each (u32), then the parts' bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from agentvm_kernel.errors import ProtocolError
from agentvm_kernel.link.limits import Limits

_COUNT = struct.Struct(">I")


def encode_head(parts: Sequence[bytes]) -> bytes:
    """Return what precedes a message's bytes: the number of parts and their lengths."""
    count = len(parts)
    return struct.pack(f">{count + 1}I", count, *map(len, parts))


def message_size(parts: Sequence[bytes]) -> int:
    """Return how many bytes a message takes in a stream."""
    return 4 + 4 * len(parts) + sum(map(len, parts))


class MessageReader:
    """Puts one stream's bytes together to messages.

    Bytes that nobody has asked for stay as they came (at most a window of them, which the stream's credit sees to).
    Only `read` moves them on into a message, which is when credit is given back. A length that is claimed but did not
    arrive takes no memory.

    Args:
        limits: The bounds of a message.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._data: bytes | bytearray = b""
        self._position = 0
        self._lengths: list[int] | None = None
        self._parts: list[bytes] = []
        self._part = bytearray()
        self.taken = 0

    @property
    def buffered(self) -> int:
        """Bytes that came and were not taken into a message."""
        return len(self._data) - self._position

    def push(self, data: bytes) -> None:
        """Add bytes of the stream."""
        if self._position == len(self._data):
            self._data, self._position = data, 0
            return
        if not isinstance(self._data, bytearray):
            self._data, self._position = bytearray(self._data[self._position :]), 0
        self._data += data

    def read(self) -> list[bytes] | None:
        """Return the next message, or None when more bytes are needed. Adds what it took to `taken`.

        Raises:
            ProtocolError: the number of parts or their size is not allowed.
        """
        if self._position == len(self._data):
            return None
        before = self._position
        try:
            return self._read()
        finally:
            self.taken += self._position - before
            if isinstance(self._data, bytearray):
                del self._data[: self._position]
                self._position = 0

    def _read(self) -> list[bytes] | None:
        if self._lengths is None:
            self._lengths = self._read_head()
            if self._lengths is None:
                return None
        while len(self._parts) < len(self._lengths):
            part = self._read_part(self._lengths[len(self._parts)])
            if part is None:
                return None
            self._parts.append(part)
        message, self._parts, self._lengths = self._parts, [], None
        return message

    def _read_head(self) -> list[int] | None:
        data, position = self._data, self._position
        available = len(data) - position
        if available < 4:
            return None
        (count,) = _COUNT.unpack_from(data, position)
        if not 0 < count <= self._limits.max_parts:
            raise ProtocolError(f"Message part count {count} is outside 1 to {self._limits.max_parts}.")
        if available < 4 + 4 * count:
            return None
        lengths = list(struct.unpack_from(f">{count}I", data, position + 4))
        total = 4 + 4 * count + sum(lengths)
        if total > self._limits.max_message:
            raise ProtocolError(f"Message size {total} is over {self._limits.max_message} bytes.")
        self._position = position + 4 + 4 * count
        return lengths

    def _read_part(self, length: int) -> bytes | None:
        start = self._position
        end = start + length - len(self._part)
        if end > len(self._data):
            self._part += self._data[start:]
            self._position = len(self._data)
            return None
        self._position = end
        if not self._part:
            return bytes(self._data[start:end])
        self._part += self._data[start:end]
        part = bytes(self._part)
        self._part = bytearray()
        return part
