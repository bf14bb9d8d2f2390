"""Forks: several clones of a leased VM at the same time."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from agentvm_kernel.errors import AgentVMError, NoForkError, SnapshotError
from agentvm_kernel.observe.events.snapshot import ForksMade
from agentvm_kernel.supervisor.core import Supervisor
from agentvm_kernel.supervisor.fork_messages import ForkEnded, ForkGranted, ForkRequest
from agentvm_kernel.supervisor.history import unpin
from agentvm_kernel.supervisor.lease import Fork, Lease
from agentvm_kernel.supervisor.messages import Message, Progress
from agentvm_kernel.supervisor.snapshot_messages import SnapshotRequest
from agentvm_kernel.vm.clone import VM, Randomness
from agentvm_kernel.vm.snapshot import Snapshot

_SEED_BYTES = 16
_FIRST_MOMENT = 1.0
"""Seconds in which a fork's cell may be a short one. The pool begins nothing meanwhile that would take a core from it,
and while other forks are being made it has no way out yet: what has not begun has the CPU first."""


class Forks:
    """The clones that one request asked for, from the fork point until the requester goes away.

    Args:
        supervisor: Owns everything.
        lease: Whose VM is cloned.
        request: What is wanted.
        emit: Told of each fork.
    """

    def __init__(
        self, supervisor: Supervisor, lease: Lease, request: ForkRequest, emit: Callable[[Message], None]
    ) -> None:
        self._supervisor = supervisor
        self._lease = lease
        self._request = request
        self._emit = emit
        self._slots = asyncio.Semaphore(min(request.count, supervisor.budget.slots()))
        self._in_the_making = 0
        self._unconnected: list[Fork] = []
        self._seed = bytes.fromhex(request.seed) or secrets.token_bytes(_SEED_BYTES)

    async def serve(self) -> None:
        """Make the forks, and return when each of them rests or has ended.

        Where there could be none at all, fork 0 has ended.
        """
        try:
            snapshot = await self._fork_point()
        except AgentVMError as error:
            self._emit(ForkEnded(fork=0, code=error.code, reason=error.message, hint=error.hint))
            return
        async with asyncio.TaskGroup() as tasks:
            for number in range(1, self._request.count + 1):
                tasks.create_task(self._serve_one(number, snapshot))

    async def _fork_point(self) -> Snapshot:
        lease, supervisor = self._lease, self._supervisor
        async with lease.turn:
            supervisor.end_forks(lease)
            lease.forking = self
            self._emit(Progress(stage="saving the virtual machine"))
            asked = SnapshotRequest(kind="fork", cell=self._request.cell)
            await supervisor.history.take(lease, asked)
            request, snapshot = self._request, lease.vm.snapshot
            supervisor.audit.record(
                ForksMade(
                    **lease.subject, snapshot=snapshot.id, count=request.count, randomness=request.randomness,
                    seed=self._seed.hex() if request.seed or request.randomness == "common" else "",
                    run=request.cell.run,
                )
            )  # fmt: skip
            return snapshot

    async def _serve_one(self, number: int, snapshot: Snapshot) -> None:
        async with self._slots:
            try:
                fork = await self._make(number, snapshot)
            except AgentVMError as error:
                self._emit(ForkEnded(fork=number, code=error.code, reason=error.message, hint=error.hint))
                return
            try:
                await self._settled(number, fork)
            finally:
                if not fork.is_resting and self._lease.forks.get(number) is fork:
                    self._supervisor.end_fork(self._lease, number)

    async def _make(self, number: int, snapshot: Snapshot) -> Fork:
        lease, supervisor = self._lease, self._supervisor
        began = time.monotonic()
        owner = f"fork {number} of {lease.terms.request.owner}"
        slot = await supervisor.admission.enter(
            lease.terms.session, owner, lambda text: self._emit(Progress(stage=f"fork {number}: {text}"))
        )
        try:
            with supervisor.pool.quiet(), self._making():
                vm = await self._clone(number, snapshot)
            slot.started()
            if lease.forking is not self:
                supervisor.pool.retire(vm)
                unpin(lease.terms, vm.snapshot)
                raise SnapshotError("Another fork request came after this one.")
        except BaseException:
            slot.leave()
            raise
        supervisor.count(vm)
        fork = lease.forks[number] = Fork(vm, slot)
        granted = supervisor.grant(lease, vm, (time.monotonic() - began) * 1000)
        self._emit(ForkGranted(fork=number, granted=granted))
        self._unconnected.append(fork)
        self._connect_all()
        return fork

    @contextmanager
    def _making(self) -> Iterator[None]:
        self._in_the_making += 1
        try:
            yield
        finally:
            self._in_the_making -= 1

    def _connect_all(self) -> None:
        """Give the forks their way out, unless more are just being made."""
        if not self._in_the_making:
            for fork in list(self._unconnected):
                self._connect(fork)

    def _connect(self, fork: Fork) -> None:
        if fork in self._unconnected:
            self._unconnected.remove(fork)
            if not (fork.is_resting or fork.vm.ended.done()):
                self._lease.network.attach(fork.vm)

    def _randomness(self, number: int) -> Randomness:
        """Return how a fork's generators are seeded; where they diverge by a seed, from one of its own."""
        if self._request.randomness == "diverge" and not self._request.seed:
            return Randomness(fork=number)
        own = b"" if self._request.randomness == "common" else b" %d" % number
        return Randomness("common", hashlib.sha512(self._seed + own).digest(), number)

    async def _clone(self, number: int, snapshot: Snapshot) -> VM:
        terms = self._lease.terms
        async with self._supervisor.history.found(terms, snapshot.id) as stored:
            try:
                return await self._supervisor.pool.clone(
                    stored.snapshot, self._randomness(number), self._lease.limits, self._lease.network.guest
                )
            except BaseException:
                unpin(terms, stored.snapshot)
                raise

    async def _settled(self, number: int, fork: Fork) -> None:
        """Wait until a fork rests or is gone."""
        ended, settled = asyncio.shield(fork.vm.ended), asyncio.ensure_future(fork.settled.wait())
        try:
            with self._supervisor.pool.quiet():
                await asyncio.wait((ended, settled), timeout=_FIRST_MOMENT, return_when=asyncio.FIRST_COMPLETED)
            self._connect(fork)
            await asyncio.wait((ended, settled), return_when=asyncio.FIRST_COMPLETED)
        finally:
            settled.cancel()
        if fork.vm.ended.done() and not fork.settled.is_set():
            self._supervisor.end_fork(self._lease, number)
            self._emit(ForkEnded(fork=number, code="vm_ended", reason=f"{_sentence(fork.vm)}."))


async def rest(lease: Lease, number: int) -> None:
    """Pause a fork whose work is done, until it is adopted.

    Args:
        lease: Whose fork it is.
        number: The fork's number.

    Raises:
        SnapshotError: there is no such fork.
        HypervisorError: it is gone.
    """
    fork = lease.forks.get(number)
    if fork is None or fork.is_lent:
        raise NoForkError(f"There is no fork {number}.")
    await fork.vm.pause()
    fork.is_resting = True
    fork.settled.set()


def _sentence(vm: VM) -> str:
    reason = vm.ended.result()
    return reason[:1].upper() + reason[1:]
