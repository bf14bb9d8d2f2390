"""A program's TCP connection at the forwarder's end."""

from __future__ import annotations

import contextlib
import socket
import struct

from agentvm_guest.inbox import Inbox, Piece
from agentvm_kernel.errors import ProtocolError
from agentvm_kernel.link.inbox import decode
from agentvm_kernel.link.stream import SessionStream

_RESET = struct.pack("ii", 1, 0)
# Messages that are handed to a program together: it is woken once for all of them.
_AT_ONCE = 16


class Connection:
    """A program's connection.

    Args:
        sock: Its socket at this end.
        opening: What the host is told about it.
        inbox: Where pieces lie that the host refers to.

    Attributes:
        sock: Its socket at this end.
        opening: What the host is told about it.
        stream: Its stream, once there is a link.
        pending: What came from the host and the program has not taken.
        host_ended: The host has ended its direction, and the program was told.
        ended: The program has ended its direction, and the host was told.
    """

    def __init__(self, sock: socket.socket, opening: bytes, inbox: Inbox | None = None) -> None:
        self.sock = sock
        self.opening = opening
        self.stream: SessionStream | None = None
        self.pending: list[memoryview] = []
        self.host_ended = False
        self.ended = False
        self._inbox = inbox
        self._piece: Piece | None = None
        self._is_last = False

    def take(self) -> bool:
        """Give the program what has come from the host; returns whether it took all that is there.

        Raises:
            OSError: the program has closed or reset the connection, or a piece is not there.
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
        self._let_go(taken=True)
        if self._is_last and not self.host_ended:
            self.host_ended = True
            self.sock.shutdown(socket.SHUT_WR)
        return True

    def _gather(self) -> None:
        """Take the host's next messages, a piece at most: it holds memory until the program has taken it."""
        assert self.stream is not None
        while not (self._is_last or self._piece) and len(self.pending) < _AT_ONCE:
            parts = self.stream.receive()
            if parts is None:
                return
            if len(parts) > 1:
                self._refer(parts[0])
            elif parts[0]:
                self.pending.append(memoryview(parts[0]))
            else:
                self._is_last = True

    def _refer(self, reference: bytes) -> None:
        if self._inbox is None:
            raise ProtocolError("The host refers to an inbox, and there is none.")
        self._piece = self._inbox.read(decode(reference))
        self.pending.append(self._piece.content)

    def _let_go(self, *, taken: bool) -> None:
        if self._piece is not None and self._inbox is not None:
            piece, self._piece = self._piece, None
            self._inbox.give_back(piece, taken=taken)

    def close(self, *, reset: bool) -> None:
        """Close it.

        Args:
            reset: Whether the program is to get an error instead of an end.
        """
        self.pending.clear()
        self._let_go(taken=False)
        close(self.sock, reset=reset)


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
