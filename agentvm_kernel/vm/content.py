"""What a snapshot's memory holds, page by page, out of its deltas and the golden snapshot's complete file."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from agentvm_kernel.vm.delta import PAGE, Delta, Layers, Run
from agentvm_kernel.vm.snapshot import Snapshot


def layers_of(snapshot: Snapshot) -> Layers:
    """Return all deltas of a snapshot, over its golden one.

    Raises:
        SnapshotError: one is damaged.
    """
    pages = (snapshot.hardware.memory_mib << 20) // PAGE
    return Layers(Delta.open(older.delta, pages) for older in snapshot.lineage[1:])


def changed_pages(snapshot: Snapshot, runs: list[Run], pages: memoryview) -> tuple[list[Run], list[memoryview]]:
    """Drop the pages that are as the snapshot has them.

    Args:
        snapshot: To compare with.
        runs: Which pages are given.
        pages: Their content.

    Returns:
        The runs and the content of those that differ.
    """
    changed: list[Run] = []
    parts: list[memoryview] = []
    with ExitStack() as stack:
        content = _Content(snapshot, stack)
        place = 0
        for first, count in runs:
            for start, length, old in content.read(first, count):
                new = pages[place : place + length * PAGE]
                place += length * PAGE
                for low, high in _differing(old, new):
                    changed.append((start + low, high - low))
                    parts.append(new[low * PAGE : high * PAGE])
    return changed, parts


class _Content:
    def __init__(self, snapshot: Snapshot, stack: ExitStack) -> None:
        self._layers = layers_of(snapshot)
        self._golden = snapshot.golden.memory
        self._stack = stack
        self._views: dict[Path, memoryview] = {}

    def read(self, first: int, count: int) -> Iterator[tuple[int, int, memoryview]]:
        for start, length, path, offset in self._layers.locate(first, count):
            place = offset if path else start * PAGE
            yield start, length, self._view(path or self._golden)[place : place + length * PAGE]

    def _view(self, path: Path) -> memoryview:
        if path not in self._views:
            file = self._stack.enter_context(path.open("rb"))
            mapped = self._stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            self._views[path] = self._stack.enter_context(memoryview(mapped))
        return self._views[path]


def _differing(old: memoryview, new: memoryview) -> Iterator[tuple[int, int]]:
    """Yield the runs of pages, from and to, in which two contents of equal length differ."""
    start = None
    for page in range(len(new) // PAGE):
        span = slice(page * PAGE, (page + 1) * PAGE)
        if old[span] != new[span]:
            start = page if start is None else start
        elif start is not None:
            yield start, page
            start = None
    if start is not None:
        yield start, len(new) // PAGE
