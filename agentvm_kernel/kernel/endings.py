"""Why a VM ended: several see it, and the best reason is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Final

from agentvm_kernel.errors import AgentVMError, ProofError, ProtocolError, SupervisorError, VMEndedError
from agentvm_kernel.supervisor.client import Lease
from agentvm_kernel.supervisor.messages import Blocked, Ended, Leaving, Noticed
from agentvm_kernel.supervisor.snapshot_messages import SnapshotInfo

_BETTER_REASON: Final = 2.0
"""Seconds to wait, after the link broke, for the supervisor to say why."""


@asynccontextmanager
async def watched(*awaitables: Awaitable[AgentVMError]) -> AsyncIterator[list[asyncio.Task[AgentVMError]]]:
    """Run what watches for the end; whatever they say counts as a result, not as a failure."""
    tasks = [asyncio.create_task(_reported(awaitable)) for awaitable in awaitables]
    try:
        await asyncio.sleep(0)  # what is cancelled before it has begun leaves a coroutine that Python complains about
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def never() -> AgentVMError:
    """Wait for nothing."""
    never: asyncio.Future[AgentVMError] = asyncio.get_running_loop().create_future()
    return await never


async def _reported(awaitable: Awaitable[AgentVMError]) -> AgentVMError:
    try:
        return await awaitable
    except AgentVMError as error:
        return error


async def lease_end(
    lease: Lease,
    keep: Callable[[float], Coroutine[object, object, SnapshotInfo]] | None = None,
    on_blocked: Callable[[Blocked], None] = lambda _: None,
    on_noticed: Callable[[Noticed], None] = lambda _: None,
) -> AgentVMError:
    """Return why the lease ended, or is to end, once that is so.

    Args:
        lease: The lease.
        keep: Snapshots the VM, within so many seconds, when the supervisor is about to leave.
        on_blocked: Called with each connection that was refused.
        on_noticed: Called with each anomaly.
    """
    async for event in lease:
        if isinstance(event, Noticed):
            on_noticed(event)
        if isinstance(event, Blocked):
            on_blocked(event)
        if isinstance(event, Ended):
            return ended_error(event)
        if isinstance(event, Leaving) and keep is not None:
            return await _kept(keep(event.seconds))
    return SupervisorError(
        "The supervisor, which kept the VM, is gone, and so the VM is.", "The next start brings a new supervisor."
    )


async def _kept(taking: Coroutine[object, object, SnapshotInfo]) -> AgentVMError:
    try:
        info = await taking
    except AgentVMError as error:
        return VMEndedError(f"The supervisor left, and the VM could not be kept: {error.message}", error.hint)
    return VMEndedError(
        f"The supervisor was told to leave; the VM is kept as the snapshot {info.id}.",
        f"%rollback {info.id} goes on with it, in a fresh VM.",
    )


def ended_error(event: Ended) -> AgentVMError:
    """Make the error that a lease ended with."""
    error = VMEndedError(event.reason[:2000], event.hint[:2000])
    error.code = event.code[:64]  # type: ignore[misc]
    return error


async def best_reason(
    lost: asyncio.Task[AgentVMError], died: asyncio.Task[AgentVMError], closed: asyncio.Task[AgentVMError]
) -> AgentVMError:
    """Choose the best of up to three reasons.

    That the kernel died, or the protocol was violated, says more than anything else. A link that merely broke is
    usually the first sign of a VM that ended: then the supervisor knows why, a moment later.
    """
    for task in (died, closed):
        if task.done() and isinstance(task.result(), (VMEndedError, ProtocolError, ProofError)):
            return task.result()
    if not lost.done():
        await asyncio.wait([lost], timeout=_BETTER_REASON)
    if lost.done():
        return lost.result()
    return _broken(closed.result() if closed.done() else died.result())


def _broken(error: AgentVMError) -> AgentVMError:
    return VMEndedError(f"The connection to the VM broke: {error.message}", error.hint)
