"""The inbox: what is laid on its disk arrives whole, in order and only where it belongs; without room all goes on."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import struct
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from forwarder_bed import ForwarderBed, forwarder_bed
from kernel_harness import within

from agentvm_kernel.egress import inbox as inbox_module
from agentvm_kernel.egress.channel import PIECE
from agentvm_kernel.egress.tunnel import StreamChannel, Tunnel
from agentvm_kernel.errors import HostError, LinkError, ProtocolError
from agentvm_kernel.link.inbox import CAPACITY, SIZE, SLOT, SLOTS, Reference, decode
from agentvm_kernel.vm.inbox import make_inbox, open_inbox

MUCH = random.Random(1).randbytes(8 << 20)


@pytest_asyncio.fixture
async def bed() -> AsyncIterator[ForwarderBed]:
    async with forwarder_bed() as made:
        yield made


@pytest_asyncio.fixture
async def tunnel(bed: ForwarderBed) -> AsyncIterator[Tunnel]:
    opened = await bed.open()
    yield opened
    await opened.close()


class Download:
    """A program's connection, and the host's end of it."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, channel: StreamChannel, let_go: asyncio.Event
    ) -> None:
        self.reader, self.writer, self.channel, self.let_go = reader, writer, channel, let_go

    async def serve(self, *pieces: bytes) -> None:
        for piece in pieces:
            await self.channel.send(piece)
        await self.channel.send_eof()

    async def abort(self) -> None:
        """Be gone, as a program that is killed, with all that is on its way."""
        self.writer.transport.abort()
        self.let_go.set()

    async def end(self) -> None:
        self.writer.close()
        self.let_go.set()


async def fill(bed: ForwarderBed, ours: Download) -> bytes:
    """Send until both slots of a connection are in use, to a program that reads nothing; returns what was sent."""
    sent = bytearray()
    while True:
        while ours.channel._share.lent < 2:
            piece = random.Random(len(sent)).randbytes(PIECE)
            sent += piece
            await ours.channel.send(piece)
        # By now the forwarder has done what it can: it answers in turn.
        for _ in range(3):
            await bed.resolve("any.example")
        if ours.channel._share.lent == 2:
            return bytes(sent)


async def download(bed: ForwarderBed) -> Download:
    reader, writer = await bed.connect("127.18.0.9")
    _, channel, let_go = await bed.accepted.get()
    assert isinstance(channel, StreamChannel)
    return Download(reader, writer, channel, let_go)


async def fetch(bed: ForwarderBed, *pieces: bytes) -> bytes:
    ours = await download(bed)
    serving = asyncio.create_task(ours.serve(*pieces))
    received = await ours.reader.read()
    await serving
    await ours.end()
    return received


async def read_into(received: bytearray, reader: asyncio.StreamReader) -> None:
    while data := await reader.read(1 << 16):
        received += data


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def is_used(bed: ForwarderBed) -> bool:
    """Whether anything was laid there since it was emptied."""
    used = bed.inbox.stat().st_blocks > 0
    os.truncate(bed.inbox, 0)
    os.truncate(bed.inbox, SIZE)
    return used


def test_a_reference_says_what_it_was_made_of() -> None:
    reference = Reference(SLOTS - 1, CAPACITY, bytes(range(8)))
    assert decode(reference.encode()) == reference
    assert reference.offset + SLOT == SIZE


@pytest.mark.parametrize(
    "data",
    [
        b"",
        Reference(0, 1, bytes(8)).encode() + b"\0",
        Reference(SLOTS, 1, bytes(8)).encode(),
        Reference(0, 0, bytes(8)).encode(),
        Reference(0, CAPACITY + 1, bytes(8)).encode(),
    ],
)
def test_what_is_no_reference_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="inbox"):
        decode(data)


def test_the_file_takes_no_room_and_is_nobody_elses(tmp_path: Path) -> None:
    path = tmp_path / "inbox"
    make_inbox(path, None)
    found = path.stat()
    assert (found.st_size, found.st_blocks, found.st_mode & 0o777) == (SIZE, 0, 0o600)
    os.close(open_inbox(path, None))


