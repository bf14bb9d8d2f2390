"""The asyncio ends: the link against an honest peer, the control channel against a scripted one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agentvm_kernel.errors import HeartbeatError, LinkClosedError, LinkError, ProofError, ProtocolError
from agentvm_kernel.link import connection
from agentvm_kernel.link.connection import Link, connect
from agentvm_kernel.link.control import MAX_LINE, ControlChannel
from agentvm_kernel.link.endpoint import Endpoint, UnixEndpoint, VsockEndpoint
from agentvm_kernel.link.limits import Limits
from agentvm_kernel.link.proof import GuestHandshake
from agentvm_kernel.link.session import Session

KEY = bytes(range(32))


class Echo(asyncio.Protocol):
    """An honest guest that sends every message back; a lazy one misses the first HELLO, a mute one takes nothing."""

    def __init__(self, *, lazy: bool = False, mute: bool = False, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._handshake = GuestHandshake(KEY, 1, self._limits)
        self._lazy = lazy
        self._mute = mute
        self.session: Session | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self._lazy:
            self._lazy = False
            return
        if self.session is None:
            done = self._handshake.feed(data)
            self.transport.write(self._handshake.take())
            if not done:
                return
            assert self._handshake.terms is not None
            self.session = Session(
                host=False, epoch=1, limits=self._limits, terms=self._handshake.terms, accept=lambda name: name != "no"
            )
            data = self._handshake.rest()
        for stream in self.session.feed(data):
            while not self._mute and not stream.queued and (message := stream.receive()) is not None:
                stream.send(message)
        self.flush()

    def flush(self) -> None:
        assert self.session is not None
        while data := self.session.take():
            self.transport.write(data)


@asynccontextmanager
async def echo_server(folder: Path, make: Callable[[], asyncio.Protocol] = Echo) -> AsyncIterator[UnixEndpoint]:
    path = str(folder / "link.sock")
    server = await asyncio.get_running_loop().create_unix_server(make, path)
    async with server:
        yield UnixEndpoint(path)
        server.close()


async def test_messages_of_every_size_come_back(short_tmp: Path) -> None:
    async with echo_server(short_tmp) as endpoint:
        link = await connect(endpoint, key=KEY, epoch=1)
        stream = await link.open("shell")
        for size in (0, 1, 70_000, 3 << 20):
            message = [b"head", bytes(size), b""]
            await stream.send(message)
            assert await stream.receive() == message
        assert link.epoch == 1
        assert link.dropped == 0
        await link.close()


async def test_a_repeated_hello_wakes_a_guest_that_missed_the_first(short_tmp: Path) -> None:
    async with echo_server(short_tmp, lambda: Echo(lazy=True)) as endpoint:
        link = await connect(endpoint, key=KEY, epoch=1)
        stream = await link.open("shell")
        await stream.send([b"x"])
        assert await stream.receive() == [b"x"]
        await link.close()


async def test_senders_on_one_stream_take_turns(short_tmp: Path) -> None:
    async with echo_server(short_tmp) as endpoint:
        link = await connect(endpoint, key=KEY, epoch=1)
        stream = await link.open("shell")
        messages = [[bytes([number]) * 2_000_000] for number in range(4)]

        async def receive_all() -> list[list[bytes]]:
            return [await stream.receive() for _ in messages]

        receiver = asyncio.create_task(receive_all())
        await asyncio.gather(*(stream.send(message) for message in messages))
        assert await receiver == messages
        await link.close()


async def test_an_ordinary_end_is_named_to_everybody(short_tmp: Path) -> None:
    async with echo_server(short_tmp) as endpoint:
        link = await connect(endpoint, key=KEY, epoch=1)
        stream = await link.open("shell")
        waiting = asyncio.create_task(stream.receive())
        await asyncio.sleep(0)
        await link.close()
        error = await link.wait_closed()
        assert isinstance(error, LinkClosedError)
        with pytest.raises(LinkClosedError, match="closed by this end"):
            await waiting
        with pytest.raises(LinkClosedError):
            await stream.receive()
        with pytest.raises(LinkClosedError):
            await link.open("iopub")
        await link.close()


async def test_a_link_that_is_closed_while_much_is_being_written_ends_well(short_tmp: Path) -> None:
    guest = Echo(mute=True)
    async with echo_server(short_tmp, lambda: guest) as endpoint:
        link = await connect(endpoint, key=KEY, epoch=1)
        stream = await link.open("shell")
        guest.transport.pause_reading()  # type: ignore[attr-defined]
        sending = asyncio.create_task(stream.send([bytes(4 << 20)]))
        await asyncio.sleep(0)
        closing = asyncio.create_task(link.close())
        await link.wait_closed()
        guest.transport.resume_reading()  # type: ignore[attr-defined]
        await closing
        with pytest.raises(LinkClosedError):
            await sending


async def test_what_came_before_the_end_can_still_be_received(short_tmp: Path) -> None:
    peers: list[Echo] = []

    def make() -> Echo:
        peers.append(Echo())
        return peers[-1]

    async with echo_server(short_tmp, make) as endpoint:
        link = await connect(endpoint, key=KEY, epoch=1)
        stream = await link.open("shell")
        await stream.send([b"last words"])
        assert await stream.receive() == [b"last words"]
        session = peers[0].session
        assert session is not None
        session.streams()[0].send([b"really the last"])
        session.bye("going down")
        peers[0].flush()
        error = await link.wait_closed()
        assert "The guest closed the link: going down" in error.message
        assert await stream.receive() == [b"really the last"]
        with pytest.raises(LinkClosedError, match="going down"):
            await stream.receive()


async def test_a_service_that_does_not_exist_ends_its_stream_only(short_tmp: Path) -> None:
    async with echo_server(short_tmp) as endpoint:
        link = await connect(endpoint, key=KEY, epoch=1)
        refused, fine = await link.open("no"), await link.open("shell")
        with pytest.raises(LinkClosedError, match="The guest closed stream no"):
            await refused.receive()
        with pytest.raises(LinkClosedError, match="The guest closed stream no"):
            await refused.send([b"x"])
        await fine.send([b"x"])
        assert await fine.receive() == [b"x"]
        fine.close()
        await link.close()


async def test_a_message_too_long_for_the_guest_is_refused_and_the_link_goes_on(short_tmp: Path) -> None:
    async with echo_server(short_tmp, lambda: Echo(limits=Limits(max_message=1000))) as endpoint:
        link = await connect(endpoint, key=KEY, epoch=1)
        stream = await link.open("shell")
        with pytest.raises(ProtocolError, match="over the link's 1000"):
            await stream.send([bytes(1000)])
        await stream.send([bytes(900)])
        assert await stream.receive() == [bytes(900)]
        await link.close()


async def test_a_send_that_waits_for_credit_can_be_cancelled(short_tmp: Path) -> None:
    async with echo_server(short_tmp, lambda: Echo(mute=True)) as endpoint:
        link = await connect(endpoint, key=KEY, epoch=1)
        stuck, free = await link.open("iopub"), await link.open("control")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await stuck.send([bytes(5 << 20)])
        await free.send([b"x"])
        await link.close()


async def test_a_guest_that_answers_pings_is_alive_and_a_held_link_asks_nothing(short_tmp: Path) -> None:
    async with echo_server(short_tmp) as endpoint:
        limits = Limits(heartbeat=0.02, silence=0.1)
        link = await connect(endpoint, key=KEY, epoch=1, limits=limits)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(link.wait_closed(), 0.4)
        async with link.hold():
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(link.wait_closed(), 0.2)
        stream = await link.open("shell")
        await stream.send([b"x"])
        assert await stream.receive() == [b"x"]
        await link.close()


class Recorder(Echo):
    """An echo that keeps what it was sent, and can be stopped like a paused VM."""

    def __init__(self) -> None:
        super().__init__()
        self.received = 0
        self.deaf = False

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        if not self.deaf:
            super().data_received(data)


async def test_a_held_link_writes_nothing_and_loses_nothing(short_tmp: Path) -> None:
    peer = Recorder()
    async with echo_server(short_tmp, lambda: peer) as endpoint:
        link = await connect(endpoint, key=KEY, epoch=1, limits=Limits(heartbeat=0.01))
        shell, control = await link.open("shell"), await link.open("control")
        large = asyncio.create_task(shell.send([bytes(3 << 20)]))
        async with link.hold():
            written = peer.received
            await control.send([b"short"])
            assert not large.done()
            await asyncio.sleep(0.1)
            assert peer.received == written
        async with asyncio.timeout(10):
            assert await control.receive() == [b"short"]
            assert await shell.receive() == [bytes(3 << 20)]
            await large
        await link.close()


async def test_a_link_is_held_once_the_guest_has_all_that_was_written(short_tmp: Path) -> None:
    peer = Recorder()
    async with echo_server(short_tmp, lambda: peer) as endpoint:
        link = await connect(endpoint, key=KEY, epoch=1)
        stream = await link.open("shell")
        peer.transport.pause_reading()
        sending = asyncio.create_task(stream.send([bytes(1 << 20)]))
        await asyncio.sleep(0)
        written = peer.received
        holding = asyncio.create_task(hold(link))
        await asyncio.wait([holding], timeout=0.1)
        assert not holding.done()
        assert peer.received == written
        peer.transport.resume_reading()
        await holding
        assert peer.received > written
        assert await stream.receive() == [bytes(1 << 20)]
        await sending
        await link.close()


async def hold(link: Link, *, drain: bool = True) -> None:
    async with link.hold(drain=drain):
        pass


async def test_a_guest_that_does_not_take_what_was_written_cannot_be_held_but_can_be_given_up(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_DRAINED", 0.05)
    peer = Recorder()
    async with echo_server(short_tmp, lambda: peer) as endpoint:
        link = await connect(endpoint, key=KEY, epoch=1)
        peer.deaf = True
        with pytest.raises(HeartbeatError):
            await hold(link)
        await hold(link, drain=False)
        await link.close()


async def test_a_link_that_ends_while_it_waits_to_be_held_says_why(short_tmp: Path) -> None:
    peer = Recorder()
    async with echo_server(short_tmp, lambda: peer) as endpoint:
        link = await connect(endpoint, key=KEY, epoch=1)
        peer.deaf = True
        holding = asyncio.create_task(hold(link))
        await asyncio.sleep(0)
        peer.transport.abort()
        with pytest.raises(LinkClosedError):
            await holding


@pytest.mark.parametrize("endpoint", [UnixEndpoint("/nowhere/at/all"), VsockEndpoint(cid=2, port=1)])
async def test_an_endpoint_where_nobody_listens_is_named(endpoint: Endpoint) -> None:
    with pytest.raises(LinkError, match="cannot be dialled"):
        await connect(endpoint, key=KEY, epoch=1, timeout=0.5)


async def test_a_key_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ProofError, match="5 bytes"):
        await connect(UnixEndpoint("/nowhere"), key=b"short", epoch=1)


async def test_a_cancelled_connect_leaves_no_connection(short_tmp: Path) -> None:
    lost = asyncio.Event()

    class Silent(asyncio.Protocol):
        def connection_lost(self, exc: Exception | None) -> None:
            lost.set()

    async with echo_server(short_tmp, Silent) as endpoint:
        task = asyncio.create_task(connect(endpoint, key=KEY, epoch=1))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(lost.wait(), 5)


def vsock_loopback() -> str | None:
    """Return why there is none."""
    try:
        with socket.socket(socket.AF_VSOCK) as listener, socket.socket(socket.AF_VSOCK) as dialler:
            listener.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
            listener.listen(1)
            dialler.settimeout(0.5)
            dialler.connect((1, listener.getsockname()[1]))
    except OSError as error:
        return f"vsock loopback does not work here ({error}): the module vsock_loopback is missing"
    return None


NO_LOOPBACK = vsock_loopback()


@pytest.mark.skipif(NO_LOOPBACK is not None, reason=NO_LOOPBACK or "")
async def test_the_link_works_over_vsock() -> None:
    listener = socket.socket(socket.AF_VSOCK)
    listener.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
    server = await asyncio.get_running_loop().create_server(Echo, sock=listener)
    async with server:
        link = await connect(VsockEndpoint(cid=1, port=listener.getsockname()[1]), key=KEY, epoch=1)
        stream = await link.open("shell")
        await stream.send([bytes(1 << 20)])
        assert await stream.receive() == [bytes(1 << 20)]
        await link.close()


class Script:
    """The other end of a control channel: answers each line by a function."""

    def __init__(self, answer: Callable[[dict[str, object]], bytes], greeting: bytes = b"") -> None:
        self._answer = answer
        self._greeting = greeting
        self.finished = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            writer.write(self._greeting)
            while line := await reader.readline():
                if line.strip():
                    writer.write(self._answer(json.loads(line)))
        writer.transport.abort()
        self.finished.set()


@asynccontextmanager
async def control_channel(
    folder: Path, script: Script
) -> AsyncIterator[tuple[ControlChannel, list[dict[str, object]]]]:
    path = folder / "control.sock"
    events: list[dict[str, object]] = []
    async with await asyncio.start_unix_server(script.serve, path):
        channel = await ControlChannel.connect(path, events.append)
        yield channel, events
        await channel.close()
        await script.finished.wait()


def reply(**fields: object) -> Callable[[dict[str, object]], bytes]:
    return lambda request: json.dumps({"id": request["id"], **fields}).encode() + b"\n"


async def test_requests_get_their_answers(short_tmp: Path) -> None:
    script = Script(lambda request: reply(ok=True, op=request["op"], sent=request["x"])(request))
    async with control_channel(short_tmp, script) as (channel, _):
        answers = await asyncio.gather(*(channel.request(f"op{x}", timeout=5, x=x) for x in range(5)))
    assert answers == [{"op": f"op{x}", "sent": x} for x in range(5)]


async def test_a_refusal_is_named_and_made_printable(short_tmp: Path) -> None:
    async with control_channel(short_tmp, Script(reply(ok=False, error="no\x1b[2Jway"))) as (channel, _):
        with pytest.raises(LinkError, match=r"refused 'identity': no\?\[2Jway"):
            await channel.request("identity", timeout=5)


async def test_remains_of_an_earlier_connection_are_skipped(short_tmp: Path) -> None:
    remains = b'"half": 3}\n\xff\xfe\n{"id": 4, "ok": true}\n{"event": "ready"}\n'
    async with control_channel(short_tmp, Script(reply(ok=True), remains)) as (channel, events):
        assert await channel.request("ping", timeout=5) == {}
        assert events == [{"event": "ready"}]


async def test_garbage_without_end_is_refused(short_tmp: Path) -> None:
    async with control_channel(short_tmp, Script(reply(ok=True), b"x" * (2 << 20))) as (channel, _):
        with pytest.raises(ProtocolError, match="No control line within"):
            await channel.request("ping", timeout=5)
        with pytest.raises(ProtocolError):
            await channel.request("ping", timeout=5)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"[]\n", "not a JSON object"),
        (b'{"event": "x"}\nnonsense\n', "not JSON"),
        (b"[" * 50_000 + b"\n", "No control line|not JSON|did not answer"),
        (b'{"event": "x"}\n' + b"y" * (MAX_LINE + 1), "length is over"),
    ],
)
async def test_lines_that_are_not_allowed_are_named(answer: bytes, message: str, short_tmp: Path) -> None:
    async with control_channel(short_tmp, Script(lambda _: answer)) as (channel, _):
        with pytest.raises(LinkError, match=message):
            await channel.request("ping", timeout=0.5)


@pytest.mark.parametrize("line", [b'{"event": "x"}\n', b"\n", b'{"event": "' + b"x" * 60_000 + b'"}\n'])
async def test_a_flood_is_read_slowly_and_the_channel_goes_on(line: bytes, short_tmp: Path) -> None:
    """Whoever owns a channel owns those of other VMs, too."""
    flood = line * (1200 if len(line) < 1024 else 20)
    async with control_channel(short_tmp, Script(reply(ok=True))) as (channel, _):
        assert await channel.request("ping", timeout=60) == {}
        transport = channel._transport
        assert transport is not None
        channel.data_received(flood)
        assert not transport.is_reading()
        assert await channel.request("ping", timeout=60) == {}


async def test_a_late_answer_disturbs_nobody(short_tmp: Path) -> None:
    late: list[bytes] = []

    def answer(request: dict[str, object]) -> bytes:
        line = reply(ok=True, op=request["op"])(request)
        if request["op"] == "slow":
            late.append(line)
            return b""
        return late.pop() + line

    async with control_channel(short_tmp, Script(answer)) as (channel, _):
        with pytest.raises(LinkError, match=r"did not answer 'slow' within 0\.1 s"):
            await channel.request("slow", timeout=0.1)
        assert await channel.request("quick", timeout=5) == {"op": "quick"}


async def test_the_end_of_the_port_fails_what_waits(short_tmp: Path) -> None:
    path = short_tmp / "control.sock"

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        writer.close()

    async with await asyncio.start_unix_server(hang_up, path):
        channel = await ControlChannel.connect(path, lambda event: None)
        with pytest.raises(LinkClosedError, match="control port is gone"):
            await channel.request("ping", timeout=5)
        await channel.close()


async def test_a_line_too_long_is_not_sent(short_tmp: Path) -> None:
    async with control_channel(short_tmp, Script(reply(ok=True))) as (channel, _):
        with pytest.raises(ProtocolError, match="over 65536"):
            await channel.request("ping", timeout=5, x="y" * MAX_LINE)


async def test_a_control_port_that_is_not_there_is_named(short_tmp: Path) -> None:
    with pytest.raises(LinkError, match="cannot be opened"):
        await ControlChannel.connect(short_tmp / "nothing", lambda event: None)
