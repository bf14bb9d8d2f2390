"""A clone of a stored snapshot, lent for a while to who wants to look into it; it has no network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from agentvm_kernel.errors import AgentVMError, VMEndedError
from agentvm_kernel.supervisor.core import Supervisor
from agentvm_kernel.supervisor.fork_messages import ForkEnded, ForkGranted
from agentvm_kernel.supervisor.history import unpin
from agentvm_kernel.supervisor.lease import Fork, Lease
from agentvm_kernel.supervisor.messages import Message, Progress
from agentvm_kernel.vm.clone import VM, Randomness

_FIRST: Final = 1000
"""Number of the first one; those of forks are smaller."""


async def lend(supervisor: Supervisor, lease: Lease, snapshot: str, emit: Callable[[Message], None]) -> None:
    """Make a clone, and end it when this is cancelled; it ends with the lease and with the next forks, too.

    Args:
        supervisor: Makes it.
        lease: Whose notebook the snapshot belongs to.
        snapshot: Its id.
        emit: Told of the clone, or why there is none (any more).
    """
    owner = f"a look into {snapshot} for {lease.terms.request.owner}"
    try:
        fork = await _make(supervisor, lease, snapshot, owner, emit)
    except AgentVMError as error:
        emit(ForkEnded(fork=0, code=error.code, reason=error.message, hint=error.hint))
        return
    number = max([_FIRST, *lease.forks]) + 1
    lease.forks[number] = fork
    try:
        emit(ForkGranted(fork=number, granted=supervisor.grant(lease, fork.vm, 0.0)))
        await _over(fork)
        emit(ForkEnded(fork=number, code="vm_ended", reason="The clone has ended."))
    finally:
        if lease.forks.get(number) is fork:
            supervisor.end_fork(lease, number)


async def _make(
    supervisor: Supervisor, lease: Lease, snapshot: str, owner: str, emit: Callable[[Message], None]
) -> Fork:
    slot = await supervisor.admission.enter(lease.terms.session, owner, lambda text: emit(Progress(stage=text)))
    try:
        vm = await _clone(supervisor, lease, snapshot)
    except BaseException:
        slot.leave()
        raise
    slot.started()
    if lease.terms.id not in supervisor.leases:
        unpin(lease.terms, vm.snapshot)
        supervisor.pool.retire(vm)
        slot.leave()
        raise VMEndedError("The notebook's machine ended meanwhile.")
    return Fork(vm, slot, is_lent=True)


async def _clone(supervisor: Supervisor, lease: Lease, snapshot: str) -> VM:
    async with supervisor.history.found(lease.terms, snapshot) as stored:
        try:
            return await supervisor.pool.clone(stored.snapshot, Randomness("keep"), lease.limits, "none")
        except BaseException:
            unpin(lease.terms, stored.snapshot)
            raise


async def _over(fork: Fork) -> None:
    """Wait until a clone has ended, or was told to."""
    settled = asyncio.ensure_future(fork.settled.wait())
    try:
        await asyncio.wait((asyncio.shield(fork.vm.ended), settled), return_when=asyncio.FIRST_COMPLETED)
    finally:
        settled.cancel()