@pytest.mark.parametrize("trick", ["symlink", "hardlink", "pipe", "owner"])
def test_what_qemu_put_in_the_files_place_is_not_written(
    tmp_path: Path, trick: str, request: pytest.FixtureRequest
) -> None:
    path, other = tmp_path / "inbox", tmp_path / "other"
    other.touch()
    match trick:
        case "symlink":
            path.symlink_to(other)
        case "hardlink":
            path.hardlink_to(other)
        case "pipe":
            os.mkfifo(path)
            reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            request.addfinalizer(lambda: os.close(reader))
        case "owner":
            path.touch()
    descriptors = open_files()
    with pytest.raises((HostError, OSError)):
        open_inbox(path, (os.geteuid() + 1, 0) if trick == "owner" else None)
    assert open_files() == descriptors


async def test_much_goes_through_the_inbox_and_little_does_not(bed: ForwarderBed, tunnel: Tunnel) -> None:
    await fetch(bed, b"first")
    assert not is_used(bed)
    assert await fetch(bed, MUCH) == MUCH
    assert is_used(bed)


async def test_pieces_of_all_sizes_arrive_in_order(bed: ForwarderBed, tunnel: Tunnel) -> None:
    chance = random.Random(2)
    sizes = [chance.choice((1, 900, 20_000, PIECE, 300_000, CAPACITY)) for _ in range(60)]
    pieces = [chance.randbytes(size) for size in sizes]
    ours = await download(bed)
    serving = asyncio.create_task(ours.serve(*pieces))
    received = bytearray()
    while data := await ours.reader.read(chance.choice((100, 10_000, 1 << 20))):
        received += data
    await serving
    assert received == b"".join(pieces)
    assert is_used(bed)
    await ours.end()


async def test_many_downloads_at_once_share_it(bed: ForwarderBed, tunnel: Tunnel) -> None:
    content = [MUCH[number << 18 :] for number in range(20)]
    async with asyncio.TaskGroup() as group:
        fetching = [group.create_task(fetch(bed, one)) for one in content]
    # Which program got which connection is not told.
    assert {task.result() for task in fetching} == set(content)


async def test_an_answer_behind_a_large_one_is_not_kept_waiting(bed: ForwarderBed, tunnel: Tunnel) -> None:
    ours = await download(bed)
    async with asyncio.timeout(30):
        await ours.channel.send(MUCH[:PIECE])
        await ours.channel.send(b"and this")
        assert await ours.reader.readexactly(PIECE + 8) == MUCH[:PIECE] + b"and this"
    await ours.end()


async def test_a_program_that_reads_nothing_holds_two_slots_and_a_bounded_rest(
    bed: ForwarderBed, tunnel: Tunnel
) -> None:
    ours = await download(bed)
    flood = asyncio.create_task(ours.serve(*[MUCH] * 8))
    share = ours.channel._share
    await within(lambda: share.lent == 2 and share._size > CAPACITY - PIECE)
    assert share._size <= CAPACITY
    assert await fetch(bed, MUCH) == MUCH, "others have room"
    assert not flood.done()
    await ours.abort()
    await asyncio.gather(flood, return_exceptions=True)


@pytest.mark.parametrize("content", [b"late", MUCH], ids=["little", "much"])
async def test_who_sends_to_a_program_that_is_gone_is_told(bed: ForwarderBed, tunnel: Tunnel, content: bytes) -> None:
    ours = await download(bed)
    ours.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    ours.writer.close()
    await within(lambda: ours.channel._share.stream.is_over)
    with pytest.raises(LinkError, match="closed stream"):
        await ours.channel.send(content)
    ours.let_go.set()


