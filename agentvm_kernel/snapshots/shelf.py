"""The folder that all snapshots lie in: its layout, its locks, and what is done to a snapshot as a whole.

Below it lie ``<tree>/tree.json`` and ``<tree>/<id>/``. Whatever is half done has a name that begins with a dot: a
folder ``.new-…`` is filled by one who holds a lock on it, a folder ``.removed-…`` only waits to be emptied. In a
snapshot's folder nothing counts but what its manifest lists, and the manifest is replaced in one step.

Two locks, both files, because the command line works on the same folder as the supervisor. ``lock``: one change at a
time. ``paths.lock``: shared by those who read files by their names, exclusive for the moments in which names vanish.
Order: first ``lock``, then ``paths.lock``.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from pydantic import BaseModel, ConfigDict, ValidationError

from agentvm_kernel.durable import Disk
from agentvm_kernel.errors import DiskFullError, SnapshotError
from agentvm_kernel.snapshots.notes import Notes
from agentvm_kernel.snapshots.pins import Pins, hold, is_used
from agentvm_kernel.snapshots.reading import ID, MANIFEST, NOTES, Contents, FindGolden, Reader, allocated
from agentvm_kernel.vm.snapshot import Access, Manifest, seal

_TREE_FILE = "tree.json"
_NEW, _REMOVED = ".new-", ".removed-"
_TREE_DIGITS = 16
_FULL = (errno.ENOSPC, errno.EDQUOT)


class _TreeFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    notebook: str


def tree_id(notebook: str) -> str:
    """Return the id of a notebook's tree."""
    return hashlib.sha256(notebook.encode()).hexdigest()[:_TREE_DIGITS]


