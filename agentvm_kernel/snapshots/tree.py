"""The snapshots of one notebook."""

from __future__ import annotations

import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from agentvm_kernel.errors import LabelTakenError, NoSnapshotError, SnapshotError
from agentvm_kernel.snapshots.label import check_label
from agentvm_kernel.snapshots.notes import Notes
from agentvm_kernel.snapshots.pins import is_used
from agentvm_kernel.snapshots.prune import carry_out, compare, describe, plan_one
from agentvm_kernel.snapshots.quota import Quota
from agentvm_kernel.snapshots.reading import DEVICE_STATE, LAYER_NAME, Contents, Damaged, Stored, memory_size
from agentvm_kernel.snapshots.shelf import Shelf, storing
from agentvm_kernel.vm.delta import Delta
from agentvm_kernel.vm.snapshot import Manifest, Snapshot

_DELTA = "memory.delta"
_ID_BYTES = 6
_SHORTEST_PREFIX = 4
_STEPS_UP = re.compile(r"~([0-9]{0,6})")
_PREFIX = re.compile(r"[0-9a-f]+")
_NAMED_IN_ERRORS = 8


def new_id() -> str:
    """Return an id for a snapshot."""
    return secrets.token_hex(_ID_BYTES)


@dataclass
class New:
    """A snapshot being taken.

    Attributes:
        id: Its id.
        folder: Where to put ``device-state``, ``memory.delta`` and, if the disk was written, ``disk.qcow2``; further
            layers below that are ``disk-1.qcow2`` and so on.
        notes: What is said of it; may be replaced as long as it is not stored.
        is_dump: What is put there is a dump of QEMU's own.
        over: How many of the parent's disk layers the new ones lie over, lowest first; ``None`` for all.
    """

    id: str
    folder: Path
    notes: Notes
    is_dump: bool = False
    over: int | None = None
    _stored: Stored | None = field(default=None, init=False)

    @property
    def stored(self) -> Stored:
        """The stored snapshot; there once the block has ended well."""
        if self._stored is None:
            raise SnapshotError(f"The snapshot {self.id} is not stored yet.")
        return self._stored