async def test_slots_of_downloads_that_were_given_up_are_used_again(bed: ForwarderBed, tunnel: Tunnel) -> None:
    for _ in range(2 * SLOTS):
        ours = await download(bed)
        flood = asyncio.create_task(ours.serve(*[MUCH] * 8))
        await within(lambda ours=ours: ours.channel._share.lent == 2)  # type: ignore[misc]
        await ours.abort()
        await asyncio.gather(flood, return_exceptions=True)
    is_used(bed)
    assert await fetch(bed, MUCH) == MUCH
    assert is_used(bed)


async def test_what_the_host_has_let_go_of_is_still_read_to_the_end(bed: ForwarderBed, tunnel: Tunnel) -> None:
    all_slots = [await download(bed) for _ in range(SLOTS // 2)]
    sent = [await fill(bed, one) for one in all_slots]
    for one in all_slots:
        await one.channel.send_eof()
        one.let_go.set()
    # More than there are slots for: none that can be had is left.
    assert set(await asyncio.gather(*(fetch(bed, MUCH) for _ in range(SLOTS)))) == {MUCH}
    for one, content in zip(all_slots, sent, strict=True):
        assert await one.reader.read() == content
        await one.end()


async def test_what_lies_there_for_another_machine_reaches_no_program(bed: ForwarderBed) -> None:
    """As in a clone of a machine that was about to read: its disk is another."""
    bed.inbox.unlink()
    make_inbox(bed.inbox, None)
    tunnel = await bed.open()
    ours, received = await download(bed), bytearray()
    serving = asyncio.create_task(ours.serve(b"in front of it", MUCH))
    with pytest.raises(ConnectionResetError):
        await read_into(received, ours.reader)
    assert received in (b"", b"in front of it")
    assert is_used(bed)
    await asyncio.gather(serving, return_exceptions=True)
    await ours.end()
    await tunnel.close()


async def test_a_guest_without_an_inbox_gets_everything_over_its_port(tmp_path: Path) -> None:
    async with forwarder_bed(has_inbox=False) as bed:
        make_inbox(bed.inbox, None)
        tunnel = await bed.open()
        assert await fetch(bed, MUCH) == MUCH
        assert not is_used(bed)
        await tunnel.close()


async def test_a_full_disk_of_the_host_is_no_reason_to_stop(
    bed: ForwarderBed, tunnel: Tunnel, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []

    def written_in_part(descriptor: int, buffers: list[bytes], offset: int) -> int:
        tries.append(offset)
        if len(tries) % 2:
            raise OSError(28, "No space left on device")
        return os.pwrite(descriptor, buffers[0], offset)

    with monkeypatch.context() as patch:
        patch.setattr(inbox_module.os, "pwritev", written_in_part)
        assert await fetch(bed, MUCH) == MUCH
    assert len(tries) > 1
    is_used(bed)
    assert await fetch(bed, MUCH) == MUCH
    assert is_used(bed), "no slot was lost"


async def test_a_disk_that_has_much_to_do_holds_up_downloads_and_nothing_else(
    bed: ForwarderBed, tunnel: Tunnel, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on, write = threading.Event(), os.pwritev

    def slow(descriptor: int, buffers: list[bytes], offset: int) -> int:
        assert goes_on.wait(60)
        return write(descriptor, buffers, offset)

    monkeypatch.setattr(inbox_module.os, "pwritev", slow)
    ours = await download(bed)
    serving = asyncio.create_task(ours.serve(MUCH))
    await within(lambda: ours.channel._share._size > CAPACITY - PIECE)
    assert await fetch(bed, b"short") == b"short"
    assert tunnel._inbox is not None
    closing = asyncio.create_task(tunnel._inbox.close())
    assert await fetch(bed, b"still") == b"still"
    assert not closing.done(), "what is written now must not get into a file that is opened next"
    goes_on.set()
    await closing
    assert await ours.reader.read() == MUCH
    await serving
    await ours.end()


async def test_a_tunnel_leaves_no_file_open(bed: ForwarderBed) -> None:
    descriptors = open_files()
    tunnel = await bed.open()
    await tunnel.close()
    bed.epoch += 1
    with pytest.raises(Exception, match="epoch"):
        await bed.open(timeout=0.5)
    assert open_files() == descriptors
