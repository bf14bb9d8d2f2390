"""The guest's end of the link: connections, proofs, and the one session that counts."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Protocol

from agentvm_guest.loop import Loop, Timer
from agentvm_guest.ports import Port, accept
from agentvm_kernel.errors import ProofError, ProtocolError
from agentvm_kernel.link.limits import Limits
from agentvm_kernel.link.proof import GuestHandshake
from agentvm_kernel.link.session import Session
from agentvm_kernel.link.stream import SessionStream

_MAX_UNPROVEN = 8
_PROOF_SECONDS = 5.0
_READS_PER_TURN = 16
_ROUNDS_PER_TURN = 16


class Services(Protocol):
    """What a session's streams lead to; the agent."""

    def accept(self, service: str) -> bool:
        """Return whether there is such a service."""
        ...

    def changed(self, stream: SessionStream) -> None:
        """Take a stream on which something happened, perhaps for the first time."""
        ...

    def produce(self) -> bool:
        """Send what is there to be sent; returns whether more may be there, for want of credit or room."""
        ...

    def detached(self) -> None:
        """Forget all streams: the session ended."""
        ...

    def refused(self, reason: str) -> None:
        """Report that a connection was refused."""
        ...


class Peer:
    """One connection, first in its handshake, then perhaps with the session."""

    def __init__(self, server: LinkServer, port: Port) -> None:
        self._server = server
        self.port = port
        self.handshake = server.new_handshake()
        self.session: Session | None = None
        self.deadline: Timer | None = None
        self._out = memoryview(b"")

    def handle(self) -> None:
        """Read and write until the port would block; called by the loop."""
        for _ in range(_READS_PER_TURN):
            data = self.port.read()
            if data is None:
                break
            if not data:
                self._hang_up()
                return
            self._take(data)
            if self._server.is_closed(self):
                return
            if self.port.drained_by(data):
                break
        else:
            self._server.again(self)
        self._server.pump(self)

    def flush(self) -> bool:
        """Write what waits; returns whether anything was written."""
        written = False
        while True:
            if not self._out:
                data = self.session.take() if self.session is not None else self.handshake.take()
                if not data:
                    self._server.set_writing(self, False)
                    return written
                self._out = memoryview(data)
            sent = self.port.write(self._out)
            if not sent:
                self._server.set_writing(self, True)
                return written
            self._out = self._out[sent:]
            written = True

    def restart(self, rest: bytes = b"") -> None:
        """Forget the session and wait for a new HELLO, which may be in the bytes that follow."""
        self.session = None
        self._out = memoryview(b"")
        self.handshake = self._server.new_handshake()
        if rest:
            self._take(rest)

    def _take(self, data: bytes) -> None:
        try:
            if self.session is None:
                self._shake(data)
            else:
                self._feed(data)
        except ProofError as error:
            self.flush()
            self._server.refuse(self, error.message)
            if not self._server.is_closed(self):
                self._take(b"")
        except ProtocolError:
            rest = self.session.rest() if self.session is not None else b""
            self._server.end(self, rest)

    def _shake(self, data: bytes) -> None:
        if not self.handshake.feed(data):
            return
        assert self.handshake.terms is not None
        # The answer to a HELLO that was repeated; the session's frames come after it.
        self.flush()
        self.session = self._server.new_session(self.handshake)
        self._server.prove(self)
        self._feed(self.handshake.rest())

    def _feed(self, data: bytes) -> None:
        assert self.session is not None
        # Several frames are one reason to look at a stream.
        for stream in dict.fromkeys(self.session.feed(data)):
            self._server.services.changed(stream)
        if self.session is not None and self.session.goodbye is not None:
            self._server.end(self, self.session.rest())

    def _hang_up(self) -> None:
        # Whoever dialled had the agent's HELLO and its proof, and left without one of their own.
        if self.session is None and not self.port.lasting:
            self._server.services.refused("hung up without a proof")
        # What an interrupted connection left unsent must not greet the next one.
        self._server.end(self, b"")


