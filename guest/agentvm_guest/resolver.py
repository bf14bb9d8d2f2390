"""The stub resolver: every name has an address of its own here, from a range that leads nowhere but to the forwarder.

Whoever connects to such an address gets to the forwarder, which asks here for the name again. Nothing is looked up:
the host decides about the name, and resolves it, when a program connects.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from agentvm_guest.loop import Loop, Timer

RANGE = ipaddress.IPv4Network("198.18.0.0/15")  # RFC 2544: benchmarks; nobody's on the internet
TTL = 60

_MAX_NAMES = 8192
_MAX_NAME = 253
_MAX_CONNECTIONS = 64
_CONNECTION_SECONDS = 5.0
_DATAGRAMS_PER_TURN = 64
_LETTERS = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")

# RFC 1035, 4.1.1
_HEADER = struct.Struct(">6H")
_ANSWER_FLAG, _OPCODE, _RECURSION_DESIRED, _RECURSION_AVAILABLE = 0x8000, 0x7800, 0x0100, 0x0080
_FORMAT_ERROR, _NO_SUCH_NAME, _NOT_IMPLEMENTED, _REFUSED = 1, 3, 4, 5
_A, _ANY, _INTERNET = 1, 255, 1
_MAX_MESSAGE = 65535


class Names:
    """Names and their addresses: a bounded number, of which the one that was not used for longest is forgotten.

    Addresses are given out in turn, so that one does not come back as another name's before the range is used up.

    Args:
        network: The range. Its first two addresses are nobody's: the interface has one of them.
        limit: How many names there are at most.
    """

    def __init__(self, network: ipaddress.IPv4Network = RANGE, limit: int = _MAX_NAMES) -> None:
        self._first = int(network.network_address) + 2
        self._count = network.num_addresses - 3
        self._limit = min(limit, self._count)
        self._next = 0
        self._addresses: OrderedDict[str, int] = OrderedDict()
        self._names: dict[int, str] = {}

    def address(self, name: str) -> bytes:
        """Return a name's address, 4 bytes; whether its letters are large or small does not matter."""
        key = name.lower()
        number = self._addresses.get(key)
        if number is None:
            if len(self._addresses) >= self._limit:
                _, oldest = self._addresses.popitem(last=False)
                del self._names[oldest]
            number = self._addresses[key] = self._take()
            self._names[number] = key
        self._addresses.move_to_end(key)
        return number.to_bytes(4, "big")

    def name(self, address: str) -> str | None:
        """Return the name to which an address was given."""
        name = self._names.get(int(ipaddress.IPv4Address(address)))
        if name is not None:
            self._addresses.move_to_end(name)
        return name

    def _take(self) -> int:
        while True:
            number = self._first + self._next
            self._next = (self._next + 1) % self._count
            if number not in self._names:
                return number


def answer(query: bytes, names: Names, *, refuse: bool) -> bytes | None:
    """Return the answer to a DNS query (RFC 1035); None for what is no query at all.

    Args:
        query: The message.
        names: The names' addresses.
        refuse: There is no network: every name is refused.
    """
    if len(query) < _HEADER.size:
        return None
    number, flags, questions, *_ = _HEADER.unpack_from(query)
    if flags & _ANSWER_FLAG:
        return None
    question = _read_question(query) if questions == 1 else None
    code, record, text = _FORMAT_ERROR, b"", b""
    if flags & _OPCODE:
        code = _NOT_IMPLEMENTED
    elif question is not None:
        code, record = (_REFUSED, b"") if refuse else _find(question, names)
        text = question.text
    flags = _ANSWER_FLAG | flags & (_OPCODE | _RECURSION_DESIRED) | _RECURSION_AVAILABLE | code
    return _HEADER.pack(number, flags, bool(text), bool(record), 0, 0) + text + record


class _Question(NamedTuple):
    """A query's question: its name (None for one that no host can have), type, class, and its bytes."""

    name: str | None
    kind: int
    group: int
    text: bytes


