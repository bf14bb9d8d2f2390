"""Reading the snapshots of a tree: sound ones with their parents, damaged ones with what is wrong."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from agentvm_kernel.errors import AgentVMError, SnapshotError
from agentvm_kernel.snapshots.notes import Notes
from agentvm_kernel.vm.delta import BLOCK, Delta
from agentvm_kernel.vm.snapshot import Manifest, Snapshot

MANIFEST, NOTES, DEVICE_STATE = "manifest.json", "notes.json", "device-state"
ID = re.compile(r"[0-9a-f]{12}")
DELTA_NAME = re.compile(r"memory(?:-([1-9][0-9]{0,8}))?\.delta")
LAYER_NAME = re.compile(r"disk(?:-([1-9][0-9]{0,3}))?\.qcow2")

_SECTOR = 512  # st_blocks is in units of this, whatever the file system's blocks are

FindGolden = Callable[[str], Snapshot | None]


@dataclass(frozen=True)
class Stored:
    """A sound snapshot of a tree.

    Attributes:
        snapshot: The snapshot, with its parents down to the golden one.
        notes: What is said of it.
        size: Bytes that it alone takes.
        written: Bytes of memory written since its parent.
    """

    snapshot: Snapshot
    notes: Notes
    size: int
    written: int

    @property
    def id(self) -> str:
        """The snapshot's id."""
        return self.snapshot.id

    @property
    def parent(self) -> str:
        """The parent's id; empty where that is the golden snapshot."""
        return self.snapshot.manifest.parent


@dataclass(frozen=True)
class Damaged:
    """A snapshot that cannot be used.

    Attributes:
        id: Its id.
        folder: Where it lies.
        reason: What is wrong, one line.
        size: Bytes that it takes.
        label: Its label, as far as known.
        parent: Its parent's id, as far as known.
    """

    id: str
    folder: Path
    reason: str
    size: int
    label: str = ""
    parent: str = ""


@dataclass(frozen=True)
class Contents:
    """All of a tree.

    Attributes:
        sound: Snapshots that can be used, oldest first.
        damaged: Those that cannot.
    """

    sound: tuple[Stored, ...] = ()
    damaged: tuple[Damaged, ...] = ()

    @property
    def size(self) -> int:
        """Bytes that they take together."""
        return sum(one.size for one in self.sound) + sum(one.size for one in self.damaged)

    @property
    def labels(self) -> dict[str, str]:
        """Ids by label."""
        pairs = [(one.notes.label, one.id) for one in self.sound] + [(one.label, one.id) for one in self.damaged]
        return {label: snapshot for label, snapshot in pairs if label}

    def children(self, snapshot: str) -> list[str]:
        """Return the ids of a snapshot's children."""
        pairs = [(one.parent, one.id) for one in self.sound] + [(one.parent, one.id) for one in self.damaged]
        return [name for parent, name in pairs if parent == snapshot]


@dataclass(frozen=True)
class _Alone:
    """A folder by itself, before its parents are looked at; ``reason`` is empty if nothing is wrong with it."""

    folder: Path
    size: int
    reason: str = ""
    manifest: Manifest | None = None
    notes: Notes | None = None
    written: int = 0


class Reader:
    """Reads trees; folders that have not changed since are not parsed again.

    Args:
        find_golden: Returns a golden snapshot by its id, ``None`` if there is none.
    """

    def __init__(self, find_golden: FindGolden) -> None:
        self._find_golden = find_golden
        self._known: dict[Path, tuple[object, _Alone]] = {}

    def read(self, tree: Path) -> Contents:
        """Read a tree.

        Args:
            tree: Its folder.
        """
        folders = [path for path in tree.iterdir() if ID.fullmatch(path.name)] if tree.is_dir() else []
        alone = {folder.name: self._read_alone(folder) for folder in folders}
        for gone in [path for path in self._known if path.parent == tree and path.name not in alone]:
            self._known.pop(gone, None)
        return self._link(alone)

    def _read_alone(self, folder: Path) -> _Alone:
        try:
            stats = {path.name: path.lstat() for path in folder.iterdir()}
            stamp = {name: (one.st_ino, one.st_size, one.st_blocks, one.st_mtime_ns) for name, one in stats.items()}
            known = self._known.get(folder)
            if known is None or known[0] != stamp:
                known = self._known[folder] = (stamp, _read_folder(folder, stats))
            return known[1]
        except OSError as error:
            return _Alone(folder, 0, str(error))

    def _link(self, alone: dict[str, _Alone]) -> Contents:
        """Give each snapshot its parent, from the golden ones upwards."""
        children: defaultdict[str, list[_Alone]] = defaultdict(list)
        for one in alone.values():
            if one.manifest is not None and not one.reason:
                children[one.manifest.parent].append(one)
        goldens = self._goldens(one.manifest for one in alone.values() if one.manifest is not None)
        sound: dict[str, Stored] = {}
        reasons = {name: one.reason for name, one in alone.items() if one.reason}
        waiting: list[tuple[Stored | None, _Alone]] = [(None, one) for one in children[""]]
        while waiting:
            parent, one = waiting.pop()
            try:
                sound[one.folder.name] = stored = _descend(one, parent, goldens)
            except SnapshotError as error:
                reasons[one.folder.name] = error.message
            else:
                waiting += [(stored, child) for child in children[stored.id]]
        damaged = [
            _damaged(one, reasons.get(name, "an ancestor is missing or damaged"))
            for name, one in sorted(alone.items())
            if name not in sound
        ]
        in_order = sorted(sound.values(), key=lambda one: (one.notes.created, one.id))
        return Contents(tuple(in_order), tuple(damaged))

    def _goldens(self, manifests: Iterable[Manifest]) -> dict[str, Snapshot | str]:
        """Return golden snapshots by id, or what is wrong with them."""
        found: dict[str, Snapshot | str] = {}
        for name in {manifest.golden for manifest in manifests}:
            try:
                found[name] = self._find_golden(name) or f"its golden snapshot {name[:12]} is gone"
            except AgentVMError as error:
                found[name] = error.message
        return found


