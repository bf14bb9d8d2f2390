"""What a snapshot's memory holds, out of its deltas and the golden snapshot's complete file."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agentvm_kernel.vm.delta import BLOCK, PAGE, Delta, Layers, Run, merge_runs
from agentvm_kernel.vm.memory import address_of
from agentvm_kernel.vm.snapshot import Snapshot

_BLOCKS: Final = PAGE // BLOCK
_STRETCH: Final = 16
"""Pages."""


def changed_blocks(content: Content, runs: Sequence[Run], pages: memoryview) -> tuple[list[Run], list[memoryview]]:
    """Keep of some pages what differs.

    Args:
        content: To compare with.
        runs: Which pages are given.
        pages: Their content.

    Returns:
        The runs of blocks that differ, and their content.
    """
    changed: list[Run] = []
    parts: list[memoryview] = []
    place = 0
    for first, count in runs:
        # Much that was written at a stretch is new; then blocks would only make a longer index.
        unit = BLOCK if count < _STRETCH else PAGE
        new = pages[place : place + count * PAGE]
        place += count * PAGE
        for low, high in _differing(bytes(content.read(first, count)), bytes(new), unit):
            changed.append((first * _BLOCKS + low // BLOCK, (high - low) // BLOCK))
            parts.append(new[low:high])
    return changed, parts


class Content:
    """Reads a snapshot's memory. Its files may be removed meanwhile.

    Args:
        snapshot: The snapshot.

    Raises:
        SnapshotError: a delta is damaged.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self._golden = _File.map(snapshot.golden.memory)
        self._memory = len(self._golden.view)
        self._deltas = [Delta.open(older.delta, self._memory) for older in snapshot.lineage[1:]]
        self._files = {delta.path: _File.map(delta.path) for delta in self._deltas}
        self.layers = Layers(self._deltas)

    def advance(self, child: Snapshot) -> None:
        """Become a child of what it is."""
        delta = Delta.open(child.delta, self._memory)
        self._deltas.append(delta)
        self._files[delta.path] = _File.map(delta.path)
        self.layers.lay(delta)

    def read(self, first: int, count: int) -> memoryview | bytes:
        """Return the content of a run of pages."""
        parts = [
            file.view[offset : offset + length]
            for _, file, offset, length in self._parts(first * _BLOCKS, count * _BLOCKS)
        ]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def pieces(self, base: Snapshot) -> Iterator[tuple[int, memoryview]]:
        """Yield what may differ from another snapshot of the tree: address in the guest's memory, and bytes; ascending.

        Args:
            base: The other snapshot.
        """
        for place, file, offset, length in self._differences(base):
            yield place, file.view[offset : offset + length]

    def addresses(self, base: Snapshot) -> Iterator[tuple[int, int, int]]:
        """Yield the same without its bytes: address in the guest's memory, address in this process, length.

        Args:
            base: The other snapshot.
        """
        for place, file, offset, length in self._differences(base):
            yield place, file.address + offset, length

    def _differences(self, base: Snapshot) -> Iterator[_Part]:
        if base.parent is None:
            for first, count, path, offset in self.layers.pieces():
                yield first * BLOCK, self._files[path], offset, count * BLOCK
            return
        for first, count in merge_runs(*(delta.runs for delta in self._between(base))):
            yield from self._parts(first, count)

    def _between(self, base: Snapshot) -> Iterator[Delta]:
        """Yield the deltas on the way from another snapshot to this one, up to their common ancestor and down again."""
        mine = {delta.path: delta for delta in self._deltas}
        theirs = [older.delta for older in base.lineage[1:]]
        yield from (delta for path, delta in mine.items() if path not in theirs)
        yield from (Delta.open(path, self._memory) for path in theirs if path not in mine)

    def _parts(self, first: int, count: int) -> Iterator[_Part]:
        for start, length, path, offset in self.layers.locate(first, count):
            file, at = (self._files[path], offset) if path else (self._golden, start * BLOCK)
            yield start * BLOCK, file, at, length * BLOCK


@dataclass(frozen=True, eq=False)
class _File:
    """A mapped file.

    Attributes:
        view: Its content.
        address: Where that lies in this process.
    """

    view: memoryview
    address: int

    @classmethod
    def map(cls, path: Path) -> _File:
        with path.open("rb") as file:
            view = memoryview(mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE))
        return cls(view, address_of(view))


_Part = tuple[int, _File, int, int]
"""Address in the guest's memory, the file with its content, where in the file, length."""


def _differing(old: bytes, new: bytes, unit: int) -> Iterator[tuple[int, int]]:
    """Yield where, from and to, two contents of equal length differ, in whole units.

    Bytes are compared all at once, views of memory one item after the other.
    """
    start = None
    for page in range(0, len(new), PAGE):
        if old[page : page + PAGE] == new[page : page + PAGE]:
            if start is not None:
                yield start, page
                start = None
            continue
        for place in range(page, page + PAGE, unit):
            if unit == PAGE or old[place : place + unit] != new[place : place + unit]:
                start = place if start is None else start
            elif start is not None:
                yield start, place
                start = None
    if start is not None:
        yield start, len(new)
