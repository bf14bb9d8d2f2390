"""Writing to the host's disk what a guest sends: plain files, folders, and links that stay inside. Nothing is believed.

All is written below a fresh folder, in which there is no link while anything is written: those come last. A name never
leads out of it, and what has no place on this host (devices, named pipes, links that lead out, names that cannot be
shown) is left out and said.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from agentvm_kernel.errors import TransferError
from agentvm_kernel.run.tarstream import Entry, TarStream

_MAX_PATH: Final = 4000
_MAX_NAME: Final = 255
_MAX_DEPTH: Final = 100
_MAX_LINKS: Final = 16 << 20
_MAX_MTIME: Final = 1 << 33
_MAX_TOLD: Final = 20
_MIB: Final = 1 << 20


@dataclass(frozen=True)
class Bounds:
    """How much is taken from a guest at once.

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
        left_out: What was left out, and why; the first of it.
        left_out_count: How much was left out.
    """

    size: int = 0
    count: int = 0
    left_out: list[str] = field(default_factory=list)
    left_out_count: int = 0

    def leave_out(self, name: str, reason: str) -> None:
        """Note something that was left out."""
        self.left_out_count += 1
        if len(self.left_out) < _MAX_TOLD:
            self.left_out.append(f"{name[:_MAX_NAME]!a}: {reason}")


class Unpacking:
    """Takes an archive's members in, below a folder.

    Args:
        root: What the members' paths begin at. It is not there yet, or a folder.
        bounds: How much is taken.
        strip: How many leading parts of each path are thrown away.
    """

    def __init__(self, root: Path, bounds: Bounds, *, strip: int = 0) -> None:
        self.received = Received()
        self._root = root
        self._bounds = bounds
        self._strip = strip
        self._links: list[tuple[Path, str]] = []
        self._links_size = 0

    async def run(self, archive: TarStream) -> Received:
        """Take all of an archive.

        Raises:
            TransferError: it is none, or holds what no honest one does, or too much.
            OSError: it cannot be written.
        """
        try:
            while (entry := await archive.next()) is not None:
                await self._take(entry, archive.content())
            for path, target in self._links:
                path.symlink_to(target)
        except (FileExistsError, NotADirectoryError) as error:
            raise TransferError("The VM sent two things of the same name.") from error
        return self.received

    async def _take(self, entry: Entry, content: AsyncIterator[memoryview]) -> None:
        self._count(entry.size)
        parts = _parts(entry.name)
        if len(parts) < self._strip:
            raise TransferError(f"The VM sent a file for another place: {entry.name[:_MAX_NAME]!a}.")
        path, name = self._root.joinpath(*parts[self._strip :]), "/".join(parts[self._strip :])
        if not all(part.isprintable() for part in parts):
            self.received.leave_out(name, "a name that cannot be shown")
        elif entry.kind == "folder":
            self._make_folder(path, entry.mode)
        elif entry.kind == "link":
            self._keep_link(path, len(parts) - self._strip - 1, entry.target)
        elif entry.kind == "file":
            await self._write_file(path, entry, content)
            return
        else:
            self.received.leave_out(name, "neither file, folder nor link")
        async for _ in content:
            pass

    def _count(self, size: int = 0) -> None:
        self.received.count += 1
        self.received.size += size
        if self.received.count > self._bounds.count:
            raise TransferError(
                f"The VM sent more than {self._bounds.count} files, which is the most that is taken.",
                "Copy out less, pack it in the VM, or allow more.",
            )
        if self.received.size > self._bounds.size:
            raise TransferError(
                f"The VM sent more than {self._bounds.size / _MIB:g} MiB, which is the most that is taken.",
                "Copy out less, or allow more.",
            )

    def _make_folder(self, path: Path, mode: int = 0o777) -> None:
        try:
            path.mkdir(mode & 0o777 | 0o700)
        except FileNotFoundError:
            if path == self._root:
                raise
            self._count()
            self._make_folder(path.parent)
            path.mkdir(mode & 0o777 | 0o700)
        except FileExistsError:
            if not path.is_dir():
                raise

    async def _write_file(self, path: Path, entry: Entry, content: AsyncIterator[memoryview]) -> None:
        if path != self._root:
            self._make_folder(path.parent)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(path, flags, entry.mode & 0o777 | 0o600), "wb") as file:
            async for piece in content:
                file.write(piece)
            file.flush()
            if entry.mtime < _MAX_MTIME:
                os.utime(file.fileno(), (entry.mtime, entry.mtime))

    def _keep_link(self, path: Path, depth: int, target: bytes) -> None:
        """Note a link for later; what it needs is made now, while no other link can be in its way."""
        if not _stays_inside(target, depth):
            self.received.leave_out(str(path.relative_to(self._root)), "a link that leads out")
            return
        self._links_size += len(os.fsencode(path)) + len(target)
        if self._links_size > _MAX_LINKS:
            raise TransferError("The VM sent too many links.")
        self._make_folder(path.parent)
        self._links.append((path, target.decode()))


def _parts(name: bytes) -> tuple[str, ...]:
    """Return a path's parts, after having made sure that none of them leads anywhere else."""
    parts = tuple(os.fsdecode(part) for part in name.split(b"/") if part not in (b"", b"."))
    if name.startswith(b"/") or ".." in parts:
        raise TransferError(f"The VM sent a file for another place: {name[:_MAX_NAME]!a}.")
    if len(name) > _MAX_PATH or len(parts) > _MAX_DEPTH or any(len(os.fsencode(part)) > _MAX_NAME for part in parts):
        raise TransferError(f"The VM sent a file with too long a path: {name[:80]!a} and so on.")
    return parts


def _stays_inside(target: bytes, depth: int) -> bool:
    """Return whether a link in a folder of that depth leads to something inside.

    ``..`` is believed only at the beginning, where it leaves real folders: what it leaves later may be a link.
    """
    parts = os.fsdecode(target).split("/")
    up = 0
    while up < len(parts) and parts[up] == "..":
        up += 1
    if not all(part.isprintable() for part in parts):
        return False
    return bool(parts[0]) and up <= depth and ".." not in parts[up:]
