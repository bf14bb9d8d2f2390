"""Files and folders into a VM and out of it, as tar streams through a tar that runs in it as the cells' user.

At either end what is copied is complete or absent: it is written beside its place, which it gets at the end.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

from agentvm_kernel.errors import TransferError
from agentvm_kernel.run.exec import Execution, Opener, execute, working
from agentvm_kernel.run.tarstream import TarStream, pack
from agentvm_kernel.run.unpack import USUAL, Bounds, Received, Unpacking
from agentvm_kernel.terminal import plain

__all__ = ["Bounds", "Received", "get", "get_changed", "get_named", "mark", "placed", "put"]

_MAX_STDERR: Final = 1 << 20
_MAX_TOLD: Final = 2000
_CONTENT: Final = "content"
_NOTHING: Final = Bounds(1 << 10, 1)
# What tar says when a file changed while it was read: what was read is there.
_CHANGED_MEANWHILE: Final = 1

_PUT: Final = f"""
set -e
mkdir -p -- "$(dirname -- "$1")"
if [ -d "$1" ] || {{ [ "$2" = folder ] && [ -e "$1" ]; }}; then
    echo "there is $1 already" >&2
    exit 66
fi
temporary=$(mktemp -d -- "$(dirname -- "$1")/.agentvm-XXXXXXXX")
trap 'rm -rf -- "$temporary"' EXIT
trap 'exit 66' TERM
tar --extract --file=- --no-same-owner --preserve-permissions --directory="$temporary"
mv -T -- "$temporary/{_CONTENT}" "$1"
"""
_TAR: Final = (
    "tar --create --file=- --format=posix --pax-option=delete=atime,delete=ctime,delete=mtime --hard-dereference"
)
_GET: Final = f"""
target=$(readlink -e -- "$1") || {{ echo "there is no $1" >&2; exit 66; }}
cd -- "$(dirname -- "$target")" && exec {_TAR} -- "./$(basename -- "$target")"
"""
# A file's time is that of the clock's last tick: what is written from now on must have a later one.
_MARK: Final = """
set -e
mark=$(mktemp /tmp/agentvm-mark-XXXXXXXX)
probe=$(mktemp /tmp/agentvm-mark-XXXXXXXX)
until [ "$probe" -nt "$mark" ]; do touch -- "$probe"; done
rm -- "$probe"
echo "$mark"
"""
_GET_CHANGED: Final = f"""
cd -- "$1" || exit 66
find . -mindepth 1 '(' -type f -o -type d -o -type l ')' -cnewer "$2" -print0 |
    {_TAR} --null --no-recursion --files-from=-
"""
_GET_NAMED: Final = f"""
cd -- "$1" || exit 66
shift
for name; do
    [ -e "$name" ] || {{ echo "there is no $name" >&2; exit 66; }}
