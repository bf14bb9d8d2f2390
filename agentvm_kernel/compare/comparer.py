"""Compares snapshots: lets each be cloned for a moment, and asks the clone what it holds."""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Final, Protocol

from agentvm_kernel.compare.comparison import Comparison, compare
from agentvm_kernel.compare.inventory import Inventory, cell, read
from agentvm_kernel.errors import AgentVMError, ApiError, CompareError, NoSnapshotError, SupervisorError, VMEndedError
from agentvm_kernel.kernel.execution import LINK_LIMITS, CellResult, OutputLimits, running
from agentvm_kernel.kernel.forkpoint import ForkEvent
from agentvm_kernel.kernel.guest import Connect
from agentvm_kernel.link.connection import connect
from agentvm_kernel.supervisor.fork_messages import ForkEnded, ForkGranted
from agentvm_kernel.supervisor.messages import Granted
from agentvm_kernel.supervisor.snapshot_messages import SnapshotInfo, SnapshotTree
from agentvm_kernel.terminal import plain

_SECONDS: Final = 300.0
"""For a clone to say what it holds; under emulation, beside others, that takes a while."""

_DIAL: Final = partial(connect, limits=LINK_LIMITS)
_OUTPUT: Final = OutputLimits(kept=17 << 20, taken=34 << 20)
_KEPT: Final = 16


class Lender(Protocol):
    """What comparing takes of the supervisor; `SupervisorClient` is the real one."""

    async def snapshots(self, lease: str) -> SnapshotTree:
        """Return the notebook's snapshots."""

    def clone(self, lease: str, snapshot: str) -> AbstractAsyncContextManager[AsyncIterator[ForkEvent]]:
        """Clone a snapshot until the context is left."""


class Comparer:
    """Compares snapshots, and remembers what they hold: a snapshot does not change.

    Args:
        supervisor: Lends clones.
        dial: Dials a guest.
    """

    def __init__(self, supervisor: Lender, dial: Connect = _DIAL) -> None:
        self._supervisor = supervisor
        self._dial = dial
        self._known: OrderedDict[str, Inventory] = OrderedDict()
        self._turn = asyncio.Lock()

    async def compare(self, lease: str, a: str, b: str) -> Comparison:
        """Return what differs between two snapshots of a lease's notebook, as their guests claim.

        Args:
            lease: The lease's id.
            a: Id of the one.
            b: Id of the other.

        Raises:
            CompareError: one cannot be compared.
            AgentVMError: there is none of that id, or it could not be cloned.
        """
        taken = {one.id: one for one in (await self._supervisor.snapshots(lease)).snapshots}
        for name in (a, b):
            _check(taken.get(name), name)
        async with self._turn:
            before, after = await self._inventory(lease, a), await self._inventory(lease, b)
        return await asyncio.to_thread(compare, a, before, b, after)

    async def _inventory(self, lease: str, snapshot: str) -> Inventory:
        found = self._known.get(snapshot)
        if found is None:
            mark = f"{secrets.token_hex(8)}:"
            said = await self._ask(lease, snapshot, cell(mark))
            if said.status != "ok":
                raise _failure(snapshot, said)
            found = self._known[snapshot] = await asyncio.to_thread(read, said.stdout, mark)
            if len(self._known) > _KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(snapshot)
        return found

    async def _ask(self, lease: str, snapshot: str, code: str) -> CellResult:
        async with self._supervisor.clone(lease, snapshot) as events:
            granted = await _granted(events)
            link = await self._dial(granted.link, key=bytes.fromhex(granted.key), epoch=granted.epoch)
            try:
                async with running(link, _end(events)) as runner:
                    return await runner.run(code, timeout=_SECONDS, limits=_OUTPUT)
            finally:
                await link.close()


def _check(info: SnapshotInfo | None, name: str) -> None:
    if info is None:
        raise NoSnapshotError(f"There is no snapshot {name!a:.40}.", "%snapshots lists those that there are.")
    if info.busy:
        raise CompareError(
            f"The snapshot {name} froze a running cell, and cannot say what it holds before that cell has ended.",
            "Compare one that was taken between cells.",
        )


async def _granted(events: AsyncIterator[ForkEvent]) -> Granted:
    async for event in events:
        if isinstance(event, ForkGranted):
            return event.granted
        if isinstance(event, ForkEnded):
            raise ApiError(event.code, event.reason, event.hint)
    raise SupervisorError("The supervisor went away before there was a clone.")


async def _end(events: AsyncIterator[ForkEvent]) -> AgentVMError:
    async for event in events:
        if isinstance(event, ForkEnded):
            return VMEndedError(event.reason, event.hint)
    return SupervisorError("The supervisor went away.")


def _failure(snapshot: str, said: CellResult) -> CompareError:
    raised = f"{said.error.name}: {said.error.value}" if said.error else ""
    reason = plain((said.reason or raised)[:300])
    return CompareError(
        f"The snapshot {snapshot} does not say what it holds: {reason}",
        "Something in it may keep Python busy; compare another one.",
    )
