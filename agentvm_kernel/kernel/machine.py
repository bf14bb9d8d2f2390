"""The VM under a notebook: leased, linked, watched, saved, replaced, restarted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from enum import Enum
from typing import Final, TypeVar

from agentvm_kernel.errors import AgentVMError, FreshVMError, SupervisorError, VMEndedError
from agentvm_kernel.firewall.firewall import Firewall
from agentvm_kernel.firewall.policy import Policy
from agentvm_kernel.kernel.endings import best_reason, ended_error, lease_end, never, watched
from agentvm_kernel.kernel.forkpoint import ForkPoint, ForkSupervisor
from agentvm_kernel.kernel.guest import CHANNELS, Agent, Connect, Guest, Stream
from agentvm_kernel.kernel.limits import Changes, HeldLimits
from agentvm_kernel.kernel.network import NotebookNetwork
from agentvm_kernel.kernel.roles import Supervisor, Tenure, Watcher
from agentvm_kernel.supervisor.client import Lease
from agentvm_kernel.supervisor.messages import Ended, Granted, LeaseRequest, LimitsRequest, Noticed, Progress
from agentvm_kernel.supervisor.operator_messages import Resumed
from agentvm_kernel.supervisor.snapshot_messages import (
    Replaced,
    RollbackPlan,
    SnapshotInfo,
    SnapshotRequest,
    SnapshotTree,
)
from agentvm_kernel.supervisor.stats_messages import Moved
from agentvm_kernel.supervisor.workspace_messages import WorkspaceInfo, WorkspaceRequest

log = logging.getLogger("agentvm.machine")

_T = TypeVar("_T")
_DEFAULT: Final = Policy()
_KEPT: Final = "kept when the supervisor left"


class State(Enum):
    """How the notebook's VM is."""

    STARTING = "starting"
    READY = "ready"
    ENDED = "ended"


