"""The tunnel against a guest that speaks the protocol by hand: everything is bounded, and only that guest loses."""

from __future__ import annotations

import asyncio
import json
import os
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from kernel_harness import within

from agentvm_kernel.egress import tunnel as tunnel_module
from agentvm_kernel.egress.channel import PIECE, Channel, Opening
from agentvm_kernel.egress.tunnel import LIMITS, Bounds, NetworkSettings, Tunnel, read_opening
from agentvm_kernel.errors import LinkError, ProtocolError
from agentvm_kernel.link import frame as f
from agentvm_kernel.link.endpoint import UnixEndpoint
from agentvm_kernel.link.frame import encode_frame
from agentvm_kernel.link.inbox import SLOTS, decode
from agentvm_kernel.link.limits import Limits
from agentvm_kernel.link.proof import GuestHandshake
from agentvm_kernel.link.session import Session
from agentvm_kernel.link.stream import SessionStream

KEY = bytes(32)
OPENING = json.dumps({"name": "pypi.example", "address": "198.18.0.2", "port": 443}).encode()
BOUNDS = Bounds(openings_per_second=0.0, burst=50, opening_seconds=60.0, served=8)


class Guest:
    """The guest's end of a link, which does what the test says."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.session: Session | None = None
        self.reply = b'{"ok": true}'
        self.settings: list[object] = []
        self.inbox: SessionStream | None = None

    async def run(self) -> None:
        handshake = GuestHandshake(KEY, 1, Limits())
        while not handshake.feed(await self._reader.read(65536)):
            self._writer.write(handshake.take())
        assert handshake.terms is not None
        limits = Limits(max_streams=10_000)
        self.session = Session(host=False, epoch=1, limits=limits, terms=handshake.terms, accept=lambda _: True)
        data = handshake.rest()
        while True:
            for stream in self.session.feed(data):
                if stream.service == "inbox":
                    self.inbox = stream
                if stream.service == "network" and not stream.ended and (parts := stream.receive()) is not None:
                    self.settings.append(json.loads(parts[0]))
                    stream.send([self.reply])
            self.flush()
            if not (data := await self._reader.read(65536)):
                return

    def open(self, first: bytes | None = OPENING) -> SessionStream:
        assert self.session is not None
        stream = self.session.open("tcp")
        if first is not None:
            stream.send([first])
        self.flush()
        return stream

    def answer(self, *tokens: bytes) -> None:
        """Say that something was taken out of the inbox."""
        assert self.inbox is not None
        for token in tokens:
            self.inbox.send([token])
        self.flush()

    def raw(self, data: bytes) -> None:
        self._writer.write(data)

    def flush(self) -> None:
        assert self.session is not None
        while data := self.session.take():
            self._writer.write(data)

    def end(self) -> None:
        self._writer.close()


class Served:
    """What the tunnel hands on."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[tuple[Opening, Channel]] = asyncio.Queue()
        self.finish = asyncio.Event()

    async def __call__(self, opening: Opening, channel: Channel) -> None:
        self.queue.put_nowait((opening, channel))
        await self.finish.wait()


@asynccontextmanager
async def connected(
    folder: Path, bounds: Bounds = BOUNDS, prepare: Callable[[Guest], None] = lambda _: None
) -> AsyncIterator[tuple[Guest, Tunnel, Served]]:
    guests: list[Guest] = []

    async def on_guest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        guest = Guest(reader, writer)
        guests.append(guest)
        prepare(guest)
        try:
            await guest.run()
        finally:
            guest.end()

    server = await asyncio.start_unix_server(on_guest, folder / "egress.sock")
    served = Served()
    try:
        endpoint = UnixEndpoint(str(folder / "egress.sock"))
        settings, inbox = NetworkSettings("PEM", {"A": "b"}), os.open(folder, os.O_TMPFILE | os.O_RDWR)
        tunnel = await Tunnel.open(endpoint, KEY, 1, served, settings, inbox=inbox, bounds=bounds)
        try:
            yield guests[0], tunnel, served
        finally:
            served.finish.set()
            await tunnel.close()
    finally:
        for guest in guests:
            guest.end()
        server.close()
        await server.wait_closed()


