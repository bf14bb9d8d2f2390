"""A memory delta: what a VM's memory holds differently from its parent snapshot's, in one file.

The unit is a block of 256 bytes, since most of the pages that a notebook writes differ in a few bytes. The file is a
header, the runs of blocks as pairs of 64-bit integers (first block, number of blocks), and the blocks, in the same
order; zeros are holes. All integers are little-endian. A reader trusts nothing of it: an imported snapshot may come
from anywhere.
"""

from __future__ import annotations

import os
import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import BinaryIO

from agentvm_kernel.errors import SnapshotError

PAGE = 4096
BLOCK = 256
_MAGIC = b"AVMDELT1"
_HEADER = struct.Struct("<8sQQ")  # magic, number of runs, number of blocks
_MAX_RUNS = 1 << 28
_HOLE = 1 << 16
_ZEROS = memoryview(bytes(_HOLE))
_BLOCKS_AT_ONCE = 1 << 14

Run = tuple[int, int]
"""First block, or page, and number of them."""


@dataclass(frozen=True)
class Delta:
    """A delta file's index.

    Attributes:
        path: The file.
        runs: Its runs, ascending, apart from each other.
        offset: Where the blocks begin.
    """

    path: Path
    runs: tuple[Run, ...]
    offset: int

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return sum(count for _, count in self.runs)

    @classmethod
    def open(cls, path: Path, memory: int) -> Delta:
        """Read and check the index.

        Args:
            path: The file.
            memory: Size of the guest's memory in bytes.

        Raises:
            SnapshotError: it is no valid delta for a guest of that size.
        """
        with path.open("rb") as file:
            runs, blocks = _read_header(file, path)
            offset = file.tell()
        end = 0
        for first, count in runs:
            if first < end or count < 1 or first + count > memory // BLOCK:
                raise SnapshotError(f"The memory delta {path} is damaged: its runs are not in order.")
            end = first + count
        if sum(count for _, count in runs) != blocks or path.stat().st_size != offset + blocks * BLOCK:
            raise SnapshotError(f"The memory delta {path} is damaged: its size is wrong.")
        return cls(path, runs, offset)


def _read_header(file: BinaryIO, path: Path) -> tuple[tuple[Run, ...], int]:
    header = file.read(_HEADER.size)
    if len(header) != _HEADER.size:
        raise SnapshotError(f"The memory delta {path} is damaged: it is cut off.")
    magic, number, blocks = _HEADER.unpack(header)
    size = path.stat().st_size
    if magic != _MAGIC or number > _MAX_RUNS or _HEADER.size + number * 16 > size:
        raise SnapshotError(f"The memory delta {path} is damaged: its header is wrong.")
    values = array("Q", file.read(number * 16))
    if len(values) != 2 * number:
        raise SnapshotError(f"The memory delta {path} is damaged: it is cut off.")
    return tuple(zip(values[::2], values[1::2], strict=True)), blocks


def write_delta(path: Path, runs: Sequence[Run], data: Iterable[bytes | bytearray | memoryview]) -> None:
    """Write a delta file; making it durable is the caller's.

    Args:
        path: File to create.
        runs: Ascending runs.
        data: The blocks' content, in the runs' order, in pieces of any size.
    """
    blocks = sum(count for _, count in runs)
    with path.open("xb") as file:
        index = array("Q", [value for run in runs for value in run])
        file.write(_HEADER.pack(_MAGIC, len(runs), blocks) + index.tobytes())
        for piece in data:
            write_sparse(file, memoryview(piece))
        file.truncate(_HEADER.size + len(runs) * 16 + blocks * BLOCK)


def write_sparse(file: BinaryIO, piece: memoryview) -> None:
    """Write to a file, but leave a hole where all is zero; the caller truncates the file to its size."""
    for start in range(0, len(piece), _HOLE):
        part = piece[start : start + _HOLE]
        if part == _ZEROS[: len(part)]:
            file.seek(len(part), os.SEEK_CUR)
        else:
            file.write(part)


_Piece = tuple[int, int, Delta, int]
"""First block, number of blocks, delta, offset of the data in its file. Lists of them ascend and do not overlap."""


