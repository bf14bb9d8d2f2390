"""The client of the supervisor's API for code without an event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from types import TracebackType
from typing import Self, TypeVar

from agentvm_kernel.blocking import LoopThread
from agentvm_kernel.config import Paths
from agentvm_kernel.egress.record import Connection
from agentvm_kernel.profiles import Limits
from agentvm_kernel.supervisor.audit_messages import AuditNews, AuditRecords
from agentvm_kernel.supervisor.client import SupervisorClient
from agentvm_kernel.supervisor.messages import LeaseEvent, LeaseRequest, LimitsRequest
from agentvm_kernel.supervisor.network_messages import NetworkInfo, NetworkRequest
from agentvm_kernel.supervisor.operator_messages import DiskCopied, DiskRequest, PoolInfo, Resumed, VMList
from agentvm_kernel.supervisor.snapshot_messages import (
    Removed,
    Replaced,
    RollbackPlan,
    SnapshotInfo,
    SnapshotRequest,
    SnapshotTree,
)
from agentvm_kernel.supervisor.stats_messages import VMStats
from agentvm_kernel.supervisor.status import Reloaded, Status

_Event = TypeVar("_Event")


class SyncSupervisorClient:
    """`SupervisorClient`, whose calls return when they are done. Forks are what `agentvm_kernel.Session` has.

    Args:
        paths: Where the socket is; the user's by default.
        start: Whether to start a supervisor when none answers.
    """

    def __init__(self, paths: Paths | None = None, *, start: bool = True) -> None:
        self._client = SupervisorClient(paths or Paths.of_user(), start=start)
        self._thread = LoopThread()

    def __enter__(self) -> Self:
        """Open the client; connects nowhere yet."""
        self._thread.__enter__()
        self._thread.call(self._client.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close every connection; leases end with theirs."""
        try:
            self._thread.call(self._client.__aexit__(kind, error, trace))
        finally:
            self._thread.__exit__(None, None, None)

    def status(self) -> Status:
        """See `SupervisorClient`."""
        return self._thread.call(self._client.status())

    def shutdown(self) -> None:
        """See `SupervisorClient`."""
        self._thread.call(self._client.shutdown())

    def reload(self) -> Reloaded:
        """See `SupervisorClient`."""
        return self._thread.call(self._client.reload())

    def vms(self) -> VMList:
        """See `SupervisorClient`."""
        return self._thread.call(self._client.vms())

    def kill(self, vm: str) -> None:
        """See `SupervisorClient`."""
        self._thread.call(self._client.kill(vm))

    def resume(self, vm: str) -> Resumed:
        """See `SupervisorClient`."""
        return self._thread.call(self._client.resume(vm))

    def copy_disk(self, vm: str, request: DiskRequest) -> DiskCopied:
        """See `SupervisorClient`."""
        return self._thread.call(self._client.copy_disk(vm, request))

    def pool(self) -> PoolInfo:
        """See `SupervisorClient`."""
        return self._thread.call(self._client.pool())

    def drain(self) -> None:
        """See `SupervisorClient`."""
        self._thread.call(self._client.drain())

    def fill(self) -> None:
        """See `SupervisorClient`."""
        self._thread.call(self._client.fill())

    @contextmanager
    def lease(self, request: LeaseRequest) -> Iterator[Iterator[LeaseEvent]]:
        """See `SupervisorClient`."""
        with self._entered(self._client.lease(request)) as lease:
            yield self._events(lease)

    def limits(self, lease: str) -> Limits:
        """See `SupervisorClient`."""
        return self._thread.call(self._client.limits(lease))

    def set_limits(self, lease: str, request: LimitsRequest) -> Limits:
        """See `SupervisorClient`."""
        return self._thread.call(self._client.set_limits(lease, request))

    def network(self, lease: str) -> NetworkInfo:
        """See `SupervisorClient`."""
        return self._thread.call(self._client.network(lease))

    def set_network(self, lease: str, request: NetworkRequest) -> NetworkInfo:
        """See `SupervisorClient`."""
        return self._thread.call(self._client.set_network(lease, request))

    def audit(self, lease: str, last: int = 20) -> AuditRecords:
        """See `SupervisorClient`."""
        return self._thread.call(self._client.audit(lease, last))

    @contextmanager
    def events(self, lease: str = "") -> Iterator[Iterator[AuditNews]]:
        """See `SupervisorClient`."""
        with self._entered(self._client.events(lease)) as events:
            yield self._events(events)

    @contextmanager
    def connections(self, lease: str = "", *, follow: bool = False) -> Iterator[Iterator[Connection]]:
        """See `SupervisorClient`."""
        with self._entered(self._client.connections(lease, follow=follow)) as events:
            yield self._events(events)

    @contextmanager
    def stats(self, lease: str = "", *, follow: bool = False) -> Iterator[Iterator[VMStats]]:
        """See `SupervisorClient`."""
        with self._entered(self._client.stats(lease, follow=follow)) as events:
            yield self._events(events)

    def metrics(self) -> str:
        """See `SupervisorClient`."""
        return self._thread.call(self._client.metrics())

    def snapshots(self, lease: str) -> SnapshotTree:
        """See `SupervisorClient`."""
        return self._thread.call(self._client.snapshots(lease))

    def snapshot(self, lease: str, request: SnapshotRequest) -> SnapshotInfo:
        """See `SupervisorClient`."""
        return self._thread.call(self._client.snapshot(lease, request))

    def relabel(self, lease: str, snapshot: str, label: str, text: str | None = None) -> SnapshotInfo:
        """See `SupervisorClient`."""
        return self._thread.call(self._client.relabel(lease, snapshot, label, text))

    def remove(self, lease: str, snapshot: str) -> Removed:
        """See `SupervisorClient`."""
        return self._thread.call(self._client.remove(lease, snapshot))

    def prune(self, lease: str, keep: int) -> Removed:
        """See `SupervisorClient`."""
        return self._thread.call(self._client.prune(lease, keep))

    def plan_rollback(self, lease: str, to: str) -> RollbackPlan:
        """See `SupervisorClient`."""
        return self._thread.call(self._client.plan_rollback(lease, to))

    def rollback(self, lease: str, to: str) -> Replaced:
        """See `SupervisorClient`."""
        return self._thread.call(self._client.rollback(lease, to))

    @contextmanager
    def _entered(self, context: AbstractAsyncContextManager[_Event]) -> Iterator[_Event]:
        value = self._thread.call(_enter(context))
        try:
            yield value
        finally:
            self._thread.call(_leave(context))

    def _events(self, events: AsyncIterator[_Event]) -> Iterator[_Event]:
        while (event := self._thread.call(_next(events))) is not None:
            yield event


async def _enter(context: AbstractAsyncContextManager[_Event]) -> _Event:
    return await context.__aenter__()


async def _leave(context: AbstractAsyncContextManager[_Event]) -> None:
    await context.__aexit__(None, None, None)


async def _next(events: AsyncIterator[_Event]) -> _Event | None:
    return await anext(events, None)
