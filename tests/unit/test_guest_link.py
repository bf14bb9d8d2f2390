"""The guest's end of the link: several callers, a port that outlives its connections, refusals."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
from agentvm_guest import link as link_module
from agentvm_guest.link import LinkServer
from agentvm_guest.loop import Loop
from agentvm_guest.ports import Port, accept, listen_unix
from agentvm_guest.relay import DELIMITER, Relay
from agentvm_guest.zmtp import ZmtpSocket, encode_message

from agentvm_kernel.link.frame import DATA, MAGIC, PING, PONG, encode_frame
from agentvm_kernel.link.limits import Limits
from agentvm_kernel.link.proof import HostHandshake
from agentvm_kernel.link.session import Session
from agentvm_kernel.link.stream import SessionStream

KEY = bytes(range(32))


class EchoServices:
    """Sends every message back; notes refusals."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.detachments = 0
        self.open: list[SessionStream] = []

    def accept(self, service: str) -> bool:
        return service == "echo"

    def changed(self, stream: SessionStream) -> None:
        if stream.closed:
            return
        if stream not in self.open:
            self.open.append(stream)
        while (message := stream.receive()) is not None:
            stream.send(message)

    def produce(self) -> bool:
        return False

    def detached(self) -> None:
        self.detachments += 1
        self.open.clear()

    def refused(self, reason: str) -> None:
        self.reasons.append(reason)


class SerialPort(Port):
    """A virtio-serial port as the kernel shows it: nothing can be read while the host end is not connected.

    The other end of a socket pair stands for QEMU; data that the host sent before it hung up is read first.
    """

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        super().__init__(ours.detach(), lasting=True)
        self.host = theirs
        self.host.setblocking(False)
        self.connected = False

    def read(self) -> bytes | None:
        data = super().read()
        if data is None and not self.connected:
            return b""
        return data

    def write(self, data: bytes | bytearray | memoryview) -> int:
        return super().write(data) if self.connected else 0


class Host:
    """The host's end over a blocking socket that a test steps through."""

    def __init__(self, sock: socket.socket, *, key: bytes = KEY, epoch: int = 1) -> None:
        self.sock = sock
        self.epoch = epoch
        self.handshake = HostHandshake(key, epoch, Limits())
        self.session: Session | None = None

    def receive(self) -> bytes:
        try:
            return self.sock.recv(1 << 20)
        except BlockingIOError:
            return b""

    def hello(self) -> None:
        self.sock.sendall(self.handshake.hello())

    def prove(self) -> None:
        proof = self.handshake.feed(self.receive())
        assert proof is not None
        self.sock.sendall(proof)
        assert self.handshake.terms is not None
        self.session = Session(host=True, epoch=self.epoch, limits=Limits(), terms=self.handshake.terms)

    def send(self, stream: SessionStream, message: list[bytes]) -> None:
        assert self.session is not None
        stream.send(message)
        self.sock.sendall(self.session.take())


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def services() -> EchoServices:
    return EchoServices()


@pytest.fixture
def server(loop: Loop, services: EchoServices) -> LinkServer:
    made = LinkServer(loop, services, Limits())
    made.rekey(KEY, 1)
    return made


def turn(loop: Loop) -> None:
    """Let the loop do all that is due."""
    for _ in range(3):
        loop.call_soon(loop.stop)
        loop.run()


@pytest.fixture
def port(loop: Loop, server: LinkServer) -> Iterator[SerialPort]:
    made = SerialPort()
    server.add(made)
    turn(loop)
    yield made
    made.host.close()
    os.close(made.fd)


def dial(loop: Loop, port: SerialPort, **changes: object) -> Host:
    port.connected = True
    host = Host(port.host, **changes)  # type: ignore[arg-type]
    host.hello()
    turn(loop)
    host.prove()
    turn(loop)
    return host


def echo(loop: Loop, host: Host, text: bytes) -> None:
    assert host.session is not None
    stream = host.session.open("echo")
    host.send(stream, [text])
    turn(loop)
    host.session.feed(host.receive())
    assert stream.receive() == [text]


def test_a_port_serves_one_connection_after_another(loop: Loop, port: SerialPort, services: EchoServices) -> None:
    for number in range(3):
        host = dial(loop, port)
        echo(loop, host, b"%d" % number)
        port.connected = False
        # The driver wakes its pollers when the host's state changes; on a socket pair a byte does.
        port.host.sendall(b"\x08")
        turn(loop)
    assert services.detachments >= 3


def test_a_new_connection_is_found_although_the_hang_up_was_missed(loop: Loop, port: SerialPort) -> None:
    dial(loop, port)
    echo(loop, dial(loop, port), b"second")


