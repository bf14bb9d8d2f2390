"""The forwarder: programs' connections reach the host with their names, and end at both sides as they should."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from forwarder_bed import ForwarderBed, forwarder_bed

from agentvm_kernel.egress.tunnel import NetworkSettings, Tunnel
from agentvm_kernel.errors import LinkError

RESET = struct.pack("ii", 1, 0)


@pytest_asyncio.fixture(params=[True, False], ids=["inbox", "port"])
async def bed(request: pytest.FixtureRequest) -> AsyncIterator[ForwarderBed]:
    async with forwarder_bed(has_inbox=request.param) as made:
        yield made


@pytest_asyncio.fixture
async def tunnel(bed: ForwarderBed) -> AsyncIterator[Tunnel]:
    opened = await bed.open()
    yield opened
    await opened.close()


async def test_a_connection_arrives_with_its_name_and_ends_in_both_directions(
    bed: ForwarderBed, tunnel: Tunnel
) -> None:
    address = await bed.resolve("pypi.example")
    reader, writer = await bed.connect(str(address))
    opening, channel, let_go = await bed.accepted.get()
    assert (opening.name, opening.address, opening.port) == ("pypi.example", address, bed.port)
    writer.write(b"question")
    assert await channel.receive() == b"question"
    writer.write_eof()
    assert await channel.receive() == b""
    assert await channel.receive() == b""
    await channel.send(b"answer")
    await channel.send_eof()
    assert await reader.read() == b"answer"
    let_go.set()
    writer.close()
    await writer.wait_closed()
    assert not tunnel.lost.done()


async def test_the_host_may_end_its_direction_first(bed: ForwarderBed, tunnel: Tunnel) -> None:
    reader, writer = await bed.connect("127.18.0.9")
    opening, channel, let_go = await bed.accepted.get()
    assert opening.name is None
    await channel.send_eof()
    assert await reader.read() == b""
    writer.write(b"more")
    assert await channel.receive() == b"more"
    writer.close()
    assert await channel.receive() == b""
    let_go.set()


async def test_what_the_host_says_before_it_lets_go_is_read_to_the_end(bed: ForwarderBed, tunnel: Tunnel) -> None:
    reader, writer = await bed.connect("127.18.0.9")
    _, channel, let_go = await bed.accepted.get()
    await channel.send(b"refused")
    await channel.send_eof()
    let_go.set()
    assert await reader.read() == b"refused"
    writer.close()


async def test_a_connection_that_the_host_lets_go_of_is_reset(bed: ForwarderBed, tunnel: Tunnel) -> None:
    reader, writer = await bed.connect("127.18.0.9")
    _, _, let_go = await bed.accepted.get()
    let_go.set()
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()


async def test_a_reset_of_the_programs_reaches_the_host(bed: ForwarderBed, tunnel: Tunnel) -> None:
    _, writer = await bed.connect("127.18.0.9")
    _, channel, let_go = await bed.accepted.get()
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    writer.close()
    with pytest.raises(LinkError, match="closed stream"):
        await channel.receive()
    let_go.set()


@pytest.mark.parametrize("to_host", [True, False])
async def test_much_data_arrives_whole_however_slowly_it_is_taken(
    bed: ForwarderBed, tunnel: Tunnel, *, to_host: bool
) -> None:
    content = bytes(range(256)) * 16_384
    reader, writer = await bed.connect("127.18.0.9")
    _, channel, let_go = await bed.accepted.get()
    received = bytearray()
    if to_host:
        writer.write(content)
        writer.write_eof()
        while piece := await channel.receive():
            received += piece
    else:
        async with asyncio.TaskGroup() as group:
            group.create_task(channel.send(content))
            while len(received) < len(content):
                received += await reader.read(10_000)
    assert received == content
    let_go.set()
    writer.close()


async def test_one_that_does_not_read_holds_up_nobody_else(bed: ForwarderBed, tunnel: Tunnel) -> None:
    _, slow = await bed.connect("127.18.0.9")
    _, slow_channel, slow_let_go = await bed.accepted.get()
    flood = asyncio.create_task(slow_channel.send(bytes(64 << 20)))
    reader, writer = await bed.connect("127.18.0.9")
    _, channel, let_go = await bed.accepted.get()
    await channel.send(b"quick")
    assert await reader.readexactly(5) == b"quick"
    assert not flood.done()
    slow.close()
    with pytest.raises(LinkError):
        await flood
    for event in (slow_let_go, let_go):
        event.set()
    writer.close()


async def test_many_connections_at_once(bed: ForwarderBed, tunnel: Tunnel) -> None:
    async def one(number: int) -> bytes:
        reader, writer = await bed.connect("127.18.0.9")
        writer.write(b"%d" % number)
        writer.write_eof()
        answer = await reader.read()
        writer.close()
        return answer

    async def echo() -> None:
        _, channel, let_go = await bed.accepted.get()
        await channel.send(await channel.receive())
        await channel.send_eof()
        let_go.set()

    async with asyncio.TaskGroup() as group:
        answers = [group.create_task(one(number)) for number in range(300)]
        for _ in answers:
            group.create_task(echo())
    assert [task.result() for task in answers] == [b"%d" % number for number in range(300)]


async def test_connections_wait_for_the_link(bed: ForwarderBed) -> None:
    _, writer = await bed.connect("127.18.0.9")
    writer.write(b"early")
    tunnel = await bed.open()
    _, channel, let_go = await bed.accepted.get()
    assert await channel.receive() == b"early"
    let_go.set()
    writer.close()
    await tunnel.close()


async def test_without_a_network_names_and_connections_are_refused_at_once(bed: ForwarderBed, tunnel: Tunnel) -> None:
    reader, writer = await bed.connect("127.18.0.9")
    await bed.accepted.get()
    bed.say(op="network", network="none")
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()
    assert await bed.resolve("pypi.example") is None

    async def connect_and_read() -> None:
        reader, _ = await bed.connect("127.18.0.9")
        await reader.read()

    with pytest.raises(ConnectionResetError):
        await connect_and_read()
    bed.say(op="network", network="filtered")
    bed.identify()
    while await bed.resolve("pypi.example") is None:
        pass


async def test_a_new_identity_ends_what_was_and_serves_what_comes(bed: ForwarderBed, tunnel: Tunnel) -> None:
    reader, writer = await bed.connect("127.18.0.9")
    _, channel, let_go = await bed.accepted.get()
    bed.identify()
    with pytest.raises(ConnectionResetError):
        await reader.read()
    with pytest.raises(LinkError):
        await channel.receive()
    assert "new identity" in await tunnel.lost
    let_go.set()
    writer.close()
    again = await bed.open()
    reader, writer = await bed.connect("127.18.0.9")
    _, channel, let_go = await bed.accepted.get()
    await channel.send(b"new")
    assert await reader.readexactly(3) == b"new"
    let_go.set()
    writer.close()
    await again.close()


async def test_a_tunnel_of_another_epoch_is_refused(bed: ForwarderBed, tunnel: Tunnel) -> None:
    bed.epoch += 1
    with pytest.raises(LinkError, match="epoch"):
        await bed.open(timeout=0.5)


async def test_the_host_may_know_the_identity_before_the_forwarder(bed: ForwarderBed, tunnel: Tunnel) -> None:
    await tunnel.close()
    bed.epoch += 1
    async with asyncio.TaskGroup() as group:
        opening = group.create_task(bed.open())
        # By now it has refused the first attempt: an answer to each of these takes longer than that.
        for number in range(20):
            await bed.resolve(f"n{number}.example")
        bed.say(op="identity", key=bed.key.hex(), epoch=bed.epoch)
    await opening.result().close()


async def test_settings_reach_the_environment_and_change(bed: ForwarderBed) -> None:
    tunnel = await bed.open(NetworkSettings(environment={"KEY": "placeholder"}))
    assert bed.environments == [{"KEY": "placeholder"}]
    await tunnel.configure(NetworkSettings(environment={}))
    assert bed.environments[1:] == [{}]
    await tunnel.close()


async def test_connections_end_with_the_tunnel(bed: ForwarderBed, tunnel: Tunnel) -> None:
    reader, writer = await bed.connect("127.18.0.9")
    await bed.accepted.get()
    await tunnel.close()
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()
