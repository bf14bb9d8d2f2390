"""Taking snapshots in from a file that may come from anybody: nothing of it is believed.

Names come from this program, never from the file: every member must be the one that is expected next, of exactly the
size and digest that the description says. All is written to unfinished snapshots, which get their places when all has
been checked. What no check can judge is a device state: QEMU reads it, in its sandbox, as it runs the guest.
"""

from __future__ import annotations

import hashlib
import re
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from agentvm_kernel.errors import QuotaError, SnapshotError
from agentvm_kernel.snapshots.archive import DESCRIPTION, Description, Entry
from agentvm_kernel.snapshots.notes import Notes
from agentvm_kernel.snapshots.prune import describe
from agentvm_kernel.snapshots.qcow2 import isolate_layer
from agentvm_kernel.snapshots.quota import Quota, readable_size
from agentvm_kernel.snapshots.reading import DEVICE_STATE, FindGolden, Stored, check_names, memory_size
from agentvm_kernel.snapshots.shelf import Shelf, storing, tree_id
from agentvm_kernel.snapshots.tarball import TarReader, open_archive
from agentvm_kernel.snapshots.tree import check_free, new_id
from agentvm_kernel.vm.delta import BLOCK, Delta, delta_size, write_sparse
from agentvm_kernel.vm.disk import virtual_size
from agentvm_kernel.vm.snapshot import FileDigest, Manifest, Snapshot

_MOST_DESCRIPTION = 16 << 20
_MOST_DEVICE_STATE = 256 << 20
_GOLDEN_ID = re.compile(r"[0-9a-f]{1,64}")


@dataclass(frozen=True)
class _Incoming:
    """A snapshot that is checked and written, but has no place yet; ids of others' making are not taken over."""

    id: str
    folder: Path
    manifest: Manifest
    notes: Notes


class Importer:
    """Takes snapshots in.

    Args:
        shelf: Where they go.
        quota: What limits them.
        find_golden: Returns a golden snapshot by its id, ``None`` if there is none.
    """

    def __init__(self, shelf: Shelf, quota: Quota, find_golden: FindGolden) -> None:
        self._shelf = shelf
        self._quota = quota
        self._find_golden = find_golden

    def run(self, path: Path, notebook: str = "") -> list[Stored]:
        """Take in all snapshots of a file.

        Args:
            path: The file.
            notebook: Name of the notebook that they are to belong to; empty for the one that the file names.

        Returns:
            The snapshots, oldest first.

        Raises:
            SnapshotError: something in the file is wrong, or this host lacks what it builds on; nothing was changed.
        """
        with storing(self._shelf.folder), open_archive(path) as archive, ExitStack() as unfinished:
            description = _read_description(archive)
            notebook = notebook or description.notebook
            golden = self._check(description)
            with self._shelf.frozen():
                self._check_labels(notebook, description)
            incoming: list[_Incoming] = []
            for entry in description.snapshots:
                name = new_id()
                folder = unfinished.enter_context(self._shelf.scratch(name, for_qemu=False))
                parent = incoming[-1].id if incoming else ""
                incoming.append(
                    _Incoming(name, folder, self._take(archive, entry, folder, golden, parent), entry.notes)
                )
            if archive.next() is not None:
                raise SnapshotError("The archive has more in it than its description says.")
            return self._publish(notebook, description, incoming)

    def _check(self, description: Description) -> Snapshot:
        """Check what can be checked before anything is written, and return the golden snapshot."""
        first = description.snapshots[0].manifest
        if not description.notebook.isprintable():
            raise SnapshotError("The archive's name of the notebook has characters that cannot be shown.")
        parent = ""
        for entry in description.snapshots:
            if (entry.manifest.parent, entry.manifest.golden, entry.manifest.base) != (
                parent,
                first.golden,
                first.base,
            ):
                raise SnapshotError("The archive's snapshots are no chain.")
            parent = entry.id
        if len({entry.id for entry in description.snapshots}) < len(description.snapshots):
            raise SnapshotError("The archive has two snapshots of the same id.")
        golden = self._golden(first)
        for entry in description.snapshots:
            if _builds_on(entry.manifest) != _builds_on(golden.manifest):
                raise SnapshotError("The archive's snapshots do not fit their golden snapshot.")
            _check_sizes(entry)
        _check_layers(description)
        total = sum(file.size for entry in description.snapshots for file in entry.manifest.files.values())
        if total > self._quota.limit:
            raise QuotaError(
                f"The archive has {readable_size(total)} in it, but snapshots may take "
                f"{readable_size(self._quota.limit)} together.",
                "Raise quota_gb in [snapshots] of the configuration.",
            )
        return golden

    def _golden(self, wanted: Manifest) -> Snapshot:
        golden = self._find_golden(wanted.golden) if _GOLDEN_ID.fullmatch(wanted.golden) else None
        if golden is None:
            raise SnapshotError(
                f"This host does not have the golden snapshot {wanted.golden[:64]!a} that the archive builds on: image "
                f"{wanted.image[:12]!a}, {wanted.hypervisor[:80]!a}, hardware {wanted.hardware!a:.200}.",
                "Copy it from the host that the archive comes from, with its image: cache/golden, cache/images.",
            )
        if golden.identity != wanted.base:
            raise SnapshotError(
                f"The golden snapshot {golden.id[:12]} of this host was booted here, or anew: its memory is not the "
                "one that the archive builds on.",
                "Copy it from the host that the archive comes from: cache/golden.",
            )
        return golden

    def _check_labels(self, notebook: str, description: Description) -> None:
        contents = self._shelf.read(tree_id(notebook))
        labels = [entry.notes.label for entry in description.snapshots if entry.notes.label]
        if len(set(labels)) < len(labels):
            raise SnapshotError("The archive has two snapshots of the same label.")
        for label in labels:
            check_free(label, contents)

    def _take(self, archive: TarReader, entry: Entry, folder: Path, golden: Snapshot, parent: str) -> Manifest:
        """Write a snapshot's files and check them. Returns the manifest that it has here."""
        for name, expected in entry.manifest.files.items():
            member = archive.next()
            if member is None or (member.name, member.size) != (f"{entry.id}/{name}", expected.size):
                found = "its end" if member is None else f"{member.name[:80]!a} of {member.size} bytes"
                raise SnapshotError(
                    f"The archive has {found} where {entry.id}/{name} of {expected.size} bytes belongs."
                )
            self._shelf.disk.make(folder / name, partial(_extract, archive, expected))
        Delta.open(folder / entry.manifest.delta, memory_size(golden.manifest))
        for name in entry.manifest.own_layers:
            isolate_layer(folder / name, virtual_size(golden.hardware.disk_gb))
        return Manifest(
            image=golden.manifest.image, hypervisor=golden.manifest.hypervisor, hardware=golden.manifest.hardware,
            created=entry.notes.created, golden=golden.id, base=golden.identity, parent=parent,
            is_dump=entry.manifest.is_dump, delta=entry.manifest.delta, own_layers=entry.manifest.own_layers,
            over=entry.manifest.over,
            files={name: describe(folder / name) for name in entry.manifest.files},
        )  # fmt: skip

    def _publish(self, notebook: str, description: Description, incoming: list[_Incoming]) -> list[Stored]:
        shelf = self._shelf
        size = sum(shelf.fill(one.folder, one.manifest, one.notes) for one in incoming)
        with shelf.locked():
            self._check_labels(notebook, description)
            self._quota.make_room(size)
            tree = shelf.make_tree(notebook)
            put: list[_Incoming] = []
            try:
                for one in incoming:
                    shelf.put(one.folder, tree / one.id)
                    put.append(one)
            except OSError:
                for one in reversed(put):
                    shelf.disk.rename(tree / one.id, one.folder)
                shelf.sweep_tree(tree.name)
                raise
            here = {one.id: one for one in shelf.read(tree.name).sound}
            return [here[one.id] for one in incoming]


