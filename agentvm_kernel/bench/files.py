"""``agentvm bench files``: copies into a VM and out of it, beside streams of the same size on the same link."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from agentvm_kernel.bench.bed import Say, Wanted, bed
from agentvm_kernel.bench.book import Book
from agentvm_kernel.bench.figures import Figure
from agentvm_kernel.errors import VMError
from agentvm_kernel.link.connection import Link
from agentvm_kernel.run.exec import execute, working
from agentvm_kernel.run.files import get, put
from agentvm_kernel.run.lease import leased
from agentvm_kernel.supervisor.messages import LeaseRequest

_SIZE: Final = 10**9
_SMALL: Final = 10**8
_PIECE: Final = 256 << 10
_LIMIT: Final = 1.43
"""How much longer a copy may take than the stream: seven tenths of its throughput are promised."""

_IN, _OUT = "copy into the VM, with its SHA-256 and the disks", "copy out of the VM, with its SHA-256 and the disks"
_RAW_IN, _RAW_OUT = "stream of that size into the VM, to a cat", "stream of that size out of the VM, from a head"


async def run(wanted: Wanted, say: Say) -> list[Figure]:
    """Measure copies and streams, in turns.

    Args:
        wanted: Image, profile, repetitions; without, it is 1 GB once, with N, 100 MB N times.
        say: Told what is going on.

    Raises:
        AgentVMError: no VM could be had, or it has failed.
    """
    size, rounds = (_SMALL, wanted.repeat) if wanted.repeat else (_SIZE, 1)
    book = Book()
    with bed(wanted) as ours:
        say("preparing image and golden snapshot", None)
        await ours.prepare(say)
        await ours.filled()
        source = ours.paths.state / "source"
        _fill(source, size)
        async with leased(ours.paths, LeaseRequest(owner="bench"), say) as vm:
            for number in range(rounds):
                say("copies and streams, in turns", number / rounds)
                await _round(vm.link, source, size, book)
    shown = f", {size // 10**6} MB"
    pairs = ((_IN, _RAW_IN), (_OUT, _RAW_OUT))
    return [Figure(book[ours].renamed(ours + shown), book[raw], limit=_LIMIT, limit_on="ratio") for ours, raw in pairs]


async def _round(link: Link, source: Path, size: int, book: Book) -> None:
    back = source.with_name("back")
    with book.timed(_RAW_IN):
        await _stream_in(link, size)
    with book.timed(_IN):
        sent = await put(link, source, "copy")
    with book.timed(_RAW_OUT):
        await _stream_out(link, size)
    with book.timed(_OUT):
        received = await get(link, "copy", back)
    if sent.digest != received.digest or back.stat().st_size != size:
        raise VMError("What came back is not what was sent.")
    back.unlink()
    async with execute(link, ["rm", "copy"]) as execution:
        await execution.wait()


async def _stream_in(link: Link, size: int) -> None:
    piece = os.urandom(_PIECE)
    async with execute(link, ["sh", "-c", "exec cat > /dev/null"]) as execution, working(execution.wait()) as ended:
        left = size
        while left:
            await execution.write(piece[:left])
            left -= min(left, _PIECE)
        await execution.close_stdin()
        _check((await ended).code == 0)


async def _stream_out(link: Link, size: int) -> None:
    async with execute(link, ["head", "-c", str(size), "/dev/zero"]) as execution:
        got = 0
        async for output in execution:
            got += len(output.data)
        _check(got == size)


def _check(is_whole: bool) -> None:
    if not is_whole:
        raise VMError("The VM has not taken or given all of the stream.")


def _fill(path: Path, size: int) -> None:
    with path.open("wb") as file:
        for start in range(0, size, _PIECE):
            file.write(os.urandom(min(_PIECE, size - start)))