done
exec {_TAR} -- "$@"
"""


async def put(link: Opener, local: Path, remote: str) -> None:
    """Copy a file or a folder into a VM.

    Args:
        link: To the guest.
        local: What is copied; links inside stay links, devices and named pipes are left out.
        remote: What it becomes; a relative path begins at the user's home, one that ends with a slash gets the name of
            what is copied added. A file there is replaced, a folder is an error.

    Raises:
        TransferError: it cannot be read or written; nothing was changed.
        LinkError: the link ended.
    """
    if not remote or remote.endswith("/"):
        remote += local.resolve().name
    kind = "folder" if local.is_dir() else "file"
    async with (
        _shell(link, _PUT, remote, kind, what=f"{local} cannot be copied into the VM") as shell,
        working(shell.feed(pack(local, _CONTENT))) as feeding,
    ):
        failure = await shell.drained()
        if feeding.done():
            feeding.result()
        if failure:
            raise failure


async def get(link: Opener, remote: str, local: Path, bounds: Bounds = USUAL) -> Received:
    """Copy a file or a folder out of a VM.

    Args:
        link: To the guest.
        remote: What is copied; a relative path begins at the user's home.
        local: What it becomes. A file there is replaced by a file, an empty folder by a folder.
        bounds: How much is taken.

    Returns:
        What came, and what was left out: links that lead out, devices, named pipes, names that cannot be shown.

    Raises:
        TransferError: it cannot be read or written, or is too much; nothing was changed.
        LinkError: the link ended.
    """
    async with _shell(link, _GET, remote, what=f"{remote} cannot be copied out of the VM") as shell:
        with placed(local) as place:
            return await Unpacking(place, bounds, strip=1).run(TarStream(shell.output()))


async def mark(link: Opener) -> str:
    """Remember the present, so that `get_changed` knows what is new.

    Raises:
        TransferError: the VM's disk is full, or so.
        LinkError: the link ended.
    """
    async with _shell(link, _MARK, what="The present cannot be noted in the VM") as shell:
        said = b"".join([piece async for piece in shell.output(_NOTHING.size)])
    return os.fsdecode(said.strip())


async def get_changed(link: Opener, folder: str, since: str, local: Path, bounds: Bounds = USUAL) -> Received:
    """Copy what is new or changed in a VM's folder.

    Args:
        link: To the guest.
        folder: The folder.
        since: What `mark` returned.
        local: The folder that it becomes; must not be there, or be empty.
        bounds: How much is taken.

    Returns:
        See `get`; so for what is raised.
    """
    return await _get_some(link, _GET_CHANGED, folder, [since], local, bounds)


async def get_named(link: Opener, folder: str, names: Sequence[str], local: Path, bounds: Bounds = USUAL) -> Received:
    """Copy some of what is in a VM's folder.

    Args:
        link: To the guest.
        folder: The folder.
        names: What is copied, as paths in it.
        local: The folder that it becomes; must not be there, or be empty.
        bounds: How much is taken.

    Returns:
        See `get`; so for what is raised.
    """
    return await _get_some(link, _GET_NAMED, folder, [f"./{name}" for name in names], local, bounds)


async def _get_some(
    link: Opener, script: str, folder: str, words: Sequence[str], local: Path, bounds: Bounds
) -> Received:
    async with _shell(link, script, folder, *words, what="The results cannot be copied out of the VM") as shell:
        with placed(local) as place:
            place.mkdir()
            return await Unpacking(place, bounds).run(TarStream(shell.output()))


class _Shell:
    """A shell in the VM that copies.

    Args:
        execution: The shell.
        what: What an error says has failed.
    """

    def __init__(self, execution: Execution, what: str) -> None:
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
        if ended.status not in (0, _CHANGED_MEANWHILE):
            lines = [plain(line) for line in said.decode(errors="replace").splitlines() if line.strip()]
            raise TransferError(f"{self._what}: {'; '.join(lines[:3]) or f'it ended with {ended.status}'}.")

    async def drained(self) -> TransferError | None:
        """Wait for its end; returns why it failed, if it did."""
        try:
            async for _ in self.output(_MAX_STDERR):
                pass
        except TransferError as error:
            return error
        return None

    async def feed(self, pieces: Iterator[bytes]) -> None:
        """Write to its stdin what is read from the disk meanwhile; if that fails, end it.

        Raises:
            OSError: what the pieces raise.
            TransferError: the same.
        """
        try:
            while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
                await self._execution.write(piece)
        except (OSError, TransferError):
            await self._execution.signal(signal.SIGTERM)
            raise
        await self._execution.close_stdin()


@asynccontextmanager
async def _shell(link: Opener, script: str, *words: str, what: str) -> AsyncIterator[_Shell]:
    try:
        async with execute(link, ["/bin/sh", "-c", script, "sh", *words]) as execution:
            yield _Shell(execution, what)
    except OSError as error:
        place = f" ({error.filename!s})" if error.filename else ""
        raise TransferError(f"{what}: {error.strerror or error}{place}.") from error


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
