"""The host's end of the link against a guest that behaves badly: a named error, in bounded memory."""

from __future__ import annotations

import asyncio
import gc
import sys
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import hostile_guest
import pytest

from agentvm_kernel.errors import HeartbeatError, LinkClosedError, LinkError, ProofError, ProtocolError
from agentvm_kernel.link.connection import Link, Stream, connect
from agentvm_kernel.link.endpoint import UnixEndpoint
from agentvm_kernel.link.limits import Limits

KEY = bytes(range(32))
QUICK = Limits(heartbeat=0.05, silence=0.3)
SERVICES = ("shell", "control", "stdin", "iopub", "agent")


@asynccontextmanager
async def hostile(mode: str, folder: Path) -> AsyncIterator[UnixEndpoint]:
    path = folder / "link.sock"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        hostile_guest.__file__,
        mode,
        "--listen",
        str(path),
        "--key",
        KEY.hex(),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    await process.stdout.readline()
    try:
        yield UnixEndpoint(str(path))
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def drain(stream: Stream) -> None:
    while True:
        await stream.receive()


async def end_of(link: Link) -> LinkError:
    """Use the link as a kernel does until it ends."""
    streams = [await link.open(service) for service in SERVICES]

    readers = [asyncio.create_task(drain(stream)) for stream in streams]
    error = await asyncio.wait_for(link.wait_closed(), 20)
    for result in await asyncio.gather(*readers, return_exceptions=True):
        assert isinstance(result, LinkError)
    with pytest.raises(type(error)):
        await streams[0].send([b"x"])
    return error


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("silent", "did not answer within 0.5 s"),
        ("noise-first", "did not answer within 0.5 s"),
        ("reflect", "did not answer within 0.5 s"),
        ("replay", "did not answer within 0.5 s"),
        ("no-proof", "answered but sent no proof within 0.5 s"),
        ("wrong-proof", "does not know this VM's key"),
        ("wrong-epoch", "The guest refused the link: epoch 1 is not this VM's"),
    ],
)
async def test_a_guest_without_proof_is_refused(mode: str, message: str, short_tmp: Path) -> None:
    async with hostile(mode, short_tmp) as endpoint:
        with pytest.raises(ProofError, match=message):
            await connect(endpoint, key=KEY, epoch=1, timeout=0.5)


async def test_a_guest_that_hangs_up_first_is_named(short_tmp: Path) -> None:
    async with hostile("hang-up-first", short_tmp) as endpoint:
        with pytest.raises(LinkClosedError, match="guest's end of the link is gone"):
            await connect(endpoint, key=KEY, epoch=1)


@pytest.mark.parametrize(
    ("mode", "kind", "message"),
    [
        ("noise", ProtocolError, "^Frame |is not open|without data"),
        ("huge", ProtocolError, "Frame length 4294967295 of DATA"),
        ("flood-pings", ProtocolError, "frames without data"),
        ("flood-epoch", ProtocolError, "frames without data"),
        ("many-parts", ProtocolError, "Message part count 2147483648"),
        ("big-message", ProtocolError, "Message size 4294967308"),
        ("open", ProtocolError, "OPEN of stream 1"),
        ("hang-up", LinkClosedError, "guest's end of the link is gone"),
        ("half", HeartbeatError, "has not answered"),
        ("deaf", HeartbeatError, "has not answered"),
        ("deaf-talker", HeartbeatError, "has not answered"),
    ],
)
async def test_a_guest_that_breaks_the_protocol_ends_its_link_by_name(
    mode: str, kind: type[LinkError], message: str, short_tmp: Path
) -> None:
    async with hostile(mode, short_tmp) as endpoint:
        limits = QUICK if kind is HeartbeatError else Limits()
        link = await connect(endpoint, key=KEY, epoch=1, limits=limits)
        error = await end_of(link)
    assert type(error) is kind
    assert error.message
    with pytest.raises(kind, match=message):
        raise error


async def test_a_flood_is_stopped_by_credit_within_the_stated_memory(short_tmp: Path) -> None:
    limits = Limits(window=256 << 10, max_message=8 << 20)
    async with hostile("flood", short_tmp) as endpoint:
        gc.collect()
        tracemalloc.start()
        try:
            link = await connect(endpoint, key=KEY, epoch=1, limits=limits)
            await link.open("iopub")
            # Nobody receives: there is no credit beyond the window.
            error = await asyncio.wait_for(link.wait_closed(), 20)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert isinstance(error, ProtocolError)
    assert "is beyond its credit" in error.message
    assert link.buffered <= limits.window
    assert peak < 4 * limits.window + (1 << 20)
    assert peak < limits.memory_bound(1)


async def test_a_message_in_the_making_stays_within_the_stated_memory(short_tmp: Path) -> None:
    # The flood is one endless stream of messages of 60 MiB, longer than what is allowed here.
    limits = Limits(max_message=61 << 20)
    async with hostile("flood", short_tmp) as endpoint:
        gc.collect()
        tracemalloc.start()
        try:
            link = await connect(endpoint, key=KEY, epoch=1, limits=limits)
            stream = await link.open("iopub")
            with pytest.raises(LinkError):
                await drain(stream)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < limits.memory_bound(1)


async def test_a_stopped_reader_blocks_only_its_writer(short_tmp: Path) -> None:
    limits = Limits(heartbeat=0.2, silence=1.0)
    async with hostile("deaf", short_tmp) as endpoint:
        link = await connect(endpoint, key=KEY, epoch=1, limits=limits)
        shell, control = await link.open("shell"), await link.open("control")
        stuck = asyncio.create_task(shell.send([bytes(32 << 20)]))
        await control.send([b"goes into the transport, or waits; the caller's loop goes on"])
        assert not stuck.done()
        with pytest.raises(HeartbeatError):
            await stuck
        assert isinstance(await link.wait_closed(), HeartbeatError)
