"""The store of all snapshots of a user."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO

from agentvm_kernel.durable import Disk
from agentvm_kernel.snapshots.importing import Importer
from agentvm_kernel.snapshots.prune import Plan, carry_out, plan_removal
from agentvm_kernel.snapshots.quota import Quota, prunable
from agentvm_kernel.snapshots.reading import FindGolden, Stored
from agentvm_kernel.snapshots.shelf import Shelf, storing, tree_id
from agentvm_kernel.snapshots.tree import Tree


class SnapshotStore:
    """All snapshots of a user, complete or absent whatever happens.

    Methods block; threads and processes may call them at the same time.

    Args:
        folder: Where they lie.
        quota: Bytes that they may take together.
        owner: ``uid, gid`` that QEMU runs under; ``None`` for this process's.
        find_golden: Returns a golden snapshot by its id, ``None`` if there is none.
        disk: What changes files; another one in tests.

    Attributes:
        quota: Bytes that they may take together.
    """

    def __init__(
        self,
        folder: Path,
        *,
        quota: int,
        owner: tuple[int, int] | None,
        find_golden: FindGolden,
        disk: Disk | None = None,
    ) -> None:
        self.quota = quota
        self._shelf = Shelf(folder, owner, find_golden, disk or Disk())
        self._quota = Quota(self._shelf, quota)
        self._importer = Importer(self._shelf, self._quota, find_golden)

    def open(self) -> list[str]:
        """Clean up after killed processes; at any time, but above all when the supervisor starts.

        Returns:
            A line for each thing that was cleaned up.

        Raises:
            SnapshotError: the folder cannot be used.
        """
        with storing(self._shelf.folder), self._shelf.locked():
            return self._shelf.recover()

    def close(self) -> None:
        """Use no snapshot any more; whoever dies does so too."""
        self._shelf.pins.drop_all()

    def frozen(self) -> IO[str]:
        """Keep all names of snapshots' files valid until the returned object is closed (it is a context manager).

        For as long as files of a lineage are opened by name, as when a VM is made from it: find the snapshot within.
        Afterwards QEMU holds its files open, and names may change. Nothing may be stored or removed within.
        """
        return self._shelf.frozen()

    def tree(self, notebook: str) -> Tree:
        """Return a notebook's tree; it is on disk once it has a snapshot.

        Args:
            notebook: The notebook's name.
        """
        return Tree(tree_id(notebook), notebook, self._shelf, self._quota)

    def trees(self) -> list[Tree]:
        """Return the trees that have snapshots."""
        return [Tree(name, notebook, self._shelf, self._quota) for name, notebook in self._shelf.trees().items()]

    @property
    def used(self) -> int:
        """Bytes that all snapshots take."""
        if not self._shelf.folder.is_dir():
            return 0
        with self._shelf.frozen():
            return self._shelf.used()

    def import_archive(self, path: Path, notebook: str = "") -> list[Stored]:
        """Take in the snapshots of a file that may come from anybody.

        Args:
            path: The file.
            notebook: Name of the notebook that they are to belong to; empty for the one that the file names.

        Returns:
            The snapshots, oldest first; they have new ids.

        Raises:
            SnapshotError: something in the file is wrong, or this host lacks what it builds on; nothing was changed.
        """
        return self._importer.run(path, notebook)

    def prune(self, wanted: Callable[[Stored], bool], *, dry_run: bool = False) -> Plan:
        """Remove unlabelled snapshots that are not in use.

        Args:
            wanted: Says which may go.
            dry_run: Only say what would go.

        Returns:
            What went, or would.
        """
        with storing(self._shelf.folder), self._shelf.locked():
            trees = [self._shelf.read(tree) for tree in self._shelf.trees()]
            plan = plan_removal(trees, prunable(trees, wanted), lambda _freed: False)
            if dry_run:
                return plan
            gone = set(carry_out(self._shelf, plan))
            if gone.issuperset(one.id for one in plan.gone):
                return plan
            freed = sum(contents.size for contents in trees) - self._shelf.used()
            return replace(plan, gone=tuple(one for one in plan.gone if one.id in gone), freed=freed)