def test_a_half_sent_frame_is_flushed_by_the_repeated_hello(
    loop: Loop, port: SerialPort, services: EchoServices
) -> None:
    first = dial(loop, port)
    assert first.session is not None
    first.session.open("echo")
    port.host.sendall(first.session.take() + encode_frame(DATA, 2, 1, bytes(60_000))[:30_000])
    turn(loop)
    second = Host(port.host)
    second.hello()
    turn(loop)
    assert second.handshake.feed(second.receive()) is None
    port.host.setblocking(True)
    second.hello()
    port.host.setblocking(False)
    turn(loop)
    second.prove()
    turn(loop)
    echo(loop, second, b"second")
    assert services.reasons == []


def test_what_the_earlier_connection_left_unread_does_not_reach_the_next(
    loop: Loop, port: SerialPort, server: LinkServer
) -> None:
    host = dial(loop, port)
    assert host.session is not None
    stream = host.session.open("echo")
    stream.send([bytes(900_000)])
    while data := host.session.take():
        port.host.setblocking(True)
        port.host.sendall(data)
        port.host.setblocking(False)
        turn(loop)
    # Much of the echo waits in the agent; the host hangs up.
    port.connected = False
    port.host.sendall(b"\x08")
    turn(loop)
    while host.receive():
        pass
    echo(loop, dial(loop, port), b"fresh")


def test_a_wrong_proof_is_refused_and_the_port_stays_usable(
    loop: Loop, port: SerialPort, services: EchoServices
) -> None:
    port.connected = True
    liar = Host(port.host)
    liar.hello()
    turn(loop)
    proof = liar.handshake.feed(liar.receive())
    assert proof is not None
    port.host.sendall(proof[:-1] + bytes([proof[-1] ^ 1]))
    turn(loop)
    assert services.reasons == ["the proof is wrong"]
    assert b"wrong proof" in liar.receive()
    echo(loop, dial(loop, port), b"honest")


def test_nothing_is_accepted_before_the_proof(loop: Loop, port: SerialPort, services: EchoServices) -> None:
    port.connected = True
    host = Host(port.host)
    host.hello()
    turn(loop)
    host.receive()
    ping = encode_frame(PING, 0, 1, bytes(8))
    port.host.sendall(ping + encode_frame(3, 2, 1, b"echo") + encode_frame(DATA, 2, 1, b"\0\0\0\1\0\0\0\0"))
    turn(loop)
    assert host.receive() == b""
    assert services.open == []


def test_a_new_identity_ends_the_session_and_only_the_new_key_counts(
    loop: Loop, port: SerialPort, server: LinkServer, services: EchoServices
) -> None:
    dial(loop, port)
    server.rekey(bytes(32), 2)
    stale = Host(port.host)
    stale.hello()
    turn(loop)
    assert services.reasons == ["epoch 1 is not this VM's"]
    stale.receive()
    echo(loop, dial(loop, port, key=bytes(32), epoch=2), b"new")


def test_goodbye_is_said_and_the_next_connection_is_served(loop: Loop, port: SerialPort, server: LinkServer) -> None:
    host = dial(loop, port)
    server.goodbye("pause")
    assert host.session is not None
    host.session.feed(host.receive())
    assert host.session.goodbye == "pause"
    server.goodbye("nobody is there")
    echo(loop, dial(loop, port), b"again")


def test_the_hosts_goodbye_ends_the_session(loop: Loop, port: SerialPort, services: EchoServices) -> None:
    host = dial(loop, port)
    assert host.session is not None
    host.session.bye("done")
    port.host.sendall(host.session.take())
    turn(loop)
    assert services.detachments == 1
    echo(loop, dial(loop, port), b"again")


def test_pings_are_answered(loop: Loop, port: SerialPort) -> None:
    host = dial(loop, port)
    port.host.sendall(encode_frame(PING, 0, 1, b"12345678"))
    turn(loop)
    assert host.receive() == encode_frame(PONG, 0, 1, b"12345678")


@pytest.fixture
def address(loop: Loop, server: LinkServer, short_tmp: os.PathLike[str]) -> Iterator[str]:
    path = f"{short_tmp}/link.sock"
    with listen_unix(path) as listener:
        server.listen(listener)
        yield path
        server.reset()
        turn(loop)
        loop.remove(listener.fileno())


