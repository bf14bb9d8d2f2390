"""Files and folders into a VM and out of it; a program that runs in it as the cells' user is the other end.

At either end what is copied is complete or absent: it is written beside its place, which it gets at the end. What is
there of an attempt that was interrupted is what the next one goes on with; see `agentvm_kernel.run.carrier`.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import shutil
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agentvm_kernel.errors import TransferError
from agentvm_kernel.run import carrier
from agentvm_kernel.run.carrier import Part, RefusedError, Source
from agentvm_kernel.run.entries import EntryStream, read_arrived, read_manifest
from agentvm_kernel.run.exec import Execution, Opener, execute, working
from agentvm_kernel.run.unpack import USUAL, Bounds, OnProgress, Received, Unpacking, no_progress
from agentvm_kernel.terminal import plain

__all__ = ["Bounds", "Received", "Sent", "get", "get_changed", "get_named", "mark", "placed", "put"]

_MAX_STDERR: Final = 1 << 20
_MAX_MANIFEST: Final = 16 << 20
_MAX_TOLD: Final = 2000
_CONTENT: Final = "content"
_SMALL: Final = 1 << 10
_MIB: Final = 1 << 20
_REMEDIES: Final = {
    "the most that is copied": "Copy less, pack it into one file, or allow more.",
    "No space left": "Make room in the VM, or copy less; %vm profile NAME gives it a larger disk.",
}
_PYTHON: Final = ("python3", "-I", "-S", "-c", Path(carrier.__file__).read_text())

# A file's time is that of the clock's last tick: what is written from now on must have a later one.
_MARK: Final = """
set -e
mark=$(mktemp -t agentvm-mark-XXXXXXXX)
probe=$(mktemp -t agentvm-mark-XXXXXXXX)
until [ "$probe" -nt "$mark" ]; do touch -- "$probe"; done
rm -- "$probe"
echo "$mark"
"""


@dataclass(frozen=True)
class Sent:
    """What was copied into a VM.

    Attributes:
        size: Bytes of content.
        count: Files, folders and links.
        saved: Of the bytes, how many were there already.
        digest: SHA-256 of a file, or of a folder; see `carrier.digest`.
        path: What it has become, as the guest says.
        left_out: Devices and named pipes, which are not copied.
    """

    size: int
    count: int
    saved: int
    digest: str
    path: str
    left_out: tuple[str, ...] = ()


async def put(
    link: Opener,
    local: Path,
    remote: str,
    *,
    bounds: Bounds = USUAL,
    on_progress: OnProgress = no_progress,
    into: bool = False,
) -> Sent:
    """Copy a file or a folder into a VM.

    Args:
        link: To the guest.
        local: What is copied; links inside stay links, devices and named pipes are left out.
        remote: What it becomes; a relative path begins at the user's home, one that ends with a slash gets the name of
            what is copied added. A file there is replaced, a folder is an error.
        bounds: How much may be copied.
        on_progress: Called with how much is there, and how much there is.
        into: Put it into a folder that is there, under its own name.

    Raises:
        TransferError: it cannot be read or written, or is too much; nothing was changed.
        LinkError: the link ended; what has come is kept beside the place, for the next attempt.
    """
    name = local.resolve().name
    if not remote or remote.endswith("/"):
        remote += name
    what = f"{local} cannot be copied into the VM"
    with _told(what):
        source = await asyncio.to_thread(_source, local, bounds)
    words = ("receive", remote, "folder" if local.is_dir() else "file", name if into else "")
    async with _program(link, [*_PYTHON, *words], what) as program:
        output = program.output(_MAX_MANIFEST)
        kept = await read_manifest(output)
        async with working(program.feed(source.pieces(kept), source, on_progress)) as feeding:
            said, failure = await program.drained(output)
            if program.unfed:
                raise program.unfed
            if feeding.done():
                feeding.result()
            if failure:
                raise failure
    arrived = read_arrived(said)
    if arrived.check != source.check or not source.digest:
        raise TransferError(f"{what}: what came is not what was sent.", "Copy it again.")
    others = tuple(path for path, status in source.members if carrier.is_other(status))
    return Sent(
        source.size, len(source.members) - len(others), source.saved, source.digest, plain(arrived.path), others
    )


async def get(
    link: Opener, remote: str, local: Path, bounds: Bounds = USUAL, *, on_progress: OnProgress = no_progress
) -> Received:
    """Copy a file or a folder out of a VM.

    Args:
        link: To the guest.
        remote: What is copied; a relative path begins at the user's home.
        local: What it becomes. A file there is replaced by a file, an empty folder by a folder.
        bounds: How much is taken.
        on_progress: Called with how much has come, and how much there is as the guest claims.

    Returns:
        What came, and what was left out: links that lead out, devices, named pipes, names that cannot be shown.

    Raises:
        TransferError: it cannot be read or written, or is too much; nothing was changed.
        LinkError: the link ended; what has come is kept beside the place, for the next attempt.
    """
    what = f"{remote} cannot be copied out of the VM"
    with _told(what):
        if local.is_dir() and any(local.iterdir()):
            raise RefusedError(f"{local} is a folder that is not empty")
        part = Part(str(local))
        async with _kept(part):
            if sum(size for size, _ in part.kept.values()) > bounds.size or len(part.kept) > bounds.count:
                await asyncio.to_thread(part.forget)  # who breaks off again and again may send other files each time
            words = ("send", remote, str(bounds.count), "tree")
            async with (
                _program(link, [*_PYTHON, *words], what) as program,
                working(program.feed(iter([carrier.line(**part.manifest())]))),
            ):
                unpacking = Unpacking(Path(part.content), bounds, part, on_progress)
                received = await unpacking.run(EntryStream(program.output()))
            part.settle(str(local))
    return received


async def mark(link: Opener) -> str:
    """Remember the present, so that `get_changed` knows what is new.

    Raises:
        TransferError: the VM's disk is full, or so.
        LinkError: the link ended.
    """
    async with _program(link, ["/bin/sh", "-c", _MARK], "The present cannot be noted in the VM") as program:
        said = b"".join([piece async for piece in program.output(_SMALL)])
    return os.fsdecode(said.strip())


async def get_changed(
    link: Opener,
    folder: str,
    since: str,
    local: Path,
    bounds: Bounds = USUAL,
    on_progress: OnProgress = no_progress,
) -> Received:
    """Copy what is new or changed in a VM's folder.

    Args:
        link: To the guest.
        folder: The folder.
        since: What `mark` returned.
        local: The folder that it becomes; must not be there, or be empty.
        bounds: How much is taken.
        on_progress: As for `get`.

    Returns:
        See `get`; so for what is raised, but nothing is kept for another attempt.
    """
    return await _get_some(link, folder, ["changed", since], local, bounds, on_progress)


async def get_named(
    link: Opener,
    folder: str,
    names: Sequence[str],
    local: Path,
    bounds: Bounds = USUAL,
    on_progress: OnProgress = no_progress,
) -> Received:
    """Copy some of what is in a VM's folder.

    Args:
        link: To the guest.
        folder: The folder.
        names: What is copied, as paths in it.
        local: The folder that it becomes; must not be there, or be empty.
        bounds: How much is taken.
        on_progress: As for `get`.

    Returns:
        See `get_changed`.
    """
    return await _get_some(link, folder, ["named", *names], local, bounds, on_progress)


async def _get_some(
    link: Opener, folder: str, words: Sequence[str], local: Path, bounds: Bounds, on_progress: OnProgress
) -> Received:
    what = "The results cannot be copied out of the VM"
    argv = [*_PYTHON, "send", folder, str(bounds.count), *words]
    with _told(what):
        async with _program(link, argv, what) as program:
            await program.close_stdin()
            with placed(local) as place:
                place.mkdir()
                return await Unpacking(place, bounds, on_progress=on_progress).run(EntryStream(program.output()))


def _source(local: Path, bounds: Bounds) -> Source:
    source = Source(str(local), most=bounds.count, digested=True)
    if source.size > bounds.size:
        raise RefusedError(f"it has {source.size / _MIB:g} MiB; the most that is copied is {bounds.size / _MIB:g} MiB")
    return source


@asynccontextmanager
async def _kept(part: Part) -> AsyncIterator[None]:
    """Have a part; what is in it is kept for another attempt unless it is good for nothing."""
    opening = asyncio.create_task(asyncio.to_thread(part.open))
    try:
        await asyncio.shield(opening)
        yield
    except (RefusedError, TransferError, OSError):
        part.discard()
        raise
    finally:
        await asyncio.wait([opening])
        part.close()


class _Program:
    """A program in the VM that copies.

    Args:
        execution: The program.
        what: What an error says has failed.

    Attributes:
        unfed: Why it was not fed to the end, if it was not.
    """

    def __init__(self, execution: Execution, what: str) -> None:
        self.unfed: OSError | RefusedError | None = None
        self._execution = execution
        self._what = what

    async def output(self, most: int | None = None) -> AsyncIterator[bytes]:
        """Yield what it writes to stdout.

        Raises:
            TransferError: it failed; says why as far as it does.
        """
        said = bytearray()
        size = 0
        async for name, data in self._execution:
            size += len(data) if most is not None or name == "stderr" else 0
            if size > (most or _MAX_STDERR):
                raise TransferError(f"{self._what}: it says too much.")
            if name == "stdout":
                yield data
            else:
                said += data[: _MAX_TOLD - len(said)]
        ended = self._execution.exit
        assert ended is not None
        if ended.status:
            lines = [plain(line) for line in said.decode(errors="replace").splitlines() if line.strip()]
            reason = "; ".join(lines[:3]) or f"it ended with {ended.status}"
            raise TransferError(f"{self._what}: {reason}.", _remedy(reason))

    async def drained(self, output: AsyncIterator[bytes]) -> tuple[bytes, TransferError | None]:
        """Wait for its end; returns what it said until then, and why it failed, if it did."""
        said = bytearray()
        try:
            async for piece in output:
                said += piece
        except TransferError as error:
            return bytes(said), error
        return bytes(said), None

    async def feed(
        self, pieces: Iterator[bytes | memoryview], source: Source | None = None, on_progress: OnProgress = no_progress
    ) -> None:
        """Write to its stdin what is read from the disk meanwhile; if that fails, end it.

        Raises:
            OSError: what the pieces raise.
            RefusedError: the same.
        """
        done = 0
        try:
            while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
                await self._execution.write(piece)
                if source is not None and source.done > done:
                    done = source.done
                    on_progress(done, source.size)
        except (OSError, RefusedError) as error:
            self.unfed = error
            await self._execution.signal(signal.SIGTERM)
            raise
        await self.close_stdin()

    async def close_stdin(self) -> None:
        """Let it see the end of what it is fed."""
        await self._execution.close_stdin()


@asynccontextmanager
async def _program(link: Opener, argv: Sequence[str], what: str) -> AsyncIterator[_Program]:
    with _told(what):
        async with execute(link, argv) as execution:
            yield _Program(execution, what)


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Say in the user's words what has failed on this host."""
    try:
        yield
    except OSError as error:
        place = f" ({error.filename!s})" if error.filename else ""
        hint = "Make room on this computer, or copy less." if error.errno == errno.ENOSPC else ""
        raise TransferError(f"{what}: {error.strerror or error}{place}.", hint) from error
    except RefusedError as error:
        raise TransferError(f"{what}: {error}.", _remedy(str(error))) from error


def _remedy(reason: str) -> str:
    return next((remedy for known, remedy in _REMEDIES.items() if known in reason), "")


@contextmanager
def placed(local: Path) -> Iterator[Path]:
    """Yield a path for something that is to be complete or absent; it takes its place on leaving the context.

    Args:
        local: Its place.

    Raises:
        OSError: something else is there, or it cannot be written.
    """
    local.parent.mkdir(parents=True, exist_ok=True)
    temporary = local.parent / f".agentvm-{secrets.token_hex(8)}"
    temporary.mkdir(mode=0o700)
    try:
        yield temporary / _CONTENT
        (temporary / _CONTENT).rename(local)
    finally:
        shutil.rmtree(temporary)