class Layers:
    """Deltas on top of each other, oldest first: where the newest content of each block is.

    Args:
        deltas: Oldest first.
    """

    def __init__(self, deltas: Iterable[Delta] = ()) -> None:
        many = [list(_pieces_of(delta)) for delta in deltas]
        # Neighbours first: one by one, each delta would touch all pieces of those before it.
        while len(many) > 1:
            pairs: Iterable[tuple[list[_Piece], list[_Piece]]] = zip_longest(many[::2], many[1::2], fillvalue=[])
            many = [_over(newer, older) for older, newer in pairs]
        self._set(many[0] if many else [])

    def _set(self, pieces: list[_Piece]) -> None:
        self._pieces = pieces
        self._starts = [piece[0] for piece in pieces]

    def lay(self, delta: Delta) -> None:
        """Put a delta over what is there."""
        self._set(_over(list(_pieces_of(delta)), self._pieces))

    @property
    def runs(self) -> list[Run]:
        """All blocks of all deltas, as ascending runs; neighbours may touch."""
        return [(first, count) for first, count, _, _ in self._pieces]

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return sum(count for _, count, _, _ in self._pieces)

    def pieces(self) -> Iterator[tuple[int, int, Path, int]]:
        """Yield first block, number of blocks, file, offset in the file, ascending."""
        for first, count, delta, offset in self._pieces:
            yield first, count, delta.path, offset

    def locate(self, first: int, count: int) -> Iterator[tuple[int, int, Path | None, int]]:
        """Yield where the content of a range of blocks is; the file is ``None`` for those in no delta.

        Args:
            first: First block.
            count: Number of blocks.
        """
        end = first + count
        index = max(bisect_right(self._starts, first) - 1, 0)
        while index < len(self._pieces) and self._pieces[index][0] < end:
            start, length, delta, offset = self._pieces[index]
            index += 1
            low, high = max(start, first), min(start + length, end)
            if low >= high:
                continue
            if first < low:
                yield first, low - first, None, 0
            yield low, high - low, delta.path, offset + (low - start) * BLOCK
            first = high
        if first < end:
            yield first, end - first, None, 0


def _over(newer: list[_Piece], older: list[_Piece]) -> list[_Piece]:
    """Put pieces over others, of which they cut away what they cover."""
    merged: list[_Piece] = []
    rest = iter(older)
    piece = next(rest, None)
    for run in newer:
        first, end = run[0], run[0] + run[1]
        while piece is not None and piece[0] < end:
            start, stop = piece[0], piece[0] + piece[1]
            if start < first:
                merged.append((start, min(stop, first) - start, piece[2], piece[3]))
            if stop > end:
                piece = (end, stop - end, piece[2], piece[3] + (end - start) * BLOCK)
                break
            piece = next(rest, None)
        merged.append(run)
    if piece is not None:
        merged += [piece, *rest]
    return merged


def _pieces_of(delta: Delta) -> Iterator[_Piece]:
    offset = delta.offset
    for first, count in delta.runs:
        yield first, count, delta, offset
        offset += count * BLOCK


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


def delta_size(runs: Sequence[Run]) -> int:
    """Return the bytes that a delta file of these runs takes."""
    return _HEADER.size + 16 * len(runs) + BLOCK * sum(count for _, count in runs)


def merge_deltas(deltas: Iterable[Delta], path: Path) -> None:
    """Write the delta that has the same effect as several, one after the other.

    Args:
        deltas: Oldest first.
        path: File to create.
    """
    layers = Layers(deltas)
    write_delta(path, merge_runs(layers.runs), _contents(layers))


def _contents(layers: Layers) -> Iterator[bytes]:
    files: dict[Path, BinaryIO] = {}
    try:
        for _, count, path, offset in layers.pieces():
            file = files.get(path) or files.setdefault(path, path.open("rb"))
            file.seek(offset)
            for done in range(0, count, _BLOCKS_AT_ONCE):
                yield file.read(min(count - done, _BLOCKS_AT_ONCE) * BLOCK)
    finally:
        for file in files.values():
            file.close()