async def message_of(stream: SessionStream) -> list[bytes]:
    """Wait for the next message from the host."""
    found: list[list[bytes] | None] = [None]

    def received() -> bool:
        found[0] = stream.receive()
        return found[0] is not None

    await within(received)
    assert found[0] is not None
    return found[0]


async def test_settings_are_told_first_and_what_the_guest_opens_is_served(short_tmp: Path) -> None:
    async with connected(short_tmp) as (guest, tunnel, served):
        assert guest.settings == [{"authority": "PEM", "environment": {"A": "b"}}]
        guest.open()
        opening, _ = await served.queue.get()
        assert opening == Opening("pypi.example", "198.18.0.2", 443)
        await tunnel.configure(NetworkSettings())
        assert guest.settings[1:] == [{"authority": None, "environment": {}}]


async def test_settings_that_the_guest_refuses_are_an_error(short_tmp: Path) -> None:
    def refuse(guest: Guest) -> None:
        guest.reply = b'{"ok": false, "error": "disk\x1b full"}'

    with pytest.raises(LinkError, match=r"refused.*disk\? full"):
        async with connected(short_tmp, prepare=refuse):
            pass


async def test_many_small_messages_are_handed_on_at_once(short_tmp: Path) -> None:
    async with connected(short_tmp) as (guest, _, served):
        stream = guest.open()
        _, channel = await served.queue.get()
        for _ in range(1000):
            stream.send([b"x"])
        stream.send([b""])
        guest.flush()
        received = [await channel.receive()]
        while received[-1]:
            received.append(await channel.receive())
        assert b"".join(received) == b"x" * 1000
        assert len(received) < 100


async def test_answers_that_mean_nothing_free_nothing(short_tmp: Path) -> None:
    async with connected(short_tmp) as (guest, tunnel, served):
        stream = guest.open()
        _, channel = await served.queue.get()
        guest.answer(b"", *(bytes([number]) * (number % 20) for number in range(256)), bytes(65_000), b"")
        inbox = tunnel._inbox
        assert inbox is not None
        await within(lambda: inbox._is_there)
        sending = asyncio.create_task(channel.send(bytes(4 << 20)))
        await within(lambda: len(inbox._lent) == 2)
        first, _ = await message_of(stream)
        assert decode(first).size == PIECE
        await message_of(stream)
        guest.answer(*[decode(first).token] * 20)
        third, _ = await message_of(stream)
        assert decode(third).slot == decode(first).slot
        assert sorted([*inbox._free, *(lent.slot for lent in inbox._lent.values())]) == list(range(SLOTS))
        assert not tunnel.lost.done()
        sending.cancel()


async def test_a_guest_that_gives_its_inbox_up_gets_the_rest_over_its_port(short_tmp: Path) -> None:
    async with connected(short_tmp) as (guest, tunnel, served):
        stream = guest.open()
        _, channel = await served.queue.get()
        guest.answer(b"")
        assert tunnel._inbox is not None
        await within(lambda: tunnel._inbox._is_there)
        sending = asyncio.create_task(channel.send(bytes(4 << 20)))
        await within(lambda: len(tunnel._inbox._lent) == 2)
        assert guest.inbox is not None
        guest.inbox.close()
        guest.flush()
        size = 0
        while size < 4 << 20:
            parts = await message_of(stream)
            size += decode(parts[0]).size if len(parts) == 2 else len(parts[0])
            guest.flush()
        await sending
        assert not tunnel._inbox._lent


async def test_a_flood_of_tiny_frames_has_to_wait_and_loses_nothing(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunnel_module, "LIMITS", replace(LIMITS, frames_per_second=1000))
    async with connected(short_tmp) as (guest, tunnel, served):
        stream = guest.open()
        _, channel = await served.queue.get()
        message = struct.pack(">II", 1, 1) + b"x"
        # As no honest guest does it: a frame for each byte.
        guest.raw(b"".join(encode_frame(f.DATA, stream.id, 1, bytes([byte])) for byte in message * 200))
        received = await channel.receive()
        assert tunnel._link is not None
        assert tunnel._link._transport is not None
        assert not tunnel._link._transport.is_reading()
        while len(received) < 200:
            received += await channel.receive()
        assert received == b"x" * 200
        stream.send([b""])
        guest.flush()
        assert await channel.receive() == b""
        assert not tunnel.lost.done()


