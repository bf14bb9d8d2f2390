"""A program's connection at the forwarder's end: what came from the host is handed over together, in order."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Iterator
from typing import cast

import pytest
from agentvm_guest.connection import Connection

from agentvm_kernel.link.stream import SessionStream


class Messages:
    """What has come on a stream."""

    def __init__(self, *messages: bytes) -> None:
        self.waiting = deque(messages)

    def receive(self) -> list[bytes] | None:
        return [self.waiting.popleft()] if self.waiting else None


@pytest.fixture
def program() -> Iterator[tuple[socket.socket, Connection]]:
    theirs, ours = socket.socketpair()
    with theirs, ours:
        ours.setblocking(False)
        yield theirs, Connection(ours, b"")


def say(connection: Connection, *messages: bytes) -> None:
    connection.stream = cast("SessionStream", Messages(*messages))


def test_pieces_of_all_lengths_and_the_end_behind_them_arrive_in_order(
    program: tuple[socket.socket, Connection],
) -> None:
    theirs, connection = program
    # There is hardly any room: most pieces are taken in parts.
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    pieces = [(b"%d." % number) * (number % 900 + 1) for number in range(1500)]
    say(connection, *pieces, b"")
    received = b""
    assert not connection.take()
    while not connection.take():
        assert not connection.host_ended
        received += theirs.recv(1000)
    assert connection.host_ended
    while more := theirs.recv(1 << 16):
        received += more
    assert received == b"".join(pieces)


def test_an_end_alone_is_passed_on(program: tuple[socket.socket, Connection]) -> None:
    theirs, connection = program
    say(connection, b"")
    assert connection.take()
    assert theirs.recv(1) == b""


def test_what_comes_in_several_turns_arrives(program: tuple[socket.socket, Connection]) -> None:
    theirs, connection = program
    for piece in (b"one", b"two"):
        say(connection, piece)
        assert connection.take()
        assert theirs.recv(10) == piece
    assert not connection.host_ended


def test_a_program_that_has_gone_is_an_error(program: tuple[socket.socket, Connection]) -> None:
    theirs, connection = program
    theirs.close()
    say(connection, b"late")
    with pytest.raises(BrokenPipeError):
        connection.take()