class Machine:
    """Keeps one VM leased and linked.

    What is done to the lease (a snapshot, a rollback, the point from which forks go on) is done one at a time, and
    meanwhile `held` is true: nothing may be forwarded to the guest. It goes on to its end even when its caller is
    cancelled, so that an interrupt leaves either the old VM or the new one.

    Args:
        request: What to lease.
        supervisor: Opens a client of the supervisor.
        connect: Dials a guest.
        policy: What its output may be.

    Attributes:
        task: What the machine is at while it is starting or held, for the user; else empty.
        stage: Which part of it.
        done: The part's share, 0 to 1, where known.
        limits: What holds in the notebook.
        firewall: Cleans what the guest puts out.
        network: What the notebook's VM may reach.
        on_noticed: Called with each anomaly in the VM; whoever shows them sets it.
    """

    def __init__(
        self,
        request: LeaseRequest,
        supervisor: Callable[[], AbstractAsyncContextManager[Supervisor]],
        connect: Connect,
        policy: Policy = _DEFAULT,
    ) -> None:
        self.state = State.STARTING
        self.task, self.stage = "", ""
        self.done: float | None = None
        self.error: AgentVMError | None = None
        self.guest: Guest | None = None
        self.watcher: Watcher | None = None
        self.connect = connect
        self.limits = HeldLimits()
        self.firewall = Firewall(policy)
        self.network = NotebookNetwork(self.present)
        self.on_noticed: Callable[[Noticed], None] = lambda _: None
        self._request = request
        self._supervisor = supervisor
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._tenure: Tenure | None = None
        self._operations: set[asyncio.Task[object]] = set()
        self._turn = asyncio.Lock()
        self._free = asyncio.Event()
        self._free.set()

    def start(self) -> None:
        """Begin to acquire a VM; `settled` tells when that is over."""
        self._starting("Preparing the virtual machine", "asking for a virtual machine")
        self._task = asyncio.create_task(self._run(), name="machine")
        self._task.add_done_callback(self._crashed)

    @property
    def held(self) -> bool:
        """Whether nothing may be forwarded to the guest, because its lease is being operated on."""
        return not self._free.is_set()

    async def unheld(self) -> None:
        """Wait until the lease is not operated on."""
        await self._free.wait()

    async def settled(self) -> None:
        """Wait until the machine is neither starting nor held."""
        while self.held or self.state is State.STARTING:
            await self._free.wait()
            await self._started()

    async def restart(self, reason: AgentVMError | None = None, *, profile: str = "") -> None:
        """Give the VM back and begin to acquire another.

        Args:
            reason: What is told to what waits for the old one.
            profile: Name of another profile, whose limits hold then; empty for the same, with what was changed.
        """
        lost = "What it had in memory and on disk is gone."
        await self.close(reason or FreshVMError("The VM was restarted.", lost))
        if profile:
            self._request = self._request.model_copy(update={"profile": profile})
            self.limits.changes.clear()
        self.start()

    async def close(self, reason: AgentVMError) -> None:
        """Give the VM back; what waits for it is told the reason."""
        if self._tenure is not None:
            await self.network.told()
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.wait([task])
        if self.state is not State.ENDED:
            await self._end(reason)

    async def open(self, service: str) -> Stream:
        """Open a stream to a service of the guest, besides those that the machine itself uses.

        Raises:
            AgentVMError: there is no VM, or its link ended.
        """
        await self.settled()
        return await self.present().link.open(service)

    # What can be done with the lease

    async def snapshots(self) -> SnapshotTree:
        """Return the notebook's snapshots."""
        tenure = self.present()
        return await tenure.supervisor.snapshots(tenure.lease)

    async def plan_rollback(self, to: str) -> RollbackPlan:
        """Say what a rollback would do."""
        tenure = self.present()
        return await tenure.supervisor.plan_rollback(tenure.lease, to)

    async def set_limits(self, changes: Changes) -> None:
        """Change limits, of this VM and of those that take its place.

        Raises:
            AgentVMError: the supervisor refused; what held holds on.
        """
        tenure = self.present()
        self.limits.changed(changes, await tenure.supervisor.set_limits(tenure.lease, _limits_request(changes)))

    async def workspace(self) -> WorkspaceInfo:
        """Return which folder of the host the VM shares."""
        tenure = self.present()
        return await tenure.supervisor.workspace(tenure.lease)

    async def share(self, request: WorkspaceRequest) -> WorkspaceInfo:
        """Let the VM share a folder of the host, or none.

        Raises:
            AgentVMError: the supervisor refused; what was shared still is.
        """
        tenure = self.present()
        return await tenure.supervisor.set_workspace(tenure.lease, request)

    async def moved(self, since: float) -> Moved:
        """Return what the VM has moved, as far as its tally does not tell it; see `SupervisorClient.moved`."""
        tenure = self.present()
        return await tenure.supervisor.moved(tenure.lease, since)

    async def enforced_by(self) -> dict[str, str]:
        """Return who enforces which limit on this host, as the supervisor knows it; see `vm.limits.enforced_by`."""
        return (await self.present().supervisor.status()).enforced_by

    async def resume(self) -> Resumed:
        """Let the VM run on, if it was slowed down or stopped because of an anomaly."""
        tenure = self.present()
        if self.guest is None:
            raise VMEndedError("There is no VM.")
        return await tenure.supervisor.resume(self.guest.granted.vm)

    async def snapshot(self, request: SnapshotRequest) -> SnapshotInfo:
        """Take a snapshot.

        Raises:
            AgentVMError: there is none now, and the VM goes on.
        """
        return await self._operate(self._snapshot(request))

    async def rollback(self, to: str) -> Replaced:
        """Go back to a snapshot, in a fresh VM; returns when the notebook is linked to it.

        Raises:
            AgentVMError: the supervisor refused, and the old VM goes on; or the new one cannot be reached, and there
                is none.
        """
        return await self._operate(self._replace("Going back", lambda t: t.supervisor.rollback(t.lease, to)))

    async def adopt(self, fork: int) -> Replaced:
        """Take a fork in the VM's place; as `rollback` does a snapshot's clone."""
        return await self._operate(self._replace("Adopting the fork", lambda t: t.supervisor.adopt(t.lease, fork)))

    async def fork(self, work: Callable[[ForkSupervisor, str], Coroutine[object, object, _T]]) -> _T:
        """Let forks of the VM run; the VM is held only until it is saved.

        Args:
            work: Asks the supervisor for forks of the lease of that id, and runs them.

        Raises:
            AgentVMError: what the work raises.
        """
        running: asyncio.Task[_T] | None = None
        unwanted = asyncio.Event()
        try:
            running = await self._operate(self._fork_point(work, unwanted))
            self.task = "Running the forks"
            return await self._outcome(running)
        finally:
            self.task = ""
            unwanted.set()
            if running is not None:
                running.cancel()

    async def _fork_point(
        self, work: Callable[[ForkSupervisor, str], Coroutine[object, object, _T]], unwanted: asyncio.Event
    ) -> asyncio.Task[_T]:
        async with self._held_for("Saving the virtual machine") as tenure, tenure.link.hold():
            taken = self.watcher.snapshot_begins() if self.watcher else None
            point = ForkPoint(tenure.supervisor)
            running = self._begin(work(point, tenure.lease))
            await asyncio.wait((running, point.saved), return_when=asyncio.FIRST_COMPLETED)
        if taken and point.saved.done() and point.saved.result():
            taken(point.saved.result(), False)
        if unwanted.is_set():
            running.cancel()
        return running

    async def _operate(self, work: Coroutine[object, object, _T]) -> _T:
        """Let an operation on the lease go on to its end, whatever becomes of its caller."""
        return await self._outcome(self._begin(work))

    def _begin(self, work: Coroutine[object, object, _T]) -> asyncio.Task[_T]:
        operation = asyncio.create_task(work)
        self._operations.add(operation)
        operation.add_done_callback(self._operated)
        return operation

    async def _outcome(self, operation: asyncio.Task[_T]) -> _T:
        await asyncio.wait([operation])
        if operation.cancelled():
            raise self.error or VMEndedError("The VM was given back.")
        return operation.result()

    def _operated(self, operation: asyncio.Task[object]) -> None:
        self._operations.discard(operation)
        if not operation.cancelled() and (failure := operation.exception()):
            log.info("failed: %s", failure)

    @asynccontextmanager
    async def _held_for(self, task: str) -> AsyncIterator[Tenure]:
        """Have the lease alone."""
        async with self._turn:
            await self._started()
            self._free.clear()
            self.task, self.stage, self.done = task, "", None
            try:
                yield self.present()
            finally:
                self.task = ""
                self._free.set()

    async def _snapshot(self, request: SnapshotRequest) -> SnapshotInfo:
        async with self._held_for("Taking a snapshot") as tenure, tenure.link.hold():
            taken = self.watcher.snapshot_begins() if self.watcher else None
            info = await tenure.supervisor.snapshot(tenure.lease, request)
        if taken:
            taken(info.id, info.busy)
        return info

    async def _replace(self, task: str, ask: Callable[[Tenure], Awaitable[Replaced]]) -> Replaced:
        async with self._held_for(task) as tenure:
            tenure.asking = asyncio.get_running_loop().create_future()
            try:
                async with tenure.link.hold(drain=False):
                    replaced = await ask(tenure)
                tenure.successor.set_result(replaced)
                self._starting(task, "connecting to the virtual machine")
            finally:
                tenure.asking.set_result(None)
            await self._started()
        return replaced

    def present(self) -> Tenure:
        """Return who keeps the VM.

        Raises:
            AgentVMError: there is none; the error says why.
        """
        if self._tenure is None:
            raise self.error or VMEndedError("There is no VM.")
        return self._tenure

    # The VM's life

    def _starting(self, task: str, stage: str) -> None:
        self.state, self.error, self.guest, self._tenure = State.STARTING, None, None, None
        self.task, self.stage, self.done = task, stage, None
        self._changed = asyncio.Event()

    async def _started(self) -> None:
        while self.state is State.STARTING:
            await self._changed.wait()

    async def _run(self) -> None:
        try:
            await self._live()
        except AgentVMError as error:
            await self._end(error)
        except OSError as error:
            await self._end(SupervisorError(f"The VM could not be had: {error}"))

    def _crashed(self, task: asyncio.Task[None]) -> None:
        """Let nobody wait for a machine whose task failed on something that was not foreseen."""
        failure = None if task.cancelled() else task.exception()
        if failure is not None:
            log.error("the VM's keeper failed", exc_info=failure)
            error = VMEndedError(f"The kernel process could not keep its VM ({type(failure).__name__}: {failure}).")
            self._task = asyncio.create_task(self._end(error), name="machine")

    async def _live(self) -> None:
        async with self._supervisor() as supervisor, supervisor.lease(self.network.asked(self._request)) as lease:
            granted = await self._acquire(lease)
            self.limits.granted(granted)
            if changes := self.limits.changes:
                self.limits.now = await supervisor.set_limits(granted.lease, _limits_request(changes))
            self.stage, self.done = "connecting to the virtual machine", None
            async with watched(lease_end(lease, self._keep, self.network.blocked, self._noticed)) as (lost,):
                while True:
                    link = await self.connect(granted.link, key=bytes.fromhex(granted.key), epoch=granted.epoch)
                    try:
                        granted = await self._serve(Tenure(supervisor, granted.lease, link), granted, lost)
                    finally:
                        await link.close()

    def _noticed(self, event: Noticed) -> None:
        self.on_noticed(event)

    async def _keep(self, seconds: float) -> SnapshotInfo:
        """Snapshot the VM because the supervisor is about to leave."""
        request = SnapshotRequest(text=_KEPT)
        if self.watcher:
            request = await self.watcher.guest_leaving(_KEPT, seconds / 2)
        return await self.snapshot(request)

    async def _acquire(self, lease: Lease) -> Granted:
        async for event in lease:
            if isinstance(event, Granted):
                return event
            if isinstance(event, Ended):
                raise ended_error(event)
            if isinstance(event, Progress):
                self.stage, self.done = event.stage[:200], event.done
        raise SupervisorError("The supervisor went away before there was a VM.")

    async def _serve(self, tenure: Tenure, granted: Granted, lost: asyncio.Task[AgentVMError]) -> Granted:
        """Keep a guest until another takes its place.

        Raises:
            AgentVMError: it has ended; the error says why.
        """
        link = tenure.link
        streams = {name: await link.open(name) for name in CHANNELS}
        agent = Agent(await link.open("agent"))
        guest = Guest(granted, streams, agent, asyncio.get_running_loop().time())
        self.guest, self._tenure, self.state, self.task = guest, tenure, State.READY, ""
        broken = await self.watcher.guest_ready(guest) if self.watcher else never()
        async with watched(agent.watch(), link.wait_closed(), broken) as (died, closed, failed):
            self._changed.set()
            ends = (lost, died, closed, failed)
            await asyncio.wait((*ends, tenure.successor), return_when=asyncio.FIRST_COMPLETED)
            if tenure.asking is not None:  # a VM ends before the supervisor says which other has its place
                await asyncio.wait([tenure.asking])
            if not tenure.successor.done():
                raise await self._last_words(*ends)
        replaced = tenure.successor.result()
        if self.watcher:
            await self.watcher.guest_replaced(replaced.snapshot)
        return replaced.granted

    async def _last_words(
        self,
        lost: asyncio.Task[AgentVMError],
        died: asyncio.Task[AgentVMError],
        closed: asyncio.Task[AgentVMError],
        failed: asyncio.Task[AgentVMError],
    ) -> AgentVMError:
        if failed.done():
            return failed.result()
        if self.watcher and not closed.done():
            await self.watcher.guest_quiet()
        return await best_reason(lost, died, closed)

    async def _end(self, error: AgentVMError) -> None:
        """Note the end and tell the watcher."""
        self.state, self.error, self.guest, self._tenure, self.task = State.ENDED, error, None, None, ""
        log.info("the VM is gone: %s", error.message)
        if operations := list(self._operations):
            for operation in operations:
                operation.cancel()
            await asyncio.wait(operations)
        if self.watcher:
            await self.watcher.guest_ended(error)
        self._changed.set()


def _limits_request(changes: Changes) -> LimitsRequest:
    return LimitsRequest(changes=dict(changes))
