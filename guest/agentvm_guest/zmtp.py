"""The part of ZMTP 3.0 (https://rfc.zeromq.org/spec/23/) that a DEALER and a SUB need on a Unix socket.

The agent speaks it itself: a libzmq in between would cost two thread switches per message, which is the larger part of
a message's way where code is emulated, would read an over-long message into memory before anybody could refuse it, and
would have to be imported from an environment that the user may change.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

_GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" + bytes(31)
_MORE = 1
_LONG = 2
_COMMAND = 4
_SUBSCRIBE_ALL = b"\x00\x01\x01"
_READ = 65536
_MAX_COMMAND = 1024


class ZmtpError(Exception):
    """The peer does not speak ZMTP 3 as expected, or is gone."""


@dataclass(frozen=True)
class OverLong:
    """Stands for a message that was longer than allowed and was not kept.

    Attributes:
        size: The message's bytes.
        parts: Its first parts, as far as they are short.
    """

    size: int
    parts: list[bytes]


def encode_message(parts: Sequence[bytes]) -> bytes:
    """Return a message's frames as bytes."""
    pieces: list[bytes] = []
    last = len(parts) - 1
    for index, part in enumerate(parts):
        flags = _MORE if index < last else 0
        size = len(part)
        pieces.append(bytes((flags, size)) if size < 256 else struct.pack(">BQ", flags | _LONG, size))
        pieces.append(part)
    return b"".join(pieces)


def _encode_ready(kind: str, identity: bytes) -> bytes:
    body = b"\x05READY"
    for name, value in ((b"Socket-Type", kind.encode()), (b"Identity", identity)):
        body += bytes((len(name),)) + name + len(value).to_bytes(4, "big") + value
    return bytes((_COMMAND, len(body))) + body


class ZmtpReader:
    """Cuts received bytes into messages, however they are split.

    Args:
        max_message: Longest message in bytes; of a longer one only the short first parts are kept.
        max_parts: Most parts.

    Attributes:
        progress: 0 before the peer's greeting, 1 before its READY, then 2.
    """

    def __init__(self, max_message: int, max_parts: int) -> None:
        self._max_message = max_message
        self._max_parts = max_parts
        self.progress = 0
        self._data = b""
        self._position = 0
        self._parts: list[bytes] = []
        self._size = 0
        self._count = 0
        self._flags = 0
        self._missing = 0
        self._part: bytearray | None = None

    def push(self, data: bytes) -> None:
        """Add received bytes; `pop` has to have returned None before."""
        self._data = self._data[self._position :] + data
        self._position = 0

    def pop(self) -> list[bytes] | OverLong | None:
        """Return the next message, or None when more bytes are needed.

        Raises:
            ZmtpError: the peer does not speak ZMTP 3.
        """
        if not self.progress and not self._read_greeting():
            return None
        if not self._missing and not self._count:
            whole = self._pop_whole()
            if whole is not None:
                return whole
        while True:
            if not (self._read_on() if self._missing else self._read_frame()):
                return None
            if self._flags & _COMMAND:
                self.progress = 2
            elif not self._flags & _MORE:
                return self._finish()

    def _pop_whole(self) -> list[bytes] | None:
        """Return a message that is there from its first byte to its last; nearly all are."""
        data, position = self._data, self._position
        end = len(data)
        parts: list[bytes] = []
        while position + 2 <= end:
            flags = data[position]
            if flags > _MORE | _LONG:
                return None
            if flags & _LONG:
                start = position + 9
                size = int.from_bytes(data[position + 1 : start], "big")
            else:
                start = position + 2
                size = data[position + 1]
            position = start + size
            if position > end:
                return None
            parts.append(data[start:position])
            if not flags & _MORE:
                if position - self._position > self._max_message or len(parts) > self._max_parts:
                    return None
                self._position = position
                return parts
        return None

    def _read_greeting(self) -> bool:
        if len(self._data) < len(_GREETING):
            return False
        if self._data[0] != 0xFF or self._data[10] < 3:
            raise ZmtpError("the peer's greeting is not ZMTP 3")
        self._position, self.progress = len(_GREETING), 1
        return True

    def _read_frame(self) -> bool:
        """Read a frame's header and as much of its body as there is; True when it is complete."""
        data, position = self._data, self._position
        available = len(data) - position
        if available < 2:
            return False
        flags = data[position]
        if flags > _MORE | _LONG | _COMMAND:
            raise ZmtpError(f"frame flags {flags:#04x}")
        if flags & _LONG:
            if available < 9:
                return False
            size = int.from_bytes(data[position + 1 : position + 9], "big")
            start = position + 9
        else:
            size = data[position + 1]
            start = position + 2
        if flags & _COMMAND and size > _MAX_COMMAND:
            raise ZmtpError(f"frame flags {flags:#04x} of a command of {size} bytes")
        self._flags = flags
        end = start + size
        if not flags & _COMMAND:
            self._size += size
            self._count += 1
        if end <= len(data):
            self._position = end
            self._keep(data[start:end])
            return True
        self._begin_part(data[start:], size)
        return False

    def _begin_part(self, beginning: bytes, size: int) -> None:
        self._position = len(self._data)
        self._missing = size - len(beginning)
        kept = self._flags & _COMMAND or self._size <= self._max_message
        self._part = bytearray(beginning) if kept else None

    def _read_on(self) -> bool:
        """Go on with a frame that had not come as a whole; True when it is complete."""
        piece = self._data[self._position : self._position + self._missing]
        self._position += len(piece)
        self._missing -= len(piece)
        if self._part is not None:
            self._part += piece
        if self._missing:
            return False
        part, self._part = self._part, None
        if part is not None:
            self._keep(bytes(part))
        return True

    def _keep(self, part: bytes) -> None:
        if self._flags & _COMMAND:
            return
        if self._size <= self._max_message and self._count <= self._max_parts:
            self._parts.append(part)

    def _finish(self) -> list[bytes] | OverLong:
        parts, size, count = self._parts, self._size, self._count
        self._parts, self._size, self._count = [], 0, 0
        if size > self._max_message or count > self._max_parts:
            return OverLong(size, parts)
        return parts


