"""Slow and stuck clients: what is queued for them is bounded, and the others still get theirs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import zmq
import zmq.asyncio
from jupyter_client.session import Session

from agentvm_kernel.kernel import sockets as module
from agentvm_kernel.kernel.sockets import Addresses, Sockets
from agentvm_kernel.kernel.wire import Wire

PORTS = ("shell", "control", "stdin", "iopub", "hb")


@asynccontextmanager
async def publisher(folder: Path) -> AsyncIterator[Sockets]:
    sockets = Sockets(Wire(Session(key=b"k")), Addresses("ipc", str(folder / "k"), dict.fromkeys(PORTS, 0)))
    welcomes = asyncio.create_task(sockets.welcome_subscribers())
    try:
        yield sockets
    finally:
        welcomes.cancel()
        await asyncio.wait([welcomes])
        sockets.close()


@contextmanager
def subscriber(sockets: Sockets, *, hwm: int = 1000, topic: bytes = b"") -> Iterator[zmq.asyncio.Socket]:
    context = zmq.asyncio.Context()
    socket = context.socket(zmq.SUB)
    socket.rcvhwm = hwm
    socket.rcvbuf = 4096
    socket.connect(f"ipc://{sockets.addresses.ip}-{sockets.addresses.ports['iopub']}")
    socket.subscribe(topic)
    try:
        yield socket
    finally:
        socket.close(linger=0)
        context.term()


async def welcomed(socket: zmq.asyncio.Socket) -> list[bytes]:
    async with asyncio.timeout(10):
        return await socket.recv_multipart()


async def test_a_subscriber_is_welcomed_by_its_topic(tmp_path: Path) -> None:
    async with publisher(tmp_path) as sockets:
        with subscriber(sockets, topic=b"special") as socket:
            frames = await welcomed(socket)
    assert frames[0] == b"special"
    assert b"iopub_welcome" in frames[3]


async def test_who_subscribes_later_is_welcomed_while_the_first_one_is_still_there(tmp_path: Path) -> None:
    async with publisher(tmp_path) as sockets:
        with subscriber(sockets) as first:
            await welcomed(first)
            with subscriber(sockets) as second:
                assert b"iopub_welcome" in (await welcomed(second))[2]


async def test_the_guest_waits_for_a_slow_client_that_then_misses_nothing(tmp_path: Path) -> None:
    async with publisher(tmp_path) as sockets:
        with subscriber(sockets, hwm=10) as socket:
            await welcomed(socket)
            publishing = asyncio.create_task(publish_many(sockets, 5000))
            await asyncio.wait([publishing], timeout=0.3)
            assert not publishing.done()
            async with asyncio.timeout(30):
                numbers = [int((await socket.recv_multipart())[1]) for _ in range(5000)]
            await publishing
    assert numbers == list(range(5000))
    assert sockets.dropped == 0


async def publish_many(sockets: Sockets, count: int) -> None:
    for number in range(count):
        await sockets.publish("stream", [b"%d" % number, b"x" * 4096])


async def test_a_stuck_client_loses_messages_but_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RETRIES", 50)
    async with publisher(tmp_path) as sockets:
        with ExitStack() as stack:
            await welcomed(stack.enter_context(subscriber(sockets, hwm=10)))
            reader = stack.enter_context(subscriber(sockets))
            await subscribed(sockets, reader)
            received: list[int] = []

            async def read() -> None:
                while len(received) < 5000:
                    received.append(int((await reader.recv_multipart())[1]))

            reading = asyncio.create_task(read())
            await publish_many(sockets, 5000)
            await asyncio.wait([reading], timeout=10)
            reading.cancel()
    assert received == list(range(5000))
    assert sockets.dropped > 0


async def subscribed(sockets: Sockets, socket: zmq.asyncio.Socket) -> None:
    while not await socket.poll(10):
        await sockets.publish("probe", [b"-1", b""])
    while await socket.poll(50):
        await socket.recv_multipart()


async def test_large_frames_queued_for_a_stuck_client_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RETRIES", 20)
    monkeypatch.setattr(module, "_QUEUED_BYTES", 20 << 20)
    async with publisher(tmp_path) as sockets:
        with subscriber(sockets, hwm=1) as stuck:
            await welcomed(stuck)
            for _ in range(50):
                await sockets.publish("display_data", [bytes(4 << 20)])
                assert sum(size for tracker, size in sockets._in_flight if not tracker.done) <= 20 << 20
    assert sockets.dropped > 30


async def test_a_client_that_reads_again_is_waited_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RETRIES", 20)
    async with publisher(tmp_path) as sockets:
        with subscriber(sockets, hwm=10) as socket:
            await welcomed(socket)
            await publish_many(sockets, 4000)
            assert sockets.dropped
            while await socket.poll(200):
                await socket.recv_multipart()
            missed = sockets.dropped
            monkeypatch.setattr(module, "_RETRIES", 2000)
            publishing = asyncio.create_task(publish_many(sockets, 4000))
            async with asyncio.timeout(30):
                numbers = [int((await socket.recv_multipart())[1]) for _ in range(4000)]
            await publishing
    assert numbers == list(range(4000))
    assert sockets.dropped == missed


async def test_tcp_ports_are_chosen_when_they_are_zero() -> None:
    sockets = Sockets(Wire(Session(key=b"k")), addresses := Addresses("tcp", "127.0.0.1", dict.fromkeys(PORTS, 0)))
    sockets.close()
    assert len({addresses.ports[name] for name in PORTS[:4]} - {0}) == 4
