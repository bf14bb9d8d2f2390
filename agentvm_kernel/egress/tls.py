"""Reads the first messages of TLS, which are in the clear: whom a client names, and which version was agreed on.

Both readers are fed as bytes come, however they are split, do a bounded amount of work for each byte, and hold a
bounded number of them. Sources: RFC 8446 (TLS 1.3), sections 4.1 and 5.1; RFC 6066, section 3 (server name); RFC 7301
(ALPN); RFC 9849 (Encrypted ClientHello).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from agentvm_kernel.errors import AgentVMError

LONGEST_HELLO: Final = 32 * 1024
"""Bytes on the wire of a ClientHello and what may stand before it; real ones have up to some 2 KiB."""

_CHANGE_CIPHER_SPEC: Final = 20
_HANDSHAKE: Final = 22
_APPLICATION_DATA: Final = 23
_CLIENT_HELLO: Final = 1
_SERVER_HELLO: Final = 2
_SERVER_NAME: Final = 0
_ALPN: Final = 16
_SUPPORTED_VERSIONS: Final = 43
_HIDDEN: Final = frozenset({0xFE0D, 0xFFCE})
"""Encrypted ClientHello, and the encrypted server name of its early drafts."""

_VERSIONS: Final = {0x0301: "1.0", 0x0302: "1.1", 0x0303: "1.2", 0x0304: "1.3"}
_RETRY: Final = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
"""The random of a ServerHello that asks for another ClientHello (RFC 8446, section 4.1.3)."""


class TlsError(AgentVMError):
    """What was sent is not the beginning of TLS that can be let through."""

    code = "tls"


@dataclass(frozen=True)
class ClientHello:
    """What a client says in the clear.

    Attributes:
        server_name: The host that it names, as it came; None if it names none.
        alpn: Protocols that it offers.
        hidden: It carries an encrypted ClientHello, so that the name in the clear may not be the one that counts.
    """

    server_name: str | None
    alpn: tuple[str, ...]
    hidden: bool


@dataclass(frozen=True)
class ServerHello:
    """What a server answers in the clear.

    Attributes:
        version: ``1.0`` to ``1.3``; empty for another.
        retry: It asks for another ClientHello.
    """

    version: str
    retry: bool


class _Message:
    """Puts the first handshake message together from its records."""

    def __init__(self, kind: int, before: frozenset[int], longest: int) -> None:
        self._kind = kind
        self._before = before
        self._longest = longest
        self._wire = 0
        self._head = bytearray()
        self._left = 0
        self._skip = False
        self._body = bytearray()

    def feed(self, data: bytes) -> int | None:
        """Take bytes; return how many of them belong to the message once it is complete, else None."""
        at = 0
        while at < len(data):
            if self._left:
                end = min(len(data), at + self._left)
                if not self._skip:
                    self._body += data[at:end]
                self._left -= end - at
                self._grow(end - at)
                at = end
                if self._complete():
                    return at
            else:
                self._head.append(data[at])
                self._grow(1)
                at += 1
                self._begin_record()
        return None

    def _grow(self, more: int) -> None:
        self._wire += more
        if self._wire > self._longest:
            raise TlsError(f"The TLS greeting is longer than {self._longest} bytes.")

    def _begin_record(self) -> None:
        head = self._head
        kind = head[0]
        if kind != _HANDSHAKE and (kind not in self._before or self._body):
            raise TlsError("This is not the beginning of TLS.")
        if len(head) > 1 and head[1] != 3:
            raise TlsError("This is not the beginning of TLS.")
        if len(head) < 5:
            return
        self._left = int.from_bytes(head[3:5])
        self._skip = kind != _HANDSHAKE
        if not 0 < self._left <= 1 << 14:
            raise TlsError("A TLS record has a length that is not valid.")
        head.clear()

    def _complete(self) -> bool:
        body = self._body
        if body and body[0] != self._kind:
            raise TlsError("TLS does not begin with a greeting.")
        return len(body) >= 4 and len(body) >= 4 + int.from_bytes(body[1:4])

    @property
    def body(self) -> memoryview:
        """The message without its type and length."""
        return memoryview(self._body)[4 : 4 + int.from_bytes(self._body[1:4])]

    @property
    def exact(self) -> bool:
        """Whether nothing follows the message in its last record."""
        return not self._left and len(self._body) == 4 + int.from_bytes(self._body[1:4])


class ClientHelloReader:
    """Reads a ClientHello.

    Args:
        again: It is the second one, asked for by the server: what the client sent before it heard that may stand
            before it.

    Attributes:
        wire: All bytes that were fed.
    """

    def __init__(self, *, again: bool = False) -> None:
        before = frozenset({_CHANGE_CIPHER_SPEC, _APPLICATION_DATA}) if again else frozenset[int]()
        self._message = _Message(_CLIENT_HELLO, before, LONGEST_HELLO)
        self.wire = bytearray()

    def feed(self, data: bytes) -> ClientHello | None:
        """Take the next bytes; return the ClientHello once it is complete.

        Args:
            data: Not empty.

        Raises:
            TlsError: this is none, is longer than `LONGEST_HELLO`, or contradicts itself.
        """
        self.wire += data
        if self._message.feed(data) is None:
            return None
        if not self._message.exact:
            raise TlsError("Something follows the ClientHello in its record.")
        return _read_client_hello(_Cursor(self._message.body))


class ServerHelloReader:
    """Reads a ServerHello as far as it is one: what else a server may say is its own affair.

    Attributes:
        hello: The ServerHello, once it is complete.
        done: Nothing more is to be learned.
    """

    def __init__(self) -> None:
        self._message = _Message(_SERVER_HELLO, frozenset({_CHANGE_CIPHER_SPEC}), LONGEST_HELLO)
        self.hello: ServerHello | None = None
        self.done = False

    def feed(self, data: bytes) -> None:
        """Take the next bytes.

        Args:
            data: What the server sent.
        """
        try:
            if self._message.feed(data) is not None:
                self.done = True
                self.hello = _read_server_hello(_Cursor(self._message.body))
        except TlsError:
            self.done = True


class _Cursor:
    """Reads a message from front to back."""

    def __init__(self, view: memoryview) -> None:
        self._view = view

    def take(self, size: int) -> memoryview:
        if size > len(self._view):
            raise TlsError("The TLS greeting ends too early.")
        taken, self._view = self._view[:size], self._view[size:]
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def vector(self, size: int) -> _Cursor:
        """Return what stands behind a length of that many bytes."""
        return _Cursor(self.take(self.number(size)))

    def rest(self) -> bytes:
        return bytes(self.take(len(self._view)))

    def __bool__(self) -> bool:
        return bool(self._view)


def _extensions(cursor: _Cursor) -> Iterator[tuple[int, _Cursor]]:
    if not cursor:  # as clients before TLS 1.2 leave them out
        return
    extensions = cursor.vector(2)
    if cursor:
        raise TlsError("Something follows the extensions in the TLS greeting.")
    seen = set[int]()
    while extensions:
        kind = extensions.number(2)
        if kind in seen:
            raise TlsError("The TLS greeting says something twice.")
        seen.add(kind)
        yield kind, extensions.vector(2)


def _read_client_hello(cursor: _Cursor) -> ClientHello:
    cursor.take(2 + 32)
    cursor.vector(1)
    cursor.vector(2)
    cursor.vector(1)
    name, alpn, hidden = None, tuple[str, ...](), False
    for kind, content in _extensions(cursor):
        if kind == _SERVER_NAME:
            name = _read_server_name(content)
        elif kind == _ALPN:
            alpn = tuple(_read_alpn(content))
        hidden = hidden or kind in _HIDDEN
    return ClientHello(name, alpn, hidden)


def _read_server_name(content: _Cursor) -> str:
    names = content.vector(2)
    kind = names.number(1)
    name = names.vector(2).rest()
    if kind or names or content or not name.isascii():
        raise TlsError("The server name in the ClientHello is not valid.")
    return name.decode("ascii")


def _read_alpn(content: _Cursor) -> Iterator[str]:
    protocols = content.vector(2)
    while protocols:
        yield protocols.vector(1).rest().decode("latin-1")


def _read_server_hello(cursor: _Cursor) -> ServerHello:
    version = cursor.number(2)
    random = bytes(cursor.take(32))
    cursor.vector(1)
    cursor.take(3)
    for kind, content in _extensions(cursor):
        if kind == _SUPPORTED_VERSIONS:
            version = content.number(2)
    return ServerHello(_VERSIONS.get(version, ""), random == _RETRY)
