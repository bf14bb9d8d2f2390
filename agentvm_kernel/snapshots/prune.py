"""Making room: which snapshots go, and how one goes without breaking those that descend from it.

A snapshot without children is removed. One with a single child is merged into it: the child gets the memory of both
in one delta, keeps the disk layers of both (but those that its disk does not lie over), and has the grandparent for a
parent; its content and its id stay the same, and so does its disk's chain, on which the disks of others may lie.
One with several children stays.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from agentvm_kernel.errors import SnapshotError
from agentvm_kernel.snapshots.pins import is_used
from agentvm_kernel.snapshots.reading import (
    DELTA_NAME,
    DEVICE_STATE,
    MANIFEST,
    NOTES,
    Contents,
    Stored,
    allocated,
    memory_size,
)
from agentvm_kernel.snapshots.shelf import Shelf
from agentvm_kernel.vm.delta import Delta, Run, delta_size, merge_deltas, merge_runs
from agentvm_kernel.vm.snapshot import FileDigest, Manifest, Snapshot

_log = logging.getLogger(__name__)

_FS_BLOCK = 4096


@dataclass
class _Node:
    """A snapshot while a plan is made.

    Attributes:
        stored: The snapshot.
        parent: Its parent's id by then.
        children: Its children's ids by then.
        absorbed: Ancestors merged into it by then, nearest first.
        size: Bytes that it takes by then.
        runs: The blocks in its delta by then.
    """

    stored: Stored
    parent: str
    children: set[str] = field(default_factory=set)
    absorbed: list[Stored] = field(default_factory=list)
    size: int = 0
    runs: list[Run] = field(default_factory=list)


@dataclass(frozen=True)
class Step:
    """One part of a plan.

    Attributes:
        child: What takes the others in; ``None`` if they are only removed.
        gone: Snapshots that go, nearest to the child first.
    """

    child: Stored | None
    gone: tuple[Stored, ...]


@dataclass(frozen=True)
class Plan:
    """What is to go.

    Attributes:
        steps: In this order.
        gone: The snapshots that go, oldest first.
        freed: Bytes that this gives, but for a few of the manifests.
    """

    steps: tuple[Step, ...]
    gone: tuple[Stored, ...]
    freed: int


class _Forest:
    """All snapshots, with those taken out that a plan removes."""

    def __init__(self, contents: Iterable[Contents]) -> None:
        self._nodes: dict[str, _Node] = {}
        self._stay: set[str] = set()
        self.steps: list[Step] = []
        for one in contents:
            self._nodes |= {stored.id: _Node(stored, stored.parent, size=stored.size) for stored in one.sound}
            self._stay |= {damaged.parent for damaged in one.damaged}
        for name, node in self._nodes.items():
            if node.parent in self._nodes:
                self._nodes[node.parent].children.add(name)

    def why_not(self, name: str) -> str:
        """Return why a snapshot cannot be taken out; empty if it can."""
        if name in self._stay:
            return "a damaged snapshot descends from it"
        children = self._nodes[name].children
        return f"{len(children)} snapshots descend from it: {', '.join(sorted(children))}" if len(children) > 1 else ""

    def take_out(self, name: str) -> int:
        """Take a snapshot out. Returns the bytes that this frees."""
        node = self._nodes.pop(name)
        if node.parent in self._nodes:
            self._nodes[node.parent].children.discard(name)
        if not node.children:
            self.steps.append(Step(None, (node.stored, *node.absorbed)))
            return node.size
        child = self._nodes[next(iter(node.children))]
        before = node.size + child.size
        child.runs = merge_runs(_runs(child), _runs(node))
        child.absorbed += [node.stored, *node.absorbed]
        child.parent = node.parent
        if node.parent in self._nodes:
            self._nodes[node.parent].children.add(child.stored.id)
        child.size = _merged_size(child)
        return before - child.size

    def merges(self) -> list[Step]:
        """Return the merges that are left to do."""
        return [Step(node.stored, tuple(node.absorbed)) for node in self._nodes.values() if node.absorbed]


def _runs(node: _Node) -> list[Run]:
    return node.runs or list(_delta(node.stored).runs)


def _delta(stored: Stored) -> Delta:
    return Delta.open(stored.snapshot.delta, memory_size(stored.snapshot.manifest))


def _merged_size(node: _Node) -> int:
    """Return the most that a snapshot can take with what was merged into it; holes are not known before."""
    own = node.stored.snapshot
    together = [one.snapshot for one in (node.stored, *node.absorbed)]
    deltas = sum(allocated(one.delta) for one in together)
    ids = {one.id for one in together}
    layers = sum(allocated(layer.path) for layer in own.layers if layer.snapshot.id in ids)
    others = sum(allocated(own.folder / name) for name in (MANIFEST, NOTES, DEVICE_STATE))
    return others + layers + min(deltas, delta_size(node.runs) + _FS_BLOCK)


def plan_removal(contents: Iterable[Contents], candidates: Iterable[Stored], enough: Callable[[int], bool]) -> Plan:
    """Find out what has to go.

    Args:
        contents: All trees that the candidates are in.
        candidates: What may go, in the order in which it should.
        enough: Says whether this many freed bytes are enough.
    """
    forest = _Forest(contents)
    left = list(candidates)
    gone: list[Stored] = []
    freed = 0
    while not enough(freed):
        # What could not go before can when all but one of its children are gone.
        chosen = next((one for one in left if not forest.why_not(one.id)), None)
        if chosen is None:
            break
        left.remove(chosen)
        gone.append(chosen)
        freed += forest.take_out(chosen.id)
    return Plan((*forest.steps, *forest.merges()), tuple(gone), freed)


def plan_one(contents: Contents, one: Stored) -> Plan:
    """Find out how one snapshot goes.

    Raises:
        SnapshotError: it cannot.
    """
    if reason := _Forest([contents]).why_not(one.id):
        raise SnapshotError(
            f"The snapshot {one.id} cannot be removed: {reason}.", "Remove what descends from it first."
        )
    return plan_removal([contents], [one], lambda freed: freed > 0)


def carry_out(shelf: Shelf, plan: Plan) -> list[str]:
    """Do what was planned; the caller holds the lock. Returns the ids of what is gone.

    What came into use since the plan was made, or turns out to be damaged, stays, with what it would have gone with.
    """
    gone: list[str] = []
    for step in plan.steps:
        gone += _merge(shelf, step.child, step.gone) if step.child else _remove(shelf, step.gone)
    for tree in {one.snapshot.folder.parent.name for one in plan.gone}:
        shelf.sweep_tree(tree)
    return gone


def _remove(shelf: Shelf, gone: tuple[Stored, ...]) -> list[str]:
    with shelf.thawed():
        doomed = _take_away(shelf, gone)
    for folder in doomed:
        shelf.disk.remove_tree(folder)
    return [one.id for one in gone[: len(doomed)]]


def _take_away(shelf: Shelf, gone: tuple[Stored, ...]) -> list[Path]:
    """Take the names of snapshots, those that descend from others first, so that at no moment one lacks its parent."""
    if any(is_used(one.snapshot.folder) for one in gone):
        return []
    return [shelf.take_away(one.snapshot.folder) for one in gone]


def _merge(shelf: Shelf, child: Stored, gone: tuple[Stored, ...]) -> list[str]:
    """Merge snapshots into their descendant.

    New files are put beside the child's old ones. The replacement of its manifest is the moment in which it has the
    merged content; before, they are leftovers, afterwards the old delta is.
    """
    folder, old = child.snapshot.folder, child.snapshot.manifest
    if damage := [f"{one.id}: {line}" for one in (*gone, child) for line in compare(one.snapshot)]:
        # Merged, its content would get a digest that fits.
        _log.warning("not pruned, because damaged: %s", "; ".join(damage))
        return []
    try:
        layers = _link_layers(shelf, child, gone)
        over = child.snapshot.depth - len(layers)
        delta = _next_name(old.delta)
        in_order = [_delta(one) for one in (*reversed(gone), child)]
        shelf.disk.make(folder / delta, lambda path: merge_deltas(in_order, path))
        shelf.protect(folder / delta)
        shelf.disk.sync(folder)
        files = {name: file for name, file in old.files.items() if name != old.delta} | layers
        parent = gone[-1].snapshot.parent
        manifest = old.model_copy(
            update={
                "parent": gone[-1].parent, "delta": delta, "own_layers": tuple(layers),
                "over": None if parent is None or over == parent.depth else over,
                "files": files | {delta: describe(folder / delta)},
            }
        )  # fmt: skip
        with shelf.thawed():
            shelf.write_manifest(folder, manifest)
            doomed = _take_away(shelf, gone)
    finally:
        shelf.sweep(folder)
    for each in doomed:
        shelf.disk.remove_tree(each)
    return [one.id for one in gone[: len(doomed)]]


def _next_name(delta: str) -> str:
    """Return a name for a merged delta; none is used twice, so that whoever still reads an old one can tell."""
    match = DELTA_NAME.fullmatch(delta)
    return f"memory-{int(match[1] or 0) + 1 if match else 1}.delta"


def _link_layers(shelf: Shelf, child: Stored, gone: tuple[Stored, ...]) -> dict[str, FileDigest]:
    """Give layers that a child's disk gets from ancestors names in its folder. Returns all its own, topmost first."""
    manifest: Manifest = child.snapshot.manifest
    names = (f"disk-{number}.qcow2" for number in range(1, 10000))
    free = (name for name in names if name not in manifest.files)
    ids = {one.id for one in gone}
    layers = {}
    for layer in reversed(child.snapshot.layers):
        file = layer.snapshot.manifest.files[layer.name]
        if layer.snapshot.id == child.id:
            layers[layer.name] = file
        elif layer.snapshot.id in ids:
            new = next(free)
            shelf.disk.link(layer.path, child.snapshot.folder / new)
            layers[new] = file
    return layers


def compare(snapshot: Snapshot) -> list[str]:
    """Compare a snapshot's files with the digests in its manifest. Returns a line for each that differs."""
    return [
        f"{name} has another content than when it was stored"
        for name, file in snapshot.manifest.files.items()
        if describe(snapshot.folder / name) != file
    ]


def describe(path: Path) -> FileDigest:
    """Return a file's size and digest."""
    with path.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
        return FileDigest(size=file.tell(), sha256=content)