def call(loop: Loop, address: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(address)
    sock.setblocking(False)
    turn(loop)
    return sock


def test_unproven_connections_do_not_disturb_the_proven_one(loop: Loop, address: str, services: EchoServices) -> None:
    with call(loop, address) as idler, call(loop, address) as noisy, call(loop, address) as sock:
        host = Host(sock)
        host.hello()
        turn(loop)
        host.prove()
        turn(loop)
        noisy.sendall(bytes(100_000) + MAGIC)
        turn(loop)
        echo(loop, host, b"x")
        assert idler.fileno() >= 0
    assert services.reasons == []


def test_at_most_eight_unproven_connections_are_kept(loop: Loop, address: str, services: EchoServices) -> None:
    socks = [call(loop, address) for _ in range(9)]
    assert socks[8].recv(1) == b""
    assert services.reasons == ["more than 8 connections without a proof"]
    with pytest.raises(BlockingIOError):
        socks[0].recv(1)
    for sock in socks:
        sock.close()
    turn(loop)


def test_a_connection_without_a_proof_ends_in_time(
    loop: Loop, address: str, services: EchoServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "_PROOF_SECONDS", 0.05)
    with call(loop, address) as sock:
        loop.call_later(0.2, loop.stop)
        loop.run()
        assert sock.recv(1) == b""
    assert services.reasons == ["no proof within 0.05 s"]


def test_a_proven_connection_has_no_deadline(
    loop: Loop, address: str, services: EchoServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "_PROOF_SECONDS", 0.1)
    with call(loop, address) as sock:
        host = Host(sock)
        host.hello()
        turn(loop)
        host.prove()
        loop.call_later(0.3, loop.stop)
        loop.run()
        echo(loop, host, b"still there")


def test_a_refused_connection_is_closed(loop: Loop, address: str, services: EchoServices) -> None:
    with call(loop, address) as sock:
        host = Host(sock, epoch=9)
        host.hello()
        turn(loop)
        assert b"epoch 9" in sock.recv(1000)
        assert sock.recv(1) == b""
    assert services.reasons == ["epoch 9 is not this VM's"]


def test_garbage_from_a_proven_connection_ends_it(loop: Loop, address: str, services: EchoServices) -> None:
    with call(loop, address) as sock:
        host = Host(sock)
        host.hello()
        turn(loop)
        host.prove()
        sock.sendall(b"\xee" * 100)
        turn(loop)
        assert host.receive() == b""
        assert services.detachments == 1


def test_accepting_when_nobody_calls_gives_nothing(short_tmp: os.PathLike[str]) -> None:
    with listen_unix(f"{short_tmp}/s") as listener:
        assert accept(listener) is None


class RelayServices(EchoServices):
    """The relay between the link and one pretended socket of ipykernel's."""

    def __init__(self, loop: Loop, messages: ZmtpSocket) -> None:
        super().__init__()
        self.relay = Relay(loop.set_writing, self.reasons.append)
        self.handlers = self.relay.connect({"iopub": messages})

    def accept(self, service: str) -> bool:
        return service == "iopub"

    def changed(self, stream: SessionStream) -> None:
        self.relay.attach(stream)

    def produce(self) -> bool:
        return self.relay.to_host()


class NarrowPort(SerialPort):
    """A port that takes nothing until it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.full = False

    def write(self, data: bytes | bytearray | memoryview) -> int:
        return 0 if self.full else super().write(data)


def test_output_that_waited_for_room_goes_on_as_soon_as_there_is_room(loop: Loop, short_tmp: os.PathLike[str]) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{short_tmp}/kernel")
        listener.listen()
        messages = ZmtpSocket(f"{short_tmp}/kernel", "DEALER", b"me", 1 << 20, 100)
        kernel, _ = listener.accept()
    services = RelayServices(loop, messages)
    server = LinkServer(loop, services, Limits())
    server.rekey(KEY, 1)
    port = NarrowPort()
    server.add(port)
    for fd, handler in services.handlers.items():
        loop.add(fd, lambda handler=handler: (handler(), server.pump()))  # type: ignore[misc]
    host = dial(loop, port)
    assert host.session is not None
    stream = host.session.open("iopub")
    port.host.sendall(host.session.take())
    kernel.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(52, b"\0") + b"\x04\x06\x05READY")
    turn(loop)
    parts = [b'{"msg_type": "stream"}', b"{}", b"{}"]
    port.full = True
    for content in (bytes(200_000), b"second"):
        kernel.sendall(encode_message([DELIMITER, b"", *parts, content]))
        turn(loop)
    port.full = False
    # Only this tells the agent that there is room; nothing else happens any more.
    port.host.sendall(encode_frame(PING, 0, 1, bytes(8)))
    turn(loop)
    received = []
    while data := host.receive():
        host.session.feed(data)
        received += [message[3] for message in iter(stream.receive, None)]
    assert received == [bytes(200_000), b"second"]
    for resource in (kernel, port.host, messages):
        resource.close()
    os.close(port.fd)