def _builds_on(manifest: Manifest) -> tuple[object, ...]:
    return manifest.image, manifest.hypervisor, manifest.hardware


def _check_sizes(entry: Entry) -> None:
    manifest = entry.manifest
    check_names(manifest)
    memory = memory_size(manifest)
    # The worst that can be: every other block, so that each is a run of its own, and the others besides.
    most = {DEVICE_STATE: _MOST_DEVICE_STATE, manifest.delta: delta_size([(0, memory // BLOCK)]) + memory // BLOCK * 16}
    for name, largest in most.items():
        if manifest.files[name].size > largest:
            raise SnapshotError(f"The archive's {name} is larger than it can be: {manifest.files[name].size} bytes.")


def _check_layers(description: Description) -> None:
    """Check that no disk lies over layers that are not there."""
    depth = 0
    for entry in description.snapshots:
        over = depth if entry.manifest.over is None else entry.manifest.over
        if over > depth:
            raise SnapshotError("The archive has a disk that lies over more layers than there are.")
        depth = over + len(entry.manifest.own_layers)


def _read_description(archive: TarReader) -> Description:
    member = archive.next()
    if member is None or member.name != DESCRIPTION or member.size > _MOST_DESCRIPTION:
        raise SnapshotError(f"The file is no snapshot archive: it does not begin with {DESCRIPTION}.")
    try:
        return Description.model_validate_json(b"".join(archive.content()))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise SnapshotError(f"The archive's description is wrong: {where[:80]!a}: {first['msg'][:200]}.") from error


def _extract(archive: TarReader, expected: FileDigest, path: Path) -> None:
    """Write a member to a new file; what is zero becomes a hole, so that it takes no more room than it did."""
    digest = hashlib.sha256()
    with path.open("xb") as file:
        for piece in archive.content():
            digest.update(piece)
            write_sparse(file, memoryview(piece))
        file.truncate(expected.size)
    if digest.hexdigest() != expected.sha256:
        raise SnapshotError(f"The archive is damaged: {path.name} has another digest than its description says.")
