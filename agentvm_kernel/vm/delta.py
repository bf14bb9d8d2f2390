"""A memory delta: the pages that a VM wrote since its parent snapshot, in one file.

The file is a header, the runs of pages as pairs of 64-bit integers (first page, number of pages), and the pages, in the
same order. All integers are little-endian. A reader trusts nothing of it: an imported snapshot may come from anywhere.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from agentvm_kernel.errors import SnapshotError

PAGE = 4096
_MAGIC = b"AVMDELT1"
_HEADER = struct.Struct("<8sQQ")  # magic, number of runs, number of pages
_MAX_RUNS = 1 << 28

Run = tuple[int, int]
"""First page and number of pages."""


@dataclass(frozen=True)
class Delta:
    """A delta file's index.

    Attributes:
        path: The file.
        runs: Its runs, ascending, apart from each other.
        offset: Where the pages' data begins.
    """

    path: Path
    runs: tuple[Run, ...]
    offset: int

    @property
    def pages(self) -> int:
        """Number of pages."""
        return sum(count for _, count in self.runs)

    @classmethod
    def open(cls, path: Path, memory_pages: int) -> Delta:
        """Read and check the index.

        Args:
            path: The file.
            memory_pages: Size of the guest's memory in pages.

        Raises:
            SnapshotError: it is no valid delta for a guest of that size.
        """
        with path.open("rb") as file:
            runs, pages = _read_header(file, path)
            offset = file.tell()
        end = 0
        for first, count in runs:
            if first < end or count < 1 or first + count > memory_pages:
                raise SnapshotError(f"The memory delta {path} is damaged: its runs are not in order.")
            end = first + count
        if sum(count for _, count in runs) != pages or path.stat().st_size != offset + pages * PAGE:
            raise SnapshotError(f"The memory delta {path} is damaged: its size is wrong.")
        return cls(path, runs, offset)


def _read_header(file: BinaryIO, path: Path) -> tuple[tuple[Run, ...], int]:
    header = file.read(_HEADER.size)
    if len(header) != _HEADER.size:
        raise SnapshotError(f"The memory delta {path} is damaged: it is cut off.")
    magic, number, pages = _HEADER.unpack(header)
    size = path.stat().st_size
    if magic != _MAGIC or number > _MAX_RUNS or _HEADER.size + number * 16 > size:
        raise SnapshotError(f"The memory delta {path} is damaged: its header is wrong.")
    values = array("Q", file.read(number * 16))
    if len(values) != 2 * number:
        raise SnapshotError(f"The memory delta {path} is damaged: it is cut off.")
    return tuple(zip(values[::2], values[1::2], strict=True)), pages


def write_delta(path: Path, runs: Sequence[Run], data: Iterable[bytes | bytearray | memoryview]) -> None:
    """Write a delta file; making it durable is the caller's.

    Args:
        path: File to create.
        runs: Ascending runs.
        data: The pages' content, in the runs' order, in pieces of any size.
    """
    with path.open("xb", buffering=0) as file:
        index = array("Q", [value for run in runs for value in run])
        file.write(_HEADER.pack(_MAGIC, len(runs), sum(count for _, count in runs)) + index.tobytes())
        for piece in data:
            _write_all(file, memoryview(piece).cast("B"))


def _write_all(file: BinaryIO, view: memoryview) -> None:
    while view:
        view = view[file.write(view) :]


class Layers:
    """Deltas on top of each other, oldest first: where the newest content of each page is.

    Args:
        deltas: Oldest first.
    """

    def __init__(self, deltas: Iterable[Delta] = ()) -> None:
        self._starts: list[int] = []
        # Ascending and apart from each other: first page, number of pages, delta, offset of the data in its file.
        self._pieces: list[tuple[int, int, Delta, int]] = []
        for delta in deltas:
            self._lay(delta)

    def _lay(self, delta: Delta) -> None:
        """Put a delta over what is there: its runs cut pieces of the older ones away."""
        new = list(_pieces_of(delta))
        merged: list[tuple[int, int, Delta, int]] = []
        older = iter(self._pieces)
        piece = next(older, None)
        for run in new:
            first, end = run[0], run[0] + run[1]
            while piece is not None and piece[0] < end:
                start, stop = piece[0], piece[0] + piece[1]
                if start < first:
                    merged.append((start, min(stop, first) - start, piece[2], piece[3]))
                if stop > end:
                    piece = (end, stop - end, piece[2], piece[3] + (end - start) * PAGE)
                    break
                piece = next(older, None)
            merged.append(run)
        while piece is not None:
            merged.append(piece)
            piece = next(older, None)
        self._pieces = merged
        self._starts = [entry[0] for entry in merged]

    @property
    def runs(self) -> list[Run]:
        """All pages of all deltas, as ascending runs; neighbours may touch."""
        return [(first, count) for first, count, _, _ in self._pieces]

    @property
    def pages(self) -> int:
        """Number of pages."""
        return sum(count for _, count, _, _ in self._pieces)

    @property
    def files(self) -> set[Path]:
        """The files that hold some page's newest content."""
        return {delta.path for _, _, delta, _ in self._pieces}

    def pieces(self) -> Iterator[tuple[int, int, Path, int]]:
        """Yield first page, number of pages, file, offset in the file, ascending."""
        for first, count, delta, offset in self._pieces:
            yield first, count, delta.path, offset

    def locate(self, first: int, count: int) -> Iterator[tuple[int, int, Path | None, int]]:
        """Yield where the content of a range of pages is; the file is ``None`` for pages in no delta.

        Args:
            first: First page.
            count: Number of pages.
        """
        end = first + count
        index = max(bisect_right(self._starts, first) - 1, 0)
        for start, length, delta, offset in self._pieces[index:]:
            if start >= end:
                break
            low, high = max(start, first), min(start + length, end)
            if low >= high:
                continue
            if first < low:
                yield first, low - first, None, 0
            yield low, high - low, delta.path, offset + (low - start) * PAGE
            first = high
        if first < end:
            yield first, end - first, None, 0


def _pieces_of(delta: Delta) -> Iterator[tuple[int, int, Delta, int]]:
    offset = delta.offset
    for first, count in delta.runs:
        yield first, count, delta, offset
        offset += count * PAGE


def merge_runs(*many: Iterable[Run]) -> list[Run]:
    """Return the union of several sets of runs, ascending and apart from each other."""
    merged: list[Run] = []
    for first, count in sorted(run for runs in many for run in runs):
        if merged and first <= merged[-1][0] + merged[-1][1]:
            start = merged[-1][0]
            merged[-1] = (start, max(merged[-1][0] + merged[-1][1], first + count) - start)
        else:
            merged.append((first, count))
    return merged


def merge_deltas(older: Delta, newer: Delta, path: Path) -> None:
    """Write the delta that has the same effect as one delta and then another.

    Args:
        older: Comes first.
        newer: Comes over it.
        path: File to create.
    """
    layers = Layers([older, newer])
    write_delta(path, merge_runs(layers.runs), _contents(layers))


def _contents(layers: Layers) -> Iterator[bytes]:
    files: dict[Path, BinaryIO] = {}
    try:
        for _, count, path, offset in layers.pieces():
            file = files.get(path) or files.setdefault(path, path.open("rb"))
            file.seek(offset)
            yield file.read(count * PAGE)
    finally:
        for file in files.values():
            file.close()