class Tree:
    """The snapshots of one notebook.

    Args:
        tree: Its id.
        notebook: The notebook's name; empty if that is damaged.
        shelf: The folder of all snapshots.
        quota: What limits them.

    Attributes:
        id: Its id.
        notebook: The notebook's name.
    """

    def __init__(self, tree: str, notebook: str, shelf: Shelf, quota: Quota) -> None:
        self.id = tree
        self.notebook = notebook
        self._shelf = shelf
        self._quota = quota

    def contents(self) -> Contents:
        """Return all snapshots, sound and damaged."""
        with self._shelf.frozen():
            return self._shelf.read(self.id)

    def snapshots(self) -> list[Stored]:
        """Return the snapshots that can be used, oldest first."""
        return list(self.contents().sound)

    def damaged(self) -> list[Damaged]:
        """Return the snapshots that cannot be used, and why."""
        return list(self.contents().damaged)

    def find(self, reference: str, current: str = "") -> Stored:
        """Return the snapshot that a user means.

        Args:
            reference: Label, id, unique beginning of an id (4 digits or more), ``~N`` for N steps up from the current
                one; empty for the current one.
            current: Id of the current one; empty if that is the machine's first state.

        Raises:
            SnapshotError: there is no such snapshot, or more than one.
        """
        return find(self.contents(), reference, current)

    @contextmanager
    def new(self, parent: Snapshot, notes: Notes, *, name: str = "", pinned: bool = False) -> Iterator[New]:
        """Provide an empty folder that becomes a snapshot when the block ends well, and vanishes when it does not.

        Args:
            parent: What the snapshot descends from: golden, or of this tree.
            notes: What is said of it.
            name: Its id, from ``new_id``; by default a new one.
            pinned: Count it as in use from the moment that it is there; the caller unpins it.

        Yields:
            What to fill.

        Raises:
            SnapshotError: the label is taken or invalid, the parent is gone, or something else is wrong with it.
            DiskFullError: there is no room on the disk.
            QuotaError: there is no room for this user, even after pruning.
        """
        shelf, name = self._shelf, name or new_id()
        with storing(shelf.folder):
            check_free(notes.label, self.contents())
            with self._using(parent), shelf.scratch(name, for_qemu=True) as folder:
                new = New(name, folder, notes)
                yield new
                self._store(new, parent, pinned)

    def _store(self, new: New, parent: Snapshot, pinned: bool) -> None:
        shelf = self._shelf
        shelf.take_over(new.folder)
        manifest = _describe_new(new, parent)
        size = shelf.fill(new.folder, manifest, new.notes)
        with shelf.locked():
            contents = shelf.read(self.id)
            check_free(new.notes.label, contents)
            if manifest.parent and manifest.parent not in {one.id for one in contents.sound}:
                raise SnapshotError(f"The snapshot {manifest.parent}, which the new one descends from, is gone.")
            self._quota.make_room(size)
            shelf.put(new.folder, shelf.make_tree(self.notebook) / new.id)
            new._stored = find(shelf.read(self.id), new.id)
            if pinned:
                shelf.pins.add(new.id, new.stored.snapshot.folder)

    @contextmanager
    def _using(self, snapshot: Snapshot) -> Iterator[None]:
        if snapshot.parent is None:
            yield
            return
        self.pin(snapshot.id)
        try:
            yield
        finally:
            self.unpin(snapshot.id)

    def remove(self, snapshot: str) -> int:
        """Remove a snapshot; what descends from it stays as it is.

        Args:
            snapshot: Its id; also of a damaged one.

        Returns:
            The bytes that this gives.

        Raises:
            SnapshotError: it is in use, several others descend from it, or it is damaged and others descend from it.
        """
        with storing(self._shelf.folder), self._shelf.locked():
            contents = self._shelf.read(self.id)
            damaged = [one for one in contents.damaged if one.id == snapshot]
            if damaged:
                self._remove_damaged(damaged[0], contents)
                return damaged[0].size
            stored = find(contents, snapshot)
            if is_used(stored.snapshot.folder):
                raise SnapshotError(f"The snapshot {stored.id} is in use by a running VM.", "End that VM first.")
            plan = plan_one(contents, stored)
            if not carry_out(self._shelf, plan):
                raise SnapshotError(
                    f"The snapshot {snapshot} cannot be removed: it, or what descends from it, is damaged or in use.",
                    "See `agentvm snapshot verify`.",
                )
            return max(0, contents.size - self._shelf.read(self.id).size)

    def _remove_damaged(self, damaged: Damaged, contents: Contents) -> None:
        if children := contents.children(damaged.id):
            raise SnapshotError(
                f"The damaged snapshot {damaged.id} cannot be removed: {', '.join(children)} descend from it.",
                "Remove those first.",
            )
        with self._shelf.thawed():
            doomed = self._shelf.take_away(damaged.folder)
        self._shelf.disk.remove_tree(doomed)
        self._shelf.sweep_tree(self.id)

    def relabel(self, snapshot: str, label: str, text: str | None = None) -> Stored:
        """Give a snapshot another label and text.

        Args:
            snapshot: Its id.
            label: Its label from now on; empty for none.
            text: What the user says of it; ``None`` leaves that.

        Returns:
            The snapshot with them.

        Raises:
            SnapshotError: there is no such snapshot, or the label is taken or invalid.
        """
        with storing(self._shelf.folder), self._shelf.locked():
            contents = self._shelf.read(self.id)
            stored = find(contents, snapshot)
            if label != stored.notes.label:
                check_free(label, contents)
            values = stored.notes.model_dump() | {"label": label} | ({} if text is None else {"text": text})
            notes = Notes.model_validate(values)
            self._shelf.write_notes(stored.snapshot.folder, notes)
            return replace(stored, notes=notes)

    def pin(self, snapshot: str) -> None:
        """Count one more use of a snapshot: it is not removed, nor merged into another, as long as it is in use.

        Its ancestors may be merged, and into it, so its files may get other names: see ``SnapshotStore.frozen``.

        Raises:
            SnapshotError: there is no such snapshot.
        """
        with self._shelf.frozen():
            stored = find(self._shelf.read(self.id), snapshot)
            self._shelf.pins.add(stored.id, stored.snapshot.folder)

    def unpin(self, snapshot: str) -> None:
        """Count one use less."""
        self._shelf.pins.drop(snapshot)

    def verify(self, snapshot: str) -> list[str]:
        """Read all of a snapshot and compare it with its digests.

        Args:
            snapshot: Its id; also of a damaged one.

        Returns:
            A line for each thing that is wrong.

        Raises:
            SnapshotError: there is no such snapshot.
        """
        with self._shelf.frozen():
            contents = self._shelf.read(self.id)
            for damaged in contents.damaged:
                if damaged.id == snapshot:
                    return [damaged.reason]
            return compare(find(contents, snapshot).snapshot)


