"""Writing to the host's disk what a guest sends: plain files, folders, and links that stay inside. Nothing is believed.

All is written below a fresh folder, in which there is no link while anything is written: those come last. A name never
leads out of it, and what has no place on this host (devices, named pipes, links that lead out, names that cannot be
shown) is left out and said.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any, Final, Self

from agentvm_kernel.errors import TransferError
from agentvm_kernel.run.carrier import DEEPEST, PART, Part, RefusedError, digest
from agentvm_kernel.run.entries import Entry, EntryStream

_MASK: Final = 0o755
"""Of the permissions that a guest claims: nothing that comes from it is for others to write to."""
_MAX_PATH: Final = 4000
_MAX_NAME: Final = 255
_MAX_NAMES: Final = 32 << 20
_MAX_TOLD: Final = 20
_MIB: Final = 1 << 20
_BATCH: Final = 1 << 20

OnProgress = Callable[[int, int], None]
"""Called with how many bytes are done, and how many there are."""


def no_progress(done: int, total: int) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class Bounds:
    """How much is copied at once, in either direction.

    Attributes:
        size: Bytes of content.
        count: Files, folders and links.
    """

    size: int = 4 << 30
    count: int = 100_000


USUAL: Final = Bounds()


@dataclass
class Received:
    """What came.

    Attributes:
        size: Bytes of content.
        count: Files, folders and links.
        saved: Of the bytes, how many had come earlier.
        digest: SHA-256 of a file, or of a folder; see `carrier.digest`.
        left_out: What was left out, and why; the first of it.
        left_out_count: How much was left out.
    """

    size: int = 0
    count: int = 0
    saved: int = 0
    digest: str = ""
    left_out: list[str] = field(default_factory=list)
    left_out_count: int = 0

    def leave_out(self, name: str, reason: str) -> None:
        """Note something that was left out.

        Args:
            name: Its name, as the guest says it.
            reason: Why.
        """
        self.left_out_count += 1
        if len(self.left_out) < _MAX_TOLD:
            self.left_out.append(f"{name[:_MAX_NAME]!a}: {reason}")


class Unpacking:
    """Takes in what a guest sends, below a folder.

    Args:
        root: What the paths begin at. It is not there yet, or a folder.
        bounds: How much is taken.
        part: Has what came of it earlier.
        on_progress: Called with how much has come, and how much there is as the guest claims.
    """

    def __init__(
        self, root: Path, bounds: Bounds, part: Part | None = None, on_progress: OnProgress = no_progress
    ) -> None:
        self.received = Received()
        self._root = root
        self._bounds = bounds
        self._part = part
        self._on_progress = on_progress
        self._done = self._expected = 0
        self._sums: dict[str, str] = {}
        self._links: list[tuple[Path, Entry]] = []
        self._names_size = 0
        self._folders: list[tuple[Path, Entry]] = []

    async def run(self, stream: EntryStream) -> Received:
        """Take all of it.

        Raises:
            TransferError: it is nothing of the kind, or holds what no honest guest sends, or too much.
            OSError: it cannot be written.
        """
        total = await stream.total()
        self._check(total.size, total.count)
        self._expected = total.size
        try:
            while isinstance(entry := await stream.next(), Entry):
                await self._take(entry, stream.content())
            for path, link in self._links:
                path.symlink_to(link.target)
                os.utime(path, ns=(link.mtime, link.mtime), follow_symlinks=False)
        except (FileExistsError, NotADirectoryError) as error:
            raise TransferError("The VM sent two things of the same name.") from error
        except RefusedError as error:
            raise TransferError(f"The VM sent something else than it was asked for: {error}.") from error
        if stream.check != entry.check:
            raise TransferError("What came is not what the VM says that it has sent.", "Copy it again.")
        for path, folder in reversed(self._folders):
            # Whoever owns a folder can always go on to look into it, and remove it.
            path.chmod(folder.mode & _MASK | 0o700)
            os.utime(path, ns=(folder.mtime, folder.mtime))
        self.received.digest = digest(self._sums)
        return self.received

    async def _take(self, entry: Entry, content: AsyncIterator[bytes]) -> None:
        self._count(entry.size)
        self._names_size += len(entry.path) + len(entry.target)
        if self._names_size > _MAX_NAMES:
            raise TransferError("The VM sent too many long names.", "Copy out less, or pack it in the VM.")
        parts = _parts(entry.path)
        path, name = self._root.joinpath(*parts), "/".join(parts)
        if not all(part.isprintable() for part in parts):
            self.received.leave_out(name, "a name that cannot be shown")
        elif any(part.startswith(PART) for part in parts):
            self.received.leave_out(name, "a name that copies have for themselves")
        elif entry.kind == "folder":
            self._make_folder(path)
            self._folders.append((path, entry))
        elif entry.kind == "link":
            self._keep_link(path, len(parts) - 1, entry)
        elif entry.kind == "file":
            self._sums[entry.path] = await self._write_file(path, entry, content)
            return
        else:
            self.received.leave_out(name, "neither file, folder nor link")
        async for _ in content:
            pass

    def _count(self, size: int = 0) -> None:
        self.received.count += 1
        self.received.size += size
        self._check(self.received.size, self.received.count)

    def _check(self, size: int, count: int) -> None:
        if count > self._bounds.count:
            raise TransferError(
                f"The VM sent more than {self._bounds.count} files, which is the most that is taken.",
                "Copy out less, pack it in the VM, or allow more.",
            )
        if size > self._bounds.size:
            raise TransferError(
                f"The VM sent more than {self._bounds.size / _MIB:g} MiB, which is the most that is taken.",
                "Copy out less, or allow more.",
            )

    def _make_folder(self, path: Path) -> None:
        try:
            path.mkdir(0o700)
        except FileNotFoundError:
            if path == self._root:
                raise
            self._count()
            self._make_folder(path.parent)
            path.mkdir(0o700)
        except FileExistsError:
            if not path.is_dir():
                raise

    async def _write_file(self, path: Path, entry: Entry, content: AsyncIterator[bytes]) -> str:
        if path != self._root:
            self._make_folder(path.parent)
        flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        if entry.offset:
            summing = self._take_up(path, entry)
            flags |= os.O_APPEND
        else:
            summing = hashlib.sha256()
            flags |= os.O_CREAT | os.O_EXCL
        with os.fdopen(os.open(path, flags, 0o600), "wb", buffering=0) as file:
            async with _Writer(file, summing) as writer:
                async for piece in content:
                    await writer.write(piece)
                    self._tell(len(piece))
            os.fchmod(file.fileno(), entry.mode & _MASK)
            os.utime(file.fileno(), ns=(entry.mtime, entry.mtime))
        return str(summing.hexdigest())

    def _take_up(self, path: Path, entry: Entry) -> Any:
        if self._part is None:
            raise RefusedError("nothing was begun")
        summing = self._part.take_up(entry.path, str(path), entry.offset)
        self.received.saved += entry.offset
        self._tell(entry.offset)
        return summing

    def _tell(self, size: int) -> None:
        self._done += size
        self._on_progress(self._done, self._expected)

    def _keep_link(self, path: Path, depth: int, entry: Entry) -> None:
        """Note a link for later; what it needs is made now, while no other link can be in its way."""
        if not _stays_inside(entry.target, depth):
            self.received.leave_out(str(path.relative_to(self._root)), "a link that leads out")
            return
        self._make_folder(path.parent)
        self._links.append((path, entry))


class _Writer:
    """Writes and hashes in a thread, while more is received.

    Args:
        file: Where to write.
        summing: The hash.
    """

    def __init__(self, file: FileIO, summing: Any) -> None:
        self._file = file
        self._summing = summing
        self._data = bytearray()
        self._working: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def write(self, piece: bytes) -> None:
        """Take a piece; waits if too much is on its way."""
        self._data += piece
        if len(self._data) >= _BATCH:
            await self._settle()
            data, self._data = self._data, bytearray()
            self._working = asyncio.create_task(asyncio.to_thread(self._work, data))

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        """Write the rest, whatever has happened: what has come is what another attempt goes on with."""
        await self._settle()
        self._work(self._data)

    async def _settle(self) -> None:
        if (working := self._working) is not None:
            await asyncio.wait([working])
            self._working = None
            working.result()

    def _work(self, data: bytearray) -> None:
        self._summing.update(data)
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]


def _parts(path: str) -> tuple[str, ...]:
    """Return a path's parts, after having made sure that none of them leads anywhere else."""
    name = path.encode(errors="backslashreplace")
    parts = tuple(part for part in path.split("/") if part not in ("", "."))
    if path.startswith("/") or ".." in parts or "\0" in path:
        raise TransferError(f"The VM sent a file for another place: {name[:_MAX_NAME]!a}.")
    if len(name) > _MAX_PATH or len(parts) > DEEPEST or any(len(_encoded(part)) > _MAX_NAME for part in parts):
        raise TransferError(f"The VM sent a file with too long a path: {name[:80]!a} and so on.")
    return parts


def _encoded(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def _stays_inside(target: str, depth: int) -> bool:
    """Return whether a link in a folder of that depth leads to something inside.

    ``..`` is believed only at the beginning, where it leaves real folders: what it leaves later may be a link.
    """
    parts = target.split("/")
    up = 0
    while up < len(parts) and parts[up] == "..":
        up += 1
    if not all(part.isprintable() for part in parts) or len(target) > _MAX_PATH:
        return False
    return bool(parts[0]) and up <= depth and ".." not in parts[up:]