def _descend(one: _Alone, parent: Stored | None, goldens: dict[str, Snapshot | str]) -> Stored:
    assert one.manifest is not None  # for the type checker: only those with one are linked
    assert one.notes is not None
    golden = goldens[one.manifest.golden]
    if isinstance(golden, str):
        raise SnapshotError(golden)
    if golden.identity != one.manifest.base:
        raise SnapshotError(f"its golden snapshot {golden.id[:12]} was made anew, with another memory")
    if parent is not None and parent.snapshot.manifest.golden != golden.id:
        raise SnapshotError("its parent descends from another golden snapshot")
    if one.manifest.over is not None and one.manifest.over > (parent.snapshot.depth if parent else 0):
        raise SnapshotError("its manifest has its disk lie over more layers than its parent's has")
    snapshot = Snapshot(one.folder.name, one.folder, one.manifest, parent.snapshot if parent else golden)
    return Stored(snapshot, one.notes, one.size, one.written)


def _damaged(one: _Alone, reason: str) -> Damaged:
    return Damaged(
        one.folder.name, one.folder, reason, one.size, one.notes.label if one.notes else "",
        one.manifest.parent if one.manifest else "",
    )  # fmt: skip


def _read_folder(folder: Path, stats: dict[str, os.stat_result]) -> _Alone:
    everything = _Alone(folder, sum(one.st_blocks for one in stats.values()) * _SECTOR)
    try:
        notes = Notes.model_validate_json((folder / NOTES).read_bytes())
        everything = replace(everything, notes=notes)
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
        everything = replace(everything, manifest=manifest)
        check_names(manifest)
        wrong = [name for name, file in manifest.files.items() if name not in stats or stats[name].st_size != file.size]
        if wrong:
            return replace(everything, reason=f"{', '.join(wrong)}: missing, or of another size")
        written = Delta.open(folder / manifest.delta, memory_size(manifest)).blocks * BLOCK
    except OSError as error:
        return replace(everything, reason=f"{Path(error.filename or folder).name}: {error.strerror}")
    except ValidationError as error:
        return replace(everything, reason=f"{error.title}: {error.errors()[0]['msg']}")
    except SnapshotError as error:
        return replace(everything, reason=error.message)
    # What an interrupted merge left behind is not counted: it goes when the store is opened.
    size = sum(stats[name].st_blocks for name in (MANIFEST, NOTES, *manifest.files)) * _SECTOR
    return replace(everything, size=size, written=written)


def check_names(manifest: Manifest) -> None:
    """Check that a manifest lists the files that a snapshot has, and no others.

    Raises:
        SnapshotError: it does not.
    """
    if not DELTA_NAME.fullmatch(manifest.delta) or not all(map(LAYER_NAME.fullmatch, manifest.own_layers)):
        raise SnapshotError("its manifest has unknown names of files")
    expected = [DEVICE_STATE, manifest.delta, *manifest.own_layers]
    if sorted(expected) != sorted(manifest.files):
        raise SnapshotError("its manifest does not list the files that it must have")
    if manifest.over is not None and not manifest.own_layers:
        raise SnapshotError("its manifest leaves out disk layers without having one")


def memory_size(manifest: Manifest) -> int:
    """Return the size of the guest's memory in bytes.

    Raises:
        SnapshotError: the manifest does not have it.
    """
    memory = manifest.hardware.get("memory_mib")
    if not isinstance(memory, int):
        raise SnapshotError("its manifest does not have the size of the memory")
    return memory << 20


def allocated(path: Path) -> int:
    """Return how many bytes of the disk a file takes: holes take none."""
    return path.lstat().st_blocks * _SECTOR
