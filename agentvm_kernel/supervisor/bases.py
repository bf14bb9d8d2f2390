"""Complete memory files for notebooks that have written much since their golden snapshot."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from agentvm_kernel.errors import AgentVMError
from agentvm_kernel.supervisor.lease import Lease
from agentvm_kernel.supervisor.pool import Pool
from agentvm_kernel.vm.complete import distance, make_complete
from agentvm_kernel.vm.snapshot import Snapshot

_log = logging.getLogger(__name__)

# Writing this much into a blank takes as long as the rest of a rollback.
_FAR: Final = 64 << 20


class Bases:
    """Makes a complete memory file for a lease when its snapshots have come far from the last one; one for each lease.

    Args:
        folder: Where they lie; what an earlier supervisor left there is removed.
        pool: Keeps a blank over each.
        owner: The user under which QEMU runs, if another.
        limit: Bytes that all files together may take on disk.
    """

    def __init__(self, folder: Path, pool: Pool, owner: tuple[int, int] | None, limit: int) -> None:
        self._folder = folder
        self._pool = pool
        self._owner = owner
        self.limit = limit
        self._bases: dict[str, Snapshot] = {}
        self._making: dict[str, asyncio.Task[None]] = {}
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o711 if owner else 0o700, parents=True)

    def consider(self, lease: Lease) -> None:
        """Make a file in the background if the lease's newest snapshot is far from what there is."""
        snapshot, key = lease.vm.snapshot, lease.terms.id
        near = [snapshot.golden, *([self._bases[key]] if key in self._bases else [])]
        if key in self._making or min(distance(base, snapshot) for base in near) < _FAR:
            return
        task = self._making[key] = asyncio.create_task(self._make(key, snapshot))
        task.add_done_callback(lambda _: self._making.pop(key, None))

    def has(self, key: str) -> bool:
        """Say whether there is a file for the lease of this id."""
        return key in self._bases

    def renew(self, key: str, snapshots: Mapping[str, Snapshot]) -> None:
        """Take note of the files that a lease's snapshots have now: some may have been merged or removed.

        Args:
            key: Id of a lease that has a file.
            snapshots: All of its tree.
        """
        base = self._bases[key]
        if base.id in snapshots:
            self._bases[key] = snapshots[base.id]
            self._pool.stocks.renew_base(snapshots[base.id])
        else:
            self.drop(key)

    async def _make(self, key: str, snapshot: Snapshot) -> None:
        size = snapshot.golden.memory.stat().st_blocks * 512 + distance(snapshot.golden, snapshot)
        if self._used() + size > self.limit or shutil.disk_usage(self._folder).free < 2 * size:
            _log.warning("no room for a complete memory file of %s: going back there will take longer", snapshot.id)
            return
        path = self._path(snapshot)
        try:
            await asyncio.to_thread(make_complete, snapshot, path, self._owner)
        except AgentVMError as error:
            _log.warning("no complete memory file of %s: %s", snapshot.id, error)
            return
        self.drop(key)
        self._bases[key] = snapshot
        self._pool.add_base(snapshot, path)

    def drop(self, key: str) -> None:
        """Remove a lease's file.

        Args:
            key: The lease's id.
        """
        if base := self._bases.pop(key, None):
            self._pool.drop_base(base)
            self._path(base).unlink(missing_ok=True)

    async def settled(self) -> None:
        """Wait until none is being made."""
        await asyncio.gather(*self._making.values())

    async def close(self) -> None:
        """Wait for what is being made, and remove everything."""
        await self.settled()
        await asyncio.to_thread(shutil.rmtree, self._folder)

    def _path(self, snapshot: Snapshot) -> Path:
        return self._folder / f"{snapshot.id}.memory"

    def _used(self) -> int:
        return sum(path.stat().st_blocks * 512 for path in self._folder.iterdir())