class ZmtpSocket:
    """A connection to one of ipykernel's sockets.

    Args:
        path: The Unix socket.
        kind: ``DEALER`` or ``SUB`` (which subscribes to everything).
        identity: The routing id.
        max_message: Longest message that is taken whole.
        max_parts: Most parts of a message that is taken whole.

    Raises:
        OSError: nobody listens.
    """

    def __init__(self, path: str, kind: str, identity: bytes, max_message: int, max_parts: int) -> None:
        self.max_message = max_message
        self._drained = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(path)
        self._socket.setblocking(False)
        self.fd = self._socket.fileno()
        self._reader = ZmtpReader(max_message, max_parts)
        self._out = memoryview(b"")
        # libzmq drops a peer whose subscription comes along with its greeting: one step at a time.
        self._steps = [_encode_ready(kind, identity), _SUBSCRIBE_ALL if kind == "SUB" else b""]
        self.write(_GREETING)

    @property
    def ready(self) -> bool:
        """Whether both ends have said who they are, so that messages may be sent."""
        return not self._steps

    @property
    def blocked(self) -> bool:
        """Whether bytes wait because the peer does not read."""
        return bool(self._out)

    def read(self) -> list[bytes] | OverLong | None:
        """Return the next message, or None when there is none now.

        Raises:
            ZmtpError: the peer is gone or does not speak ZMTP 3.
        """
        while (message := self._reader.pop()) is None:
            if self._steps:
                self._step()
            if self._drained:
                # What comes from here on is announced by the loop.
                self._drained = False
                return None
            try:
                data = os.read(self.fd, _READ)
            except BlockingIOError:
                return None
            except OSError as error:
                raise ZmtpError(f"the connection broke: {error}") from error
            if not data:
                raise ZmtpError("the connection was closed")
            # A socket gives less than was asked for only when it has no more.
            self._drained = len(data) < _READ
            self._reader.push(data)
        return message

    def _step(self) -> None:
        while len(self._steps) > 2 - self._reader.progress:
            self.write(self._steps.pop(0))

    def wake(self) -> None:
        """Note that the loop announced something."""
        self._drained = False

    def send(self, parts: Sequence[bytes]) -> None:
        """Send a message; the caller waits while `blocked` before the next."""
        self.write(encode_message(parts))

    def write(self, data: bytes) -> None:
        """Write bytes, and keep what does not go."""
        self._out = memoryview(bytes(self._out) + data) if self._out else memoryview(data)
        self.flush()

    def flush(self) -> None:
        """Go on writing."""
        while self._out:
            try:
                sent = os.write(self.fd, self._out)
            except BlockingIOError:
                return
            except OSError:
                # The peer is gone: reading reports it.
                self._out = memoryview(b"")
                return
            self._out = self._out[sent:]

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()
