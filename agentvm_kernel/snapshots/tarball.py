"""Reading tar archives that may be hostile: regular files with plain names, and nothing else.

Python's tarfile understands links, devices, sparse files and headers of any length, each of which would have to be
refused; this reader does not know them. What it reads is written by tarfile, and by GNU tar where names are short.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from agentvm_kernel.errors import SnapshotError
from agentvm_kernel.tarheader import BLOCK, read_header

_CHUNK = 1 << 20
_MOST_PADDING = 1 << 20
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Member:
    """A file of an archive.

    Attributes:
        name: Its name as it is in the archive.
        size: Bytes that follow.
    """

    name: str
    size: int


class TarReader:
    """Reads an archive from its beginning to its end.

    Args:
        file: The archive, not compressed.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._left = 0
        self._padding = 0

    def next(self) -> Member | None:
        """Return the next member, whose content has to be read to its end; ``None`` at the archive's end.

        Raises:
            SnapshotError: it is no archive that export writes.
        """
        try:
            header = read_header(self._exactly(BLOCK))
        except ValueError:
            raise SnapshotError("The file is no snapshot archive, or it is damaged.") from None
        if header is None:
            self._expect_end()
            return None
        name = header.name
        if header.kind != b"0" or header.link or header.prefix or not _is_plain(name):
            raise SnapshotError(f"The archive has something other than a plain file in it: {name[:100]!a}.")
        self._left = header.size
        self._padding = -self._left % BLOCK
        return Member(name.decode("ascii"), self._left)

    def content(self) -> Iterator[bytes]:
        """Yield the member's content in pieces.

        Raises:
            SnapshotError: the archive is cut off.
        """
        while self._left:
            piece = self._exactly(min(self._left, _CHUNK))
            self._left -= len(piece)
            yield piece
        self._exactly(self._padding)
        self._padding = 0

    def _expect_end(self) -> None:
        padding = BLOCK
        while piece := self._read(_CHUNK):
            padding += len(piece)
            if any(piece) or padding > _MOST_PADDING:
                raise SnapshotError("The archive goes on after its end.")

    def _exactly(self, size: int) -> bytes:
        content = self._read(size)
        if len(content) != size:
            raise SnapshotError("The archive is cut off.")
        return content

    def _read(self, size: int) -> bytes:
        try:
            return self._file.read(size)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise SnapshotError(f"The archive is damaged: {error}.") from error


def _is_plain(name: bytes) -> bool:
    return name.isascii() and bytes(name).decode("ascii").isprintable()


@contextmanager
def open_archive(path: Path) -> Iterator[TarReader]:
    """Open an archive, compressed by gzip or not.

    Raises:
        SnapshotError: it cannot be opened.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise SnapshotError(f"{path} cannot be opened: {error.strerror}.") from error
    with file:
        magic = file.read(len(_GZIP))
        file.seek(0)
        if magic == _GZIP:
            with gzip.GzipFile(fileobj=file) as plain:
                yield TarReader(plain)  # type: ignore[arg-type]  # it reads like any other
        else:
            yield TarReader(file)