def _describe_new(new: New, parent: Snapshot) -> Manifest:
    """Check what was put into a new snapshot's folder, and return its manifest."""
    modes = {path.name: path.lstat().st_mode for path in new.folder.iterdir()}
    layers = tuple(sorted(filter(LAYER_NAME.fullmatch, modes), key=_depth))
    if set(modes) != {DEVICE_STATE, _DELTA, *layers} or not all(map(stat.S_ISREG, modes.values())):
        raise SnapshotError(f"The new snapshot's folder does not have the right files: {', '.join(sorted(modes))}.")
    golden = parent.golden
    manifest = Manifest(
        image=golden.manifest.image, hypervisor=golden.manifest.hypervisor, hardware=golden.manifest.hardware,
        created=new.notes.created, golden=golden.id, base=golden.identity,
        parent="" if parent.parent is None else parent.id, is_dump=new.is_dump, delta=_DELTA, own_layers=layers,
        over=new.over, files={name: describe(new.folder / name) for name in sorted(modes)},
    )  # fmt: skip
    Delta.open(new.folder / _DELTA, memory_size(manifest))
    return manifest


def _depth(layer: str) -> int:
    """Return how deep in the chain a disk layer is: ``disk.qcow2`` is on top, then comes ``disk-1.qcow2``."""
    match = LAYER_NAME.fullmatch(layer)
    return int(match[1] or 0) if match else 0


def check_free(label: str, contents: Contents) -> None:
    """Check that a new label is valid and free; an empty one always is.

    Raises:
        SnapshotError: it is not; the message names who has it.
    """
    if label and (holder := contents.labels.get(check_label(label))):
        raise LabelTakenError(
            f"The label {label!r} is taken by the snapshot {holder}.",
            "Choose another, or rename that one (agentvm snapshot label); Session(notebook=NAME) has its own.",
        )


def find(contents: Contents, reference: str, current: str = "") -> Stored:
    """Return the snapshot that a user means; see ``Tree.find``."""
    by_id = {one.id: one for one in contents.sound}
    steps = _STEPS_UP.fullmatch(reference) if reference else _STEPS_UP.fullmatch("~0")
    if steps:
        return _steps_up(by_id, int(steps[1] or 1), current)
    for one in contents.sound:
        if one.notes.label == reference:
            return one
    is_prefix = len(reference) >= _SHORTEST_PREFIX and _PREFIX.fullmatch(reference)
    found = [name for name in by_id if name.startswith(reference)] if is_prefix else []
    if len(found) == 1:
        return by_id[found[0]]
    for damaged in contents.damaged:
        if reference in {damaged.id, damaged.label}:
            raise SnapshotError(f"The snapshot {damaged.id} is damaged: {damaged.reason}.")
    if found:
        raise SnapshotError(f"{reference!r} is the beginning of several ids: {', '.join(found)}.")
    raise NoSnapshotError(f"There is no snapshot {reference!r:.80}.", _what_is_there(contents))


def _steps_up(by_id: dict[str, Stored], steps: int, current: str) -> Stored:
    if not current:
        raise NoSnapshotError("There is no snapshot to go back to yet.", "Take one with %snapshot.")
    name = current
    for done in range(steps + 1):
        if name not in by_id:
            missing = (
                "The current snapshot is gone or damaged." if done == 0 else f"There are only {done - 1} before it."
            )
            raise NoSnapshotError(f"There is no snapshot ~{steps}. {missing}")
        if done < steps:
            name = by_id[name].parent
    return by_id[name]


def _what_is_there(contents: Contents) -> str:
    if not contents.sound:
        return "This notebook has no snapshots."
    names = [one.notes.label or one.id for one in reversed(contents.sound)]
    more = len(names) - _NAMED_IN_ERRORS
    return f"There are: {', '.join(names[:_NAMED_IN_ERRORS])}{f', and {more} more' if more > 0 else ''}."
