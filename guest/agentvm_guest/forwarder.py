"""The forwarder: a process beside the agent that carries programs' TCP connections, with their names, to the host.

It is started by the agent, which hands it the VM's identity, and it has the virtio-serial port for egress to itself: a
download does not delay cells. On the link it opens a stream for each connection; the host opens one for settings, and
one on which it is told what was taken out of the inbox.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import os
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from agentvm_guest import network, trust
from agentvm_guest.connection import Connection, close
from agentvm_guest.control import ControlPort, Reply
from agentvm_guest.inbox import Inbox, open_inbox
from agentvm_guest.link import LinkServer
from agentvm_guest.loop import Loop, Timer
from agentvm_guest.ports import Port, listen_unix, open_virtio_port
from agentvm_guest.resolver import Names, Resolver
from agentvm_kernel.errors import ProtocolError
from agentvm_kernel.link.frame import DATA_CHUNK
from agentvm_kernel.link.inbox import SERVICE as INBOX
from agentvm_kernel.link.limits import Limits
from agentvm_kernel.link.stream import SessionStream

EGRESS_PORT = "agentvm.egress"
CONNECTION = "tcp"
SETTINGS = "network"

# The host has proven itself: it may send as many pings as it likes.
LIMITS = Limits(window=256 << 10, max_message=(64 << 10) + 8, max_parts=2, max_streams=1024, idle_frames=1 << 62)
# A message of one part that fills a frame.
_HEAD = 8
_PIECE = DATA_CHUNK - _HEAD
_MAX_CONNECTIONS = 1000
# Fewer than what the host takes for an attack.
_BURST = 1000
_EARNED, _PACE = 50, 0.1
_ACCEPTS_PER_TURN = 32
_LINK_SECONDS = 10.0
# A download costs less the more of it comes with one read.
_READ = 256 << 10
# One write moves at most this; a frame is at most twice as long, and a header.
_FLUSH, _FLUSH_WRITES = 32 << 10, 3


class Forwarder:
    """Puts the parts together.

    Args:
        loop: The process's loop.
        names: The names' addresses.
        destination: Returns where a connection was to lead; an ``OSError`` of it ends the connection.
        on_environment: Called with variables for the user's programs, and with what is to be called when they are set.
        set_authority: See `agentvm_guest.trust`.
        inbox: Where the host may lay what is too much for the link, if there is one.
    """

    def __init__(
        self,
        loop: Loop,
        names: Names,
        destination: Callable[[socket.socket], tuple[str, int]],
        on_environment: Callable[[dict[str, str], Reply], None],
        set_authority: Callable[[str | None], dict[str, str]],
        inbox: Inbox | None = None,
    ) -> None:
        self._loop = loop
        self._names = names
        self._destination = destination
        self._on_environment = on_environment
        self._set_authority = set_authority
        self._inbox = inbox
        if inbox is not None:
            inbox.on_taken = self._tell_taken
        self._taken: SessionStream | None = None
        self.link = LinkServer(loop, self, LIMITS)
        self._network = "filtered"
        self._is_up = False
        self._is_absent = False
        self._patience: Timer | None = None
        self._connections: dict[socket.socket, Connection] = {}
        self._by_stream: dict[SessionStream, Connection] = {}
        self._readable: dict[Connection, None] = {}
        self._starved: set[Connection] = set()
        self._allowance = _BURST

    @property
    def refuses(self) -> bool:
        """Whether there is no network at all."""
        return self._network == "none" or (self._is_absent and not self._is_up)

    def serve(self, listener: socket.socket) -> None:
        """Take redirected connections."""
        self._loop.add(listener.fileno(), partial(self._then_pump, partial(self._on_listener, listener)))

    def identify(self, key: bytes, epoch: int) -> None:
        """Take the VM's new identity: connections over the old one's link end, those that wait go on waiting."""
        self.link.rekey(key, epoch)
        self._expect()

    def set_network(self, mode: str) -> None:
        """Take what the owner says about the network, ``filtered`` or ``none``."""
        self._network = mode
        if mode == "none":
            self._reset_all()
        self._expect()

    # The link's services.

    def accept(self, service: str) -> bool:
        """Return whether there is such a service."""
        return service == SETTINGS or (service == INBOX and self._inbox is not None)

    def changed(self, stream: SessionStream) -> None:
        """Take a stream on which something happened."""
        connection = self._by_stream.get(stream)
        if connection is not None:
            self._from_host(connection)
            if connection in self._starved:
                self._starved.discard(connection)
                self._readable[connection] = None
        elif stream.ended:
            stream.close()
        elif stream.service == INBOX:
            self._open_inbox(stream)
        elif stream.service == SETTINGS:
            while (parts := stream.receive()) is not None:
                self._configure(stream, parts[0])

    def produce(self) -> bool:
        """Send what programs have; returns whether there may be more, for want of room."""
        for connection in list(self._readable):
            if not self.link.roomy:
                break
            # One may end others: it may end the link.
            if connection in self._readable:
                del self._readable[connection]
                self._to_host(connection)
        return bool(self._readable)

    def detached(self) -> None:
        """End all connections: their link has ended."""
        self._is_up = False
        self._taken = None
        for connection in list(self._by_stream.values()):
            self._reset(connection)
        self._expect()

    def refused(self, reason: str) -> None:
        """Do nothing: only the owner can dial."""

    # Settings.

    def _configure(self, stream: SessionStream, message: bytes) -> None:
        try:
            settings = json.loads(message)
            environment = self._set_authority(settings["authority"]) | settings["environment"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            stream.send([json.dumps({"ok": False, "error": str(error)[:200]}).encode()])
            return
        self._on_environment(environment, lambda answer: self._answer(stream, answer))
        self._is_up = True
        for connection in list(self._connections.values()):
            if connection.stream is None:
                self._open(connection)

    def _answer(self, stream: SessionStream, answer: dict[str, object]) -> None:
        if not (stream.closed or stream.ended):
            stream.send([json.dumps(answer).encode()])
            self.link.pump()

    def _expect(self) -> None:
        """Begin to wait for the link, if there is none."""
        if self._patience is not None:
            self._patience.cancel()
        self._is_absent = False
        self._patience = self._loop.call_later(_LINK_SECONDS, self._give_up)

    def _give_up(self) -> None:
        if not self._is_up:
            self._is_absent = True
            self._reset_all()

    # Connections.

    def _on_listener(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPTS_PER_TURN):
            # Those that wait are taken when there is an allowance again.
            if not self._allowance:
                return
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            if self._allowance == _BURST:
                self._loop.call_later(_PACE, partial(self._earn, listener))
            self._allowance -= 1
            self._take(sock)
        self._loop.call_soon(partial(self._then_pump, partial(self._on_listener, listener)))

    def _earn(self, listener: socket.socket) -> None:
        had_to_wait = not self._allowance
        self._allowance = min(_BURST, self._allowance + _EARNED)
        if self._allowance < _BURST:
            self._loop.call_later(_PACE, partial(self._earn, listener))
        if had_to_wait:
            self._then_pump(partial(self._on_listener, listener))

    def _take(self, sock: socket.socket) -> None:
        """Take a program's connection."""
        try:
            address, port = self._destination(sock)
        except OSError:
            close(sock, reset=True)
            return
        if self.refuses or len(self._connections) >= _MAX_CONNECTIONS:
            close(sock, reset=True)
            return
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        opening = {"name": self._names.name(address), "address": address, "port": port}
        connection = self._connections[sock] = Connection(sock, json.dumps(opening).encode(), self._inbox)
        if self._is_up:
            self._open(connection)

    def _open(self, connection: Connection) -> None:
        try:
            connection.stream = stream = self.link.open(CONNECTION)
        except ProtocolError:
            # The host has not yet let go of as many as there may be.
            self._reset(connection)
            return
        self._by_stream[stream] = connection
        stream.send([connection.opening])
        self._readable[connection] = None
        self._loop.add(connection.sock.fileno(), partial(self._then_pump, partial(self._on_socket, connection)))

    def _then_pump(self, handler: Callable[[], None]) -> None:
        try:
            handler()
        except ProtocolError:
            self.link.reset()
        self.link.pump()

    def _on_socket(self, connection: Connection) -> None:
        """Note that there is something to read, or room."""
        if connection.pending:
            self._from_host(connection)
        if connection.ended:
            # Nobody reads any more, where a reset would be noticed.
            if connection.sock.fileno() >= 0 and connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._reset(connection)
        elif connection.sock.fileno() >= 0 and connection not in self._starved:
            self._readable[connection] = None

    def _from_host(self, connection: Connection) -> None:
        stream = connection.stream
        assert stream is not None
        try:
            all_taken = connection.take()
        except OSError:
            self._reset(connection)
            return
        self._loop.set_writing(connection.sock.fileno(), bool(connection.pending))
        if all_taken and (stream.ended or (connection.host_ended and connection.ended)):
            self._finish(connection, reset=not connection.host_ended)

    def _to_host(self, connection: Connection) -> None:
        """Send a piece of what the program has sent, if there is credit."""
        stream = connection.stream
        assert stream is not None
        if stream.queued:
            self._readable[connection] = None
            return
        # What goes beyond the credit would wait here, behind which nothing else is noticed.
        size = min(_PIECE, stream.room - _HEAD)
        if size <= 0:
            self._starved.add(connection)
            return
        try:
            data = connection.sock.recv(size)
        except BlockingIOError:
            return
        except OSError:
            self._reset(connection)
            return
        stream.send([data])
        if data:
            self._readable[connection] = None
            return
        connection.ended = True
        if connection.host_ended and not connection.pending:
            self._finish(connection, reset=False)

    def _reset(self, connection: Connection) -> None:
        self._finish(connection, reset=True)

    def _finish(self, connection: Connection, *, reset: bool) -> None:
        """Let go of a connection at both sides."""
        del self._connections[connection.sock]
        if connection.stream is not None:
            del self._by_stream[connection.stream]
            connection.stream.close()
            self._loop.remove(connection.sock.fileno())
        self._readable.pop(connection, None)
        self._starved.discard(connection)
        connection.close(reset=reset)

    def _open_inbox(self, stream: SessionStream) -> None:
        """Tell the host, once, that it can be used."""
        if self._inbox is not None and self._taken is None:
            self._taken = stream
            stream.send([b""])

    def _tell_taken(self, token: bytes) -> None:
        """Tell the host that a slot of the inbox is free."""
        if self._taken is not None and not self._taken.ended:
            self._taken.send([token])

    def _reset_all(self) -> None:
        for connection in list(self._connections.values()):
            self._reset(connection)


