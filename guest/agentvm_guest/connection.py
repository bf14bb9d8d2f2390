"""A program's TCP connection at the forwarder's end."""

from __future__ import annotations

import contextlib
import socket
import struct

from agentvm_kernel.link.stream import SessionStream

_RESET = struct.pack("ii", 1, 0)
# Messages that are handed to a program together: it is woken once for all of them.
_AT_ONCE = 16


class Connection:
    """A program's connection.

    Attributes:
        sock: Its socket at this end.
        opening: What the host is told about it.
        stream: Its stream, once there is a link.
        pending: What came from the host and the program has not taken.
        host_ended: The host has ended its direction, and the program was told.
        ended: The program has ended its direction, and the host was told.
    """

    def __init__(self, sock: socket.socket, opening: bytes) -> None:
        self.sock = sock
        self.opening = opening
        self.stream: SessionStream | None = None
        self.pending: list[memoryview] = []
        self.host_ended = False
        self.ended = False
        self._is_last = False

    def take(self) -> bool:
        """Give the program what has come from the host; returns whether it took all that is there.

        Raises:
            OSError: the program has closed or reset the connection.
            ProtocolError: the host sent what is no message.
        """
        while self._flush():
            self._gather()
            if not self.pending and self._is_last is self.host_ended:
                return True
        return False

    def _flush(self) -> bool:
        """Give the program what waits for it; returns whether it took all of it."""
        while self.pending:
            try:
                sent = self.sock.sendmsg(self.pending)
            except BlockingIOError:
                return False
            while self.pending and sent >= len(self.pending[0]):
                sent -= len(self.pending.pop(0))
            if sent:
                self.pending[0] = self.pending[0][sent:]
        if self._is_last and not self.host_ended:
            self.host_ended = True
            self.sock.shutdown(socket.SHUT_WR)
        return True

    def _gather(self) -> None:
        assert self.stream is not None
        while not self._is_last and len(self.pending) < _AT_ONCE and (parts := self.stream.receive()) is not None:
            if parts[0]:
                self.pending.append(memoryview(parts[0]))
            else:
                self._is_last = True


def close(sock: socket.socket, *, reset: bool) -> None:
    """Close a connection's socket.

    Args:
        sock: The socket.
        reset: Whether the program is to get an error instead of an end.
    """
    if reset:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()