class LinkServer:
    """Holds the connections: several unproven ones, of which the latest to prove itself gets the session.

    Args:
        loop: The agent's loop.
        services: What streams lead to.
        limits: Bounds of this end.
    """

    def __init__(self, loop: Loop, services: Services, limits: Limits) -> None:
        self._loop = loop
        self.services = services
        self._limits = limits
        self._key: bytes | None = None
        self._epoch = 0
        self._peers: dict[int, Peer] = {}
        self._active: Peer | None = None
        self._listener: socket.socket | None = None

    def listen(self, listener: socket.socket) -> None:
        """Take connections from a listening socket."""
        self._listener = listener
        self._loop.add(listener.fileno(), self._on_listener)

    def add(self, port: Port) -> None:
        """Take a connection, or a virtio-serial port."""
        peer = self._peers[port.fd] = Peer(self, port)
        if not port.lasting:
            peer.deadline = self._loop.call_later(_PROOF_SECONDS, lambda: self._expire(peer))
        self._loop.add(port.fd, peer.handle)

    @property
    def roomy(self) -> bool:
        """Whether there is a session, and room for more of what it is to send."""
        return self._active is not None and self._active.session is not None and self._active.session.roomy

    def open(self, service: str) -> SessionStream:
        """Open a stream to the host.

        Args:
            service: What it is for.

        Raises:
            ProtocolError: there is no session, or too many streams are open.
        """
        if self._active is None or self._active.session is None:
            raise ProtocolError("There is no link.")
        return self._active.session.open(service)

    def rekey(self, key: bytes | None, epoch: int) -> None:
        """Take the VM's new key and epoch; connections that rest on the old ones end. Without a key all are refused."""
        self.goodbye("the VM has a new identity")
        self._key, self._epoch = key, epoch
        self.reset()

    def reset(self) -> None:
        """End all connections; the host may dial again."""
        for peer in list(self._peers.values()):
            self.end(peer, b"")

    def goodbye(self, reason: str) -> None:
        """End the session with a reason that the host is told."""
        peer = self._active
        if peer is not None and peer.session is not None:
            peer.session.bye(reason)
            peer.flush()
            self.end(peer, b"")

    def pump(self, peer: Peer | None = None) -> None:
        """Let data flow until nothing moves; called after whatever may have given room or data."""
        if peer is not None and peer is not self._active:
            peer.flush()
            return
        for _ in range(_ROUNDS_PER_TURN):
            if self._active is None:
                return
            more = self.services.produce()
            # What was written made room for what had to wait. Without that, credit has to come first.
            if self._active is None or not self._active.flush() or not more:
                return
        self._loop.call_soon(self.pump)

    # What follows is called by `Peer`.

    def new_handshake(self) -> GuestHandshake:
        """Return a handshake with the present key and epoch."""
        return GuestHandshake(self._key, self._epoch, self._limits)

    def new_session(self, handshake: GuestHandshake) -> Session:
        """Return a session for a proven connection."""
        assert handshake.terms is not None
        accept_service: Callable[[str], bool] = self.services.accept
        return Session(host=False, epoch=self._epoch, limits=self._limits, terms=handshake.terms, accept=accept_service)

    def prove(self, peer: Peer) -> None:
        """Make a proven connection the one that counts."""
        if peer.deadline is not None:
            peer.deadline.cancel()
        old, self._active = self._active, peer
        if old is not None:
            self.services.detached()
            if old is not peer:
                self._drop(old)

    def refuse(self, peer: Peer, reason: str) -> None:
        """Report a wrong proof and end the connection; a virtio-serial port stays."""
        self.services.refused(reason)
        if not peer.port.lasting:
            self._drop(peer)

    def end(self, peer: Peer, rest: bytes) -> None:
        """End a connection; on a virtio-serial port the next may begin in the bytes that follow."""
        if peer is self._active:
            self._active = None
            self.services.detached()
        if peer.port.lasting:
            peer.restart(rest)
        else:
            self._drop(peer)

    def set_writing(self, peer: Peer, wanted: bool) -> None:
        """Ask the loop to say when a connection has room again."""
        if not self.is_closed(peer):
            self._loop.set_writing(peer.port.fd, wanted)

    def again(self, peer: Peer) -> None:
        """Let a connection go on in the next turn."""
        self._loop.call_soon(lambda: None if self.is_closed(peer) else peer.handle())

    def is_closed(self, peer: Peer) -> bool:
        """Return whether a connection is gone."""
        return self._peers.get(peer.port.fd) is not peer

    def _on_listener(self) -> None:
        assert self._listener is not None
        while (port := accept(self._listener)) is not None:
            if sum(peer.session is None for peer in self._peers.values()) >= _MAX_UNPROVEN:
                port.close()
                self.services.refused(f"more than {_MAX_UNPROVEN} connections without a proof")
            else:
                self.add(port)

    def _expire(self, peer: Peer) -> None:
        if not self.is_closed(peer):
            self.services.refused(f"no proof within {_PROOF_SECONDS:g} s")
            self._drop(peer)

    def _drop(self, peer: Peer) -> None:
        if self.is_closed(peer):
            return
        del self._peers[peer.port.fd]
        if peer.deadline is not None:
            peer.deadline.cancel()
        self._loop.remove(peer.port.fd)
        peer.port.close()