def _find(question: _Question, names: Names) -> tuple[int, bytes]:
    """Return the code and the record of the answer."""
    name = question.name
    if question.group != _INTERNET:
        return _REFUSED, b""
    if name is None:
        return _NO_SUCH_NAME, b""
    if question.kind not in (_A, _ANY):
        return 0, b""
    local = name == "localhost" or name.endswith(".localhost")  # RFC 6761, 6.3
    address = socket.inet_aton("127.0.0.1") if local else names.address(name)
    return 0, struct.pack(">HHHIH", 0xC000 | _HEADER.size, _A, _INTERNET, TTL, 4) + address


def _read_question(query: bytes) -> _Question | None:
    labels: list[bytes] = []
    position = _HEADER.size
    while position < len(query) and (length := query[position]):
        # A longer length would be a pointer, which a first name cannot be.
        if length > 63:
            return None
        labels.append(query[position + 1 : position + 1 + length])
        position += 1 + length
    end = position + 5
    if end > len(query):
        return None
    kind, group = struct.unpack_from(">HH", query, position + 1)
    text = query[_HEADER.size : end]
    name = b".".join(labels)
    possible = 0 < len(name) <= _MAX_NAME and all(_LETTERS.issuperset(label) for label in labels)
    return _Question(name.decode().lower() if possible else None, kind, group, text)


class Resolver:
    """Answers queries on the loopback interface, by UDP and TCP.

    Args:
        loop: The forwarder's loop.
        names: The names' addresses.
        refuses: Says whether there is no network at the moment.
    """

    def __init__(self, loop: Loop, names: Names, refuses: Callable[[], bool]) -> None:
        self._loop = loop
        self._names = names
        self._refuses = refuses
        self._connections: dict[socket.socket, tuple[bytearray, Timer]] = {}

    def serve(self, datagrams: socket.socket, listener: socket.socket) -> None:
        """Answer on a UDP socket and on the connections of a listening TCP socket."""
        for sock, handler in ((datagrams, self._on_datagrams), (listener, self._on_listener)):
            sock.setblocking(False)
            self._loop.add(sock.fileno(), partial(handler, sock))

    def _on_datagrams(self, sock: socket.socket) -> None:
        for _ in range(_DATAGRAMS_PER_TURN):
            try:
                query, sender = sock.recvfrom(_MAX_MESSAGE)
                if (reply := answer(query, self._names, refuse=self._refuses())) is not None:
                    sock.sendto(reply, sender)
            except BlockingIOError:
                return
            except OSError:
                # The asker of an earlier one is gone.
                continue
        self._loop.call_soon(partial(self._on_datagrams, sock))

    def _on_listener(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            if len(self._connections) >= _MAX_CONNECTIONS:
                connection.close()
                continue
            connection.setblocking(False)
            timer = self._loop.call_later(_CONNECTION_SECONDS, partial(self._drop, connection))
            self._connections[connection] = (bytearray(), timer)
            self._loop.add(connection.fileno(), partial(self._on_connection, connection))

    def _on_connection(self, connection: socket.socket) -> None:
        while connection in self._connections:
            buffer, _ = self._connections[connection]
            try:
                data = connection.recv(4096)
                buffer += data
                replies = self._answer_all(buffer)
                # An answer is short: one that does not fit belongs to somebody who does not read.
                if not data or replies is None or connection.send(replies) < len(replies):
                    self._drop(connection)
            except BlockingIOError:
                return
            except OSError:
                self._drop(connection)

    def _answer_all(self, buffer: bytearray) -> bytes | None:
        """Return the answers to the complete queries, each behind its length, and take the queries out."""
        replies = b""
        while len(buffer) >= 2 and len(buffer) >= 2 + (length := int.from_bytes(buffer[:2], "big")):
            reply = answer(bytes(buffer[2 : 2 + length]), self._names, refuse=self._refuses())
            if reply is None:
                return None
            replies += len(reply).to_bytes(2, "big") + reply
            del buffer[: 2 + length]
        return replies

    def _drop(self, connection: socket.socket) -> None:
        if (entry := self._connections.pop(connection, None)) is not None:
            entry[1].cancel()
            self._loop.remove(connection.fileno())
            connection.close()
