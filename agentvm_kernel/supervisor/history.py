"""Snapshots of leased VMs, and the way back to them."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from typing import TypeVar

from agentvm_kernel.errors import AgentVMError, SnapshotError
from agentvm_kernel.observe.audit import AuditLog
from agentvm_kernel.observe.events.snapshot import SnapshotCreated, SnapshotRelabelled, SnapshotsRemoved
from agentvm_kernel.observe.fields import MOST
from agentvm_kernel.observe.metrics import Metrics
from agentvm_kernel.snapshots.notes import LONGEST_WAY, Leg, Notes, Way
from agentvm_kernel.snapshots.reading import Stored
from agentvm_kernel.snapshots.store import SnapshotStore
from agentvm_kernel.snapshots.tree import Tree, check_free, new_id
from agentvm_kernel.supervisor.bases import Bases
from agentvm_kernel.supervisor.lease import Lease
from agentvm_kernel.supervisor.snapshot_messages import (
    LabelRequest,
    Removed,
    RollbackPlan,
    SnapshotInfo,
    SnapshotRequest,
    SnapshotTree,
)
from agentvm_kernel.supervisor.terms import Terms
from agentvm_kernel.vm.capture import Capture, Capturer
from agentvm_kernel.vm.chain import LONGEST, keep_short
from agentvm_kernel.vm.clone import VM
from agentvm_kernel.vm.delta import PAGE
from agentvm_kernel.vm.snapshot import Snapshot

_T = TypeVar("_T")
_THREADS = 32
_log = logging.getLogger(__name__)


class History:
    """Takes snapshots of leased VMs and finds them again.

    Args:
        store: Where they are kept.
        capturer: Saves VMs.
        bases: Keeps going back fast.
        audit: Takes note.
        metrics: Counts.
    """

    def __init__(
        self, store: SnapshotStore, capturer: Capturer, bases: Bases, audit: AuditLog, metrics: Metrics
    ) -> None:
        self._store = store
        self._capturer = capturer
        self._bases = bases
        self._audit = audit
        self._metrics = metrics
        # Of its own: what waits for the store's lock must not take the threads of who holds it.
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="snapshots")
        self._storing: set[asyncio.Task[SnapshotInfo]] = set()

    async def close(self) -> None:
        """Wait until what was captured is stored."""
        await asyncio.gather(*self._storing, return_exceptions=True)
        self._threads.shutdown()

    async def _call(self, function: Callable[..., _T], *arguments: object) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    @asynccontextmanager
    async def _in_threads(self, manager: AbstractContextManager[_T]) -> AsyncIterator[_T]:
        """Enter and leave a context that blocks without blocking the event loop."""
        value = await self._call(manager.__enter__)
        try:
            yield value
        except BaseException as error:
            if not await self._call(manager.__exit__, type(error), error, error.__traceback__):
                raise
        else:
            await self._call(manager.__exit__, None, None, None)

    async def tree(self, lease: Lease) -> SnapshotTree:
        """Return the snapshots of a lease's notebook, with the one that is just being stored."""
        tree = lease.terms.tree
        async with lease.turn:
            snapshots = await self._call(tree.snapshots)
            current, vm, way = lease.current, lease.vm.id, lease.way
        return SnapshotTree(
            notebook=tree.id, current=current, snapshots=tuple(describe(stored) for stored in snapshots),
            quota=self._store.quota, used=await self._call(lambda: self._store.used), vm=vm, way=way,
        )  # fmt: skip

    async def snapshot(self, lease: Lease, request: SnapshotRequest) -> SnapshotInfo:
        """Take a snapshot of a lease's VM.

        Args:
            lease: The lease.
            request: What is wanted.

        Returns:
            The snapshot; not stored yet if that was not to be waited for.

        Raises:
            SnapshotError: it could not be taken, or kept; the VM runs on.
        """
        running: asyncio.Future[SnapshotInfo] = asyncio.get_running_loop().create_future()
        # A client that goes away must not stop it half-way.
        task = asyncio.create_task(self._take_turn(lease, request, running))
        self._storing.add(task)
        task.add_done_callback(self._stored)
        if not request.wait_stored:
            await asyncio.wait((task, running), return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                return running.result()
        return await asyncio.shield(task)

    def _stored(self, task: asyncio.Task[SnapshotInfo]) -> None:
        self._storing.discard(task)
        if not task.cancelled():
            task.exception()  # told to whoever waits, or asks next

    async def _take_turn(
        self, lease: Lease, request: SnapshotRequest, running: asyncio.Future[SnapshotInfo]
    ) -> SnapshotInfo:
        async with lease.turn:
            failure, lease.failure = lease.failure, None
            if failure is not None and not request.wait_stored:
                raise failure
            try:
                return await self.take(lease, request, running)
            except AgentVMError as error:
                if running.done():
                    # Nobody waits for it any more: whoever asks next is told.
                    _log.warning("a snapshot could not be kept: %s", error)
                    lease.failure = error
                raise

    async def take(
        self, lease: Lease, request: SnapshotRequest, running: asyncio.Future[SnapshotInfo] | None = None
    ) -> SnapshotInfo:
        """Take a snapshot; the caller has the lease's turn.

        Args:
            lease: The lease.
            request: What is wanted.
            running: Gets what is known as soon as the VM runs on.
        """
        lease.check_runs()
        vm, tree, began = lease.vm, lease.terms.tree, time.monotonic()
        notes = Notes(
            label=request.label, text=request.text, kind=request.kind, busy=request.busy, cell=request.cell,
            way=_way(lease, request),
        )  # fmt: skip
        if request.label:
            await self._call(lambda: check_free(request.label, tree.contents()))
        before, name = vm.snapshot, new_id()

        def resumed(pause: float, written: int) -> None:
            if running is not None:
                running.set_result(_preview(name, _with_pause(notes, pause), lease.current, written))

        keep_short(vm, self._left, more_than=LONGEST - 1)
        capture = await self._capturer.capture(vm, resumed)
        notes = _with_pause(notes, capture.pause)
        try:
            async with self._in_threads(tree.new(before, notes, name=name, pinned=True)) as new:
                new.is_dump, new.over = capture.is_dump, capture.over
                await self._call(_hand_over, capture, new.folder)
        except BaseException:
            vm.take_back(capture.runs, capture.layers, capture.over)
            for file in (capture.device_state, capture.delta):
                file.unlink(missing_ok=True)
            raise
        await self._call(self._descend, vm, tree, name)
        await self._call(unpin, lease.terms, before)
        self._bases.consider(lease)
        if capture.layers:
            keep_short(vm, self._left)
        info = describe(new.stored)
        self._metrics.snapshot(capture.pause, time.monotonic() - began)
        self._audit.record(
            SnapshotCreated(**lease.subject, snapshot=info.id, tree=tree.id, label=info.label, kind=info.kind)
        )
        return info

    def _left(self) -> int:
        return self._store.quota - self._store.used

    def _descend(self, vm: VM, tree: Tree, name: str) -> None:
        # Found anew: another notebook's pruning may have merged what lies before it, and renamed files.
        with self._store.frozen():
            vm.descend(tree.find(name).snapshot)

    async def relabel(self, lease: Lease, snapshot: str, request: LabelRequest) -> SnapshotInfo:
        """Give a snapshot of a lease's notebook another label.

        Args:
            lease: The lease.
            snapshot: The snapshot's id.
            request: The label.

        Raises:
            SnapshotError: there is no such snapshot, or the label is taken or invalid.
        """
        tree = lease.terms.tree
        info = describe(await self._call(tree.relabel, snapshot, request.label, request.text))
        self._audit.record(SnapshotRelabelled(**lease.subject, snapshot=info.id, tree=tree.id, label=info.label))
        return info

    async def remove(self, lease: Lease, snapshot: str) -> Removed:
        """Remove a snapshot of a lease's notebook; what descends from it stays as it is.

        Args:
            lease: The lease.
            snapshot: The snapshot's id; also of a damaged one.

        Raises:
            SnapshotError: there is no such snapshot, it is in use, or several others descend from it.
        """
        if snapshot == lease.current:
            raise SnapshotError(
                f"The snapshot {snapshot} is where the machine goes on from.",
                "Take another one, or go back to another one, before it is removed.",
            )
        freed = await self._call(lease.terms.tree.remove, snapshot)
        return self._removed(lease, (snapshot,), freed)

    async def prune(self, lease: Lease, keep: int) -> Removed:
        """Remove the oldest snapshots of a lease's notebook that have no label and are not in use.

        Args:
            lease: The lease.
            keep: How many of the newest without a label stay.

        Raises:
            SnapshotError: the store cannot be written.
        """
        tree = lease.terms.tree
        unlabelled = [one.id for one in await self._call(tree.snapshots) if not one.notes.label]
        old = frozenset(unlabelled[: max(0, len(unlabelled) - keep)])
        plan = await self._call(self._store.prune, lambda one: one.id in old)
        return self._removed(lease, tuple(one.id for one in plan.gone), max(0, plan.freed))

    def _removed(self, lease: Lease, snapshots: tuple[str, ...], freed: int) -> Removed:
        if snapshots:
            self._audit.record(
                SnapshotsRemoved(
                    **lease.subject, snapshots=snapshots[:MOST], tree=lease.terms.tree.id, count=len(snapshots)
                )
            )
        return Removed(removed=snapshots, freed=freed)

    async def plan(self, lease: Lease, to: str) -> RollbackPlan:
        """Say what a rollback would do."""
        tree = lease.terms.tree
        target = await self._call(tree.find, to, lease.current)
        by_id = {stored.id: stored for stored in await self._call(tree.snapshots)}
        kept = {older.id for older in target.snapshot.lineage}
        mine = [older.id for older in lease.vm.snapshot.lineage[:0:-1]]
        left = [by_id[one] for one in mine if one not in kept and one in by_id]
        tracker = lease.vm.tracker
        written = sum(count for _, count in tracker.look()) * PAGE if tracker else 0
        return RollbackPlan(
            target=describe(target), left=tuple(map(describe, left)),
            seconds=max(0.0, time.time() - target.notes.created), written=written,
        )  # fmt: skip

    @asynccontextmanager
    async def found(self, terms: Terms, to: str, current: str = "") -> AsyncIterator[Stored]:
        """Find a snapshot, and keep its files where they are within this context. It is pinned, for good.

        Args:
            terms: Whose snapshot it is.
            to: Which one; see ``RollbackRequest``.
            current: Id of the snapshot that the VM descends from.

        Raises:
            SnapshotError: there is no such snapshot.
        """
        async with self._in_threads(self._store.frozen()):
            tree = terms.tree
            stored = await self._call(tree.find, to, current)
            await self._call(tree.pin, stored.id)
            if self._bases.has(terms.id):
                self._bases.renew(terms.id, {one.id: one.snapshot for one in await self._call(tree.snapshots)})
            yield stored


def unpin(terms: Terms, snapshot: Snapshot) -> None:
    """Note that a VM of a lease does not descend from a snapshot any more."""
    if snapshot.parent is not None:
        terms.tree.unpin(snapshot.id)


def _way(lease: Lease, request: SnapshotRequest) -> Way:
    """Return which runs a snapshot of a lease's VM has behind it; a cell that it freezes is none of them."""
    run = request.cell.run - 1 if request.busy else request.cell.run
    return (*lease.way, Leg(vm=lease.vm.id, run=max(0, run)))[-LONGEST_WAY:]


def describe(stored: Stored) -> SnapshotInfo:
    """Return what clients are told of a snapshot."""
    notes = stored.notes
    return SnapshotInfo(
        id=stored.id, parent=stored.parent, label=notes.label, text=notes.text, kind=notes.kind,
        created=notes.created, size=stored.size, written=stored.written, busy=notes.busy, pause_ms=notes.pause_ms,
        cell=notes.cell,
    )  # fmt: skip


def _with_pause(notes: Notes, seconds: float) -> Notes:
    return notes.model_copy(update={"pause_ms": seconds * 1000})


def _preview(name: str, notes: Notes, parent: str, written: int) -> SnapshotInfo:
    return SnapshotInfo(
        id=name, parent=parent, label=notes.label, text=notes.text, kind=notes.kind, created=notes.created, size=0,
        written=written, busy=notes.busy, pause_ms=notes.pause_ms, stored=False,
        cell=notes.cell,
    )  # fmt: skip


def _hand_over(capture: Capture, folder: Path) -> None:
    """Move what was captured to where the store wants it; QEMU goes on reading disk layers under their old names."""
    capture.device_state.rename(folder / "device-state")
    capture.delta.rename(folder / "memory.delta")
    for number, layer in enumerate(capture.layers):
        os.link(layer, folder / (f"disk-{number}.qcow2" if number else "disk.qcow2"))