class Shelf:
    """The folder of all snapshots.

    Args:
        folder: Where it lies; created when something is put there.
        owner: ``uid, gid`` that QEMU runs under, ``None`` for this process's.
        find_golden: Returns a golden snapshot by its id, ``None`` if there is none.
        disk: What changes files.

    Attributes:
        pins: What this process uses.
    """

    def __init__(self, folder: Path, owner: tuple[int, int] | None, find_golden: FindGolden, disk: Disk) -> None:
        self.folder = folder
        self.disk = disk
        self.pins = Pins()
        self._owner = owner
        self._access = Access.of(owner)
        self._reader = Reader(find_golden)

    def prepare(self) -> None:
        """Create the folder, unless it is there."""
        if not self.folder.is_dir():
            self.folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with suppress(FileExistsError):  # another thread was faster
                self.disk.make_folder(self.folder)
            self._let_pass(self.folder)
            self.disk.sync(self.folder.parent)

    def _let_pass(self, folder: Path) -> None:
        self.disk.protect(folder, self._access.passage, os.geteuid(), self._access.group)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only one who changes anything, in this process and others."""
        self.prepare()
        with self._flock("lock", fcntl.LOCK_EX):
            yield

    def frozen(self) -> IO[str]:
        """Keep all names of files as they are until the returned object is closed."""
        self.prepare()
        return self._flock("paths.lock", fcntl.LOCK_SH)

    def thawed(self) -> IO[str]:
        """Wait until nobody needs names of files, and keep others from reading until the returned object is closed."""
        return self._flock("paths.lock", fcntl.LOCK_EX)

    def _flock(self, name: str, how: int) -> IO[str]:
        file = (self.folder / name).open("a")
        fcntl.flock(file, how)
        return file

    def tree_folder(self, tree: str) -> Path:
        """Return where a tree lies."""
        return self.folder / tree

    def trees(self) -> dict[str, str]:
        """Return the notebooks by the trees' ids; empty for one whose file cannot be read."""
        folders = self.folder.iterdir() if self.folder.is_dir() else ()
        return {path.name: self._notebook(path) for path in sorted(folders) if _is_tree(path)}

    def _notebook(self, folder: Path) -> str:
        try:
            return _TreeFile.model_validate_json((folder / _TREE_FILE).read_bytes()).notebook
        except (OSError, ValidationError):
            return ""

    def read(self, tree: str) -> Contents:
        """Read a tree; names must not change meanwhile."""
        return self._reader.read(self.tree_folder(tree))

    def used(self) -> int:
        """Return how many bytes all snapshots take; names must not change meanwhile."""
        return sum(self.read(tree).size for tree in self.trees())

    @contextmanager
    def scratch(self, name: str, *, for_qemu: bool) -> Iterator[Path]:
        """Provide a folder to fill, which vanishes unless it is given another name.

        Args:
            name: The snapshot's id, for the log.
            for_qemu: QEMU is to write into it.
        """
        folder = self.folder / f"{_NEW}{name}"
        # While names are frozen nobody takes the folder for a dead one's because it is not in use yet.
        with self.frozen():
            self.disk.make_folder(folder)
            descriptor = hold(folder)
        try:
            if for_qemu and self._owner is not None and os.geteuid() == 0:
                self.disk.protect(folder, 0o700, *self._owner)
            yield folder
        finally:
            try:
                if folder.exists():
                    self.disk.remove_tree(folder)
            finally:
                os.close(descriptor)

    def take_over(self, folder: Path) -> None:
        """Take a folder that QEMU wrote into from its user, who is not trusted."""
        self.disk.protect(folder, 0o700, os.geteuid(), self._access.group)

    def fill(self, folder: Path, manifest: Manifest, notes: Notes) -> int:
        """Complete a new snapshot's folder and make it durable. Returns the bytes that it takes."""
        self.disk.write(folder / NOTES, _as_json(notes))
        self.disk.write(folder / MANIFEST, _as_json(manifest))
        seal(folder, self._owner, self.disk, (manifest.delta, NOTES, MANIFEST))
        return sum(map(allocated, folder.iterdir()))

    def protect(self, path: Path) -> None:
        """Make a file of a snapshot that QEMU need not read its user's, read-only, and durable."""
        self.disk.protect(path, 0o400, os.geteuid(), self._access.group)
        self.disk.sync(path)

    def make_tree(self, notebook: str) -> Path:
        """Create a notebook's tree, unless it is there; the caller holds the lock."""
        target = self.tree_folder(tree_id(notebook))
        if not target.is_dir():
            with self.scratch(target.name, for_qemu=False) as folder:
                self.disk.write(folder / _TREE_FILE, _as_json(_TreeFile(notebook=notebook)))
                self.protect(folder / _TREE_FILE)
                self._let_pass(folder)
                try:
                    self.disk.rename(folder, target)
                    self.disk.sync(self.folder)
                except OSError:
                    self.sweep_tree(target.name)
                    raise
        return target

    def put(self, folder: Path, target: Path) -> None:
        """Give a filled folder its name; from then on the snapshot is there."""
        try:
            self.disk.rename(folder, target)
            self.disk.sync(target.parent)
        except OSError:
            if target.exists():
                self.disk.rename(target, folder)
            self.sweep_tree(target.parent.name)
            raise

    def write_notes(self, folder: Path, notes: Notes) -> None:
        """Replace what is said of a snapshot."""
        self.disk.replace(folder / NOTES, _as_json(notes))

    def write_manifest(self, folder: Path, manifest: Manifest) -> None:
        """Replace a manifest."""
        self.disk.replace(folder / MANIFEST, _as_json(manifest))

    def take_away(self, folder: Path) -> Path:
        """Take a snapshot's or tree's name, in one step; names must be thawed. Returns what is to be emptied."""
        doomed = self.folder / f"{_REMOVED}{folder.name}"
        self.disk.rename(folder, doomed)
        self.disk.sync(folder.parent)
        return doomed

    def sweep_tree(self, tree: str) -> None:
        """Remove a tree that has no snapshots; the caller holds the lock."""
        folder = self.tree_folder(tree)
        if folder.is_dir() and not any(ID.fullmatch(path.name) for path in folder.iterdir()):
            with self.thawed():
                doomed = self.take_away(folder)
            self.disk.remove_tree(doomed)

    def recover(self) -> list[str]:
        """Remove what a killed process left half done; the caller holds the lock. Returns a line for each."""
        lines = []
        self._let_pass(self.folder)  # it may have been made when QEMU ran under another user
        with self.thawed():
            for path in sorted(self.folder.iterdir()):
                if path.name.startswith(_NEW) and not is_used(path):
                    self.disk.remove_tree(path)
                    lines.append(f"removed the unfinished snapshot {path.name.removeprefix(_NEW)}")
                elif path.name.startswith(_REMOVED):
                    self.disk.remove_tree(path)
                    lines.append(f"finished removing {path.name.removeprefix(_REMOVED)}")
        for tree in self.trees():
            left = {one.id: self.sweep(one.snapshot.folder) for one in self.read(tree).sound}
            lines += [f"removed {n} files of an interrupted change to {name}" for name, n in left.items() if n]
            self.sweep_tree(tree)
        return lines

    def sweep(self, folder: Path) -> int:
        """Remove files of a sound snapshot that its manifest does not list; the caller holds the lock."""
        listed = {MANIFEST, NOTES, *Manifest.model_validate_json((folder / MANIFEST).read_bytes()).files}
        left = [path for path in folder.iterdir() if path.name not in listed]
        for path in left:
            self.disk.unlink(path)
        return len(left)


def _is_tree(path: Path) -> bool:
    return len(path.name) == _TREE_DIGITS and not path.name.startswith(".") and path.is_dir()


def _as_json(model: BaseModel) -> bytes:
    return model.model_dump_json(indent=1).encode()


@contextmanager
def storing(folder: Path) -> Iterator[None]:
    """Say what a failure to write means to the user.

    Raises:
        DiskFullError: the disk is full.
        SnapshotError: it failed otherwise.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFullError(
                f"The disk is full: there is no room for the snapshot in {folder}.",
                "Make room there, or remove snapshots: `agentvm snapshot list`, `agentvm snapshot rm`.",
            ) from error
        raise SnapshotError(f"The snapshot could not be stored: {error}.", f"Check {folder}.") from error
