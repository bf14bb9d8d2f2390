"""Tar archives as streams: packing files for a guest, and reading what a guest sends, which may be anything.

Read are files, folders and symbolic links as GNU tar writes them in POSIX format. Of the extended headers only the few
records are looked at that say more about such a member. Hard links and sparse files are no part of it: the tar in the
guest is told to write neither.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from agentvm_kernel.errors import TransferError
from agentvm_kernel.tarheader import BLOCK, Header, read_header

_CHUNK: Final = 256 << 10
_MAX_EXTENDED: Final = 64 << 10
_MAX_NUMBER: Final = 20
_MAX_PADDING: Final = 1 << 20
_KINDS: Final[dict[bytes, Literal["file", "folder", "link", "other"]]] = {
    b"0": "file",
    b"5": "folder",
    b"2": "link",
    b"3": "other",
    b"4": "other",
    b"6": "other",
}


@dataclass(frozen=True)
class Entry:
    """A member of an archive.

    Attributes:
        name: Its path as it is in the archive.
        kind: What it is; ``other`` is a device or a named pipe.
        size: Bytes of content that follow.
        mode: Permissions, and more.
        mtime: Seconds since 1970.
        target: What a link leads to.
    """

    name: bytes
    kind: Literal["file", "folder", "link", "other"]
    size: int
    mode: int
    mtime: int
    target: bytes


class TarStream:
    """Reads an archive from its beginning to its end.

    Args:
        pieces: The archive.
    """

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._pieces = pieces
        self._data = memoryview(b"")
        self._left = 0
        self._padding = 0

    async def next(self) -> Entry | None:
        """Return the next member, whose content has to be read to its end; None at the archive's end.

        Raises:
            TransferError: it is no such archive.
        """
        records: dict[bytes, bytes] = {}
        while (header := self._header(await self._exactly(BLOCK))) and header.kind == b"x":
            records = await self._extended(header)
        if header is None:
            await self._to_the_end()
            return None
        kind = _KINDS.get(header.kind)
        if kind is None:
            raise TransferError(f"The VM sent an archive with something in it that is not known here: {header.kind!a}.")
        name = b"/".join(part for part in (header.prefix, header.name) if part)
        size = _integer(records[b"size"]) if b"size" in records else header.size
        self._left = size if kind == "file" else 0
        self._padding = -self._left % BLOCK
        return Entry(
            records.get(b"path", name), kind, self._left, header.mode, header.mtime,
            records.get(b"linkpath", header.link),
        )  # fmt: skip

    async def content(self) -> AsyncIterator[memoryview]:
        """Yield the member's content in pieces.

        Raises:
            TransferError: the archive is cut off.
        """
        while self._left:
            if not self._data:
                await self._more()
            piece = self._data[: self._left]
            self._data = self._data[len(piece) :]
            self._left -= len(piece)
            yield piece
        await self._exactly(self._padding)
        self._padding = 0

    async def _extended(self, header: Header) -> dict[bytes, bytes]:
        """Read an extended header's records (pax(1)): each is its length, a blank, ``name=value`` and a line's end."""
        if header.size > _MAX_EXTENDED:
            raise TransferError("The VM sent an archive with a header that is too long.")
        data = (await self._exactly(header.size + -header.size % BLOCK))[: header.size]
        records = {}
        while data:
            length = _integer(data.partition(b" ")[0])
            record, data = data[:length], data[length:]
            name, equals, value = record.partition(b" ")[2].partition(b"=")
            if not (equals and value.endswith(b"\n") and len(record) == length):
                raise _damaged()
            records[name] = value[:-1]
        return records

    async def _to_the_end(self) -> None:
        """Read the padding, so that whoever sends can end as they should."""
        size = len(self._data)
        async for piece in self._pieces:
            size += len(piece)
            if size > _MAX_PADDING:
                raise TransferError("The archive from the VM goes on after its end.")

    def _header(self, block: bytes) -> Header | None:
        try:
            return read_header(block)
        except ValueError:
            raise _damaged() from None

    async def _exactly(self, size: int) -> bytes:
        pieces = []
        while size:
            if not self._data:
                await self._more()
            pieces.append(bytes(self._data[:size]))
            self._data = self._data[len(pieces[-1]) :]
            size -= len(pieces[-1])
        return b"".join(pieces)

    async def _more(self) -> None:
        try:
            self._data = memoryview(await anext(self._pieces))
        except StopAsyncIteration:
            raise TransferError("The archive from the VM is cut off.") from None


def pack(local: Path, name: str) -> Iterator[bytes]:
    """Yield an archive of a file, or of a folder with all that is in it: files, folders and symbolic links.

    Args:
        local: The file or folder; a link is followed.
        name: What it is called in the archive.

    Raises:
        OSError: something in it cannot be read.
        TransferError: a file changed meanwhile.
    """
    yield from _pack_one(local, name, local.stat())
    yield bytes(2 * BLOCK)


def _pack_one(path: Path, name: str, status: os.stat_result) -> Iterator[bytes]:
    info = tarfile.TarInfo(name)
    info.mode, info.mtime = stat.S_IMODE(status.st_mode) & 0o777, int(status.st_mtime)
    if stat.S_ISDIR(status.st_mode):
        info.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(status.st_mode):
        info.type, info.linkname = tarfile.SYMTYPE, str(path.readlink())
    elif stat.S_ISREG(status.st_mode):
        info.size = status.st_size
    else:
        return
    if info.isfile():
        yield from _pack_file(path, info)
        return
    yield info.tobuf(tarfile.PAX_FORMAT, errors="surrogateescape")
    if info.isdir():
        with os.scandir(path) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            yield from _pack_one(Path(entry.path), f"{name}/{entry.name}", entry.stat(follow_symlinks=False))


def _pack_file(path: Path, info: tarfile.TarInfo) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield info.tobuf(tarfile.PAX_FORMAT, errors="surrogateescape")
        left = info.size
        while left:
            piece = file.read(min(left, _CHUNK))
            if not piece:
                raise TransferError(f"{path} became shorter while it was copied.")
            left -= len(piece)
            yield piece
    yield bytes(-info.size % BLOCK)


def _integer(text: bytes) -> int:
    if not (text.isdigit() and len(text) <= _MAX_NUMBER):
        raise _damaged()
    return int(text)


def _damaged() -> TransferError:
    return TransferError("The VM sent something that is no tar archive, or a damaged one.")