class Process:
    """The forwarder as the agent's child, with which it exchanges lines.

    Args:
        fd: The socket to the agent.
        unprivileged: For tests: a folder for the link's socket; no interface and no rules.
    """

    def __init__(self, fd: int, unprivileged: Path | None) -> None:
        self.loop = Loop()
        names = Names(ipaddress.IPv4Network("127.18.0.0/16")) if unprivileged else Names()
        self.forwarder = Forwarder(
            self.loop, names,
            socket.socket.getsockname if unprivileged else network.original_destination,
            self._pass_on,
            (lambda _pem: {}) if unprivileged else trust.set_authority,
            open_inbox(unprivileged and unprivileged / "inbox"),
        )  # fmt: skip
        self._resolver = Resolver(self.loop, names, lambda: self.forwarder.refuses)
        self._waiting: dict[int, Reply] = {}
        self._number = 0
        self._unprivileged = unprivileged
        self._agent = ControlPort(self.loop, Port(fd, lasting=False), self._on_line, self.loop.stop)

    def run(self) -> None:
        """Serve until the agent is gone."""
        if self._unprivileged is None:
            self._become()
        else:
            self._become_for_tests(self._unprivileged)
        self._agent.send({"id": 0, "op": "up"})
        self.loop.run()

    def _become(self) -> None:
        # It wakes up for every packet, and must not displace a cell each time.
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        network.set_up()
        self._resolver.serve(*network.listen("127.0.0.1", network.DNS_PORT))
        self.forwarder.serve(network.listen("127.0.0.1", network.FORWARDER_PORT)[1])
        port = open_virtio_port(EGRESS_PORT, _READ)
        # If there was a forwarder before, its host must not wait for an answer: this ends whatever it had begun to say,
        # and is no frame.
        for _ in range(_FLUSH_WRITES):
            port.write(bytes(_FLUSH))
        self.forwarder.link.add(port)

    def _become_for_tests(self, folder: Path) -> None:
        datagrams, queries = network.listen("127.0.0.1", 0)
        _, listener = network.listen("", 0, b"lo")
        self._resolver.serve(datagrams, queries)
        self.forwarder.serve(listener)
        self.forwarder.link.listen(listen_unix(str(folder / "egress.sock")))
        (folder / "ports").write_text(f"{datagrams.getsockname()[1]} {listener.getsockname()[1]}")

    def _on_line(self, line: dict[str, object], _reply: Reply) -> None:
        operation = line.get("op")
        if operation == "identity":
            self.forwarder.identify(bytes.fromhex(str(line["key"])), int(str(line["epoch"])))
        elif operation == "network":
            self.forwarder.set_network(str(line["network"]))
        elif operation == "environment" and (reply := self._waiting.pop(int(str(line["id"])), None)) is not None:
            reply({"ok": True} if line.get("ok") is True else {"ok": False, "error": line.get("error")})

    def _pass_on(self, environment: dict[str, str], reply: Reply) -> None:
        """Let the agent put variables into the environment of the user's programs."""
        self._number += 1
        self._waiting = {self._number: reply}
        self._agent.send({"id": self._number, "op": "environment", "environment": environment})


def main(arguments: list[str]) -> None:
    """Run the forwarder."""
    parser = argparse.ArgumentParser(description="The forwarder inside an AgentVM virtual machine.")
    parser.add_argument("fd", type=int, help="the socket to the agent")
    parser.add_argument("--unprivileged", type=Path, help="for tests: sockets in this folder, nothing privileged")
    options = parser.parse_args(arguments)
    Process(options.fd, options.unprivileged).run()


if __name__ == "__main__":
    main(sys.argv[1:])