@pytest.mark.parametrize(
    ("hostile", "reason"),
    [
        (lambda guest: guest.open(b"{}"), "not valid"),
        (lambda guest: guest.open(b"x" * 5000), "longer than 4096"),
        (lambda guest: [guest.open(None) for _ in range(60)], "connections per second"),
        (lambda guest: (guest.session.open("shell"), guest.flush()), "stream for 'shell'"),
        (lambda guest: guest.raw(encode_frame(f.OPEN, 2, 1, b"tcp")), "not one of the other end's"),
        (lambda guest: guest.raw(encode_frame(f.DATA, 999, 1, b"x")), "not open"),
        (lambda guest: guest.raw(b"garbage" * 100), "Frame type"),
    ],
)
async def test_a_guest_that_goes_too_far_loses_its_network(
    short_tmp: Path, hostile: Callable[[Guest], object], reason: str
) -> None:
    async with connected(short_tmp) as (guest, tunnel, _):
        hostile(guest)
        async with asyncio.timeout(10):
            assert reason in await tunnel.lost


async def test_more_streams_than_there_may_be_end_the_tunnel(short_tmp: Path) -> None:
    bounds = Bounds(openings_per_second=0.0, burst=5000, opening_seconds=60.0, served=5000)
    async with connected(short_tmp, bounds) as (guest, tunnel, _):
        for _ in range(LIMITS.max_streams):
            guest.open(None)
        assert "exceeds" in await tunnel.lost


async def test_a_message_that_is_too_long_ends_the_tunnel(short_tmp: Path) -> None:
    async with connected(short_tmp) as (guest, tunnel, served):
        stream = guest.open()
        _, channel = await served.queue.get()
        guest.raw(encode_frame(f.DATA, stream.id, 1, (1).to_bytes(4, "big") + (1 << 20).to_bytes(4, "big")))
        with pytest.raises(ProtocolError, match="Message size"):
            await channel.receive()
        assert "Message size" in await tunnel.lost


async def test_more_data_than_credit_ends_the_tunnel(short_tmp: Path) -> None:
    async with connected(short_tmp) as (guest, tunnel, _):
        stream = guest.open()
        for _ in range(3):
            guest.raw(encode_frame(f.DATA, stream.id, 1, bytes(32 << 10)))
        assert "credit" in await tunnel.lost


async def test_connections_beyond_those_that_are_served_are_closed(short_tmp: Path) -> None:
    async with connected(short_tmp) as (guest, tunnel, served):
        streams = [guest.open() for _ in range(BOUNDS.served)]
        for _ in streams:
            await served.queue.get()
        extra = guest.open()
        await tunnel.configure(NetworkSettings())
        assert extra.ended
        assert not any(stream.ended for stream in streams)


async def test_one_that_does_not_say_where_to_is_closed_in_time(short_tmp: Path) -> None:
    bounds = Bounds(opening_seconds=0.0)
    async with connected(short_tmp, bounds) as (guest, tunnel, _):
        stream = guest.open(None)
        while not stream.ended:
            await tunnel.configure(NetworkSettings())
        assert not tunnel.lost.done()


async def test_an_error_in_serving_is_reported_and_ends_that_connection_alone(short_tmp: Path) -> None:
    reported: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    async with connected(short_tmp) as (guest, tunnel, served):
        served.finish.wait = None  # type: ignore[method-assign, assignment]
        stream = guest.open()
        await served.queue.get()
        await tunnel.configure(NetworkSettings())
        assert stream.ended
        assert isinstance(reported[0]["exception"], TypeError)
        assert not tunnel.lost.done()


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"[]",
        b'{"name": null, "address": "1.2.3.4", "port": "80"}',
        b'{"name": null, "address": "1.2.3.4", "port": 65536}',
        b'{"name": 5, "address": "1.2.3.4", "port": 80}',
        b'{"name": null, "address": "1.2.3.4", "port": 80, "vm": "another"}',
        b'{"name": "%s", "address": "1.2.3.4", "port": 80}' % (b"x" * 2000),
    ],
)
def test_an_opening_that_is_none_is_refused(message: bytes) -> None:
    with pytest.raises(ProtocolError):
        read_opening([message])


def test_an_openings_name_is_handed_on_as_it_is() -> None:
    assert read_opening([b'{"name": "a\\u0000B.", "address": "x", "port": 0}']) == Opening("a\0B.", "x", 0)
