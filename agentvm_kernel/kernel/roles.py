"""Whom a machine deals with: the supervisor that keeps its VM, the guest in it, and who watches it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from agentvm_kernel.egress.record import Connection
from agentvm_kernel.errors import AgentVMError
from agentvm_kernel.kernel.forkpoint import ForkSupervisor
from agentvm_kernel.kernel.guest import Guest, Link
from agentvm_kernel.profiles import Limits
from agentvm_kernel.supervisor.audit_messages import AuditRecords
from agentvm_kernel.supervisor.client import Lease
from agentvm_kernel.supervisor.messages import LeaseRequest, LimitsRequest
from agentvm_kernel.supervisor.network_messages import CassetteRequest, CellRequest, NetworkInfo, NetworkRequest
from agentvm_kernel.supervisor.operator_messages import Resumed
from agentvm_kernel.supervisor.snapshot_messages import (
    Replaced,
    RollbackPlan,
    SnapshotInfo,
    SnapshotRequest,
    SnapshotTree,
)
from agentvm_kernel.supervisor.stats_messages import Moved, VMStats
from agentvm_kernel.supervisor.status import Status
from agentvm_kernel.supervisor.workspace_messages import WorkspaceInfo, WorkspaceRequest


class Supervisor(ForkSupervisor, Protocol):
    """What a machine needs of the supervisor; `SupervisorClient` is the real one."""

    def lease(self, request: LeaseRequest) -> AbstractAsyncContextManager[Lease]:
        """Ask for a VM and hold it within the context."""

    async def status(self) -> Status:
        """Return what the supervisor tells about itself."""

    async def snapshots(self, lease: str) -> SnapshotTree:
        """Return the notebook's snapshots."""

    async def snapshot(self, lease: str, request: SnapshotRequest) -> SnapshotInfo:
        """Snapshot the VM."""

    async def plan_rollback(self, lease: str, to: str) -> RollbackPlan:
        """Say what a rollback would do."""

    async def rollback(self, lease: str, to: str) -> Replaced:
        """Put a clone of a snapshot in the VM's place."""

    async def adopt(self, lease: str, fork: int) -> Replaced:
        """Put a fork in the VM's place."""

    async def resume(self, vm: str) -> Resumed:
        """Let a VM run on."""

    async def set_limits(self, lease: str, request: LimitsRequest) -> Limits:
        """Change limits, for the VM and for those that take its place."""

    async def network(self, lease: str) -> NetworkInfo:
        """Return what the VM may reach."""

    async def set_network(self, lease: str, request: NetworkRequest) -> NetworkInfo:
        """Change what the VM, and those that take its place, may reach."""

    async def play_cassette(self, lease: str, request: CassetteRequest) -> NetworkInfo:
        """Record what inspected hosts say to the VM, or replay it."""

    async def workspace(self, lease: str) -> WorkspaceInfo:
        """Return which folder of the host the VM shares."""

    async def set_workspace(self, lease: str, request: WorkspaceRequest) -> WorkspaceInfo:
        """Let the VM, and those that take its place, share a folder of the host, or none."""

    async def set_cell(self, lease: str, request: CellRequest) -> None:
        """Tell which cell runs."""

    async def audit(self, lease: str, last: int = 20) -> AuditRecords:
        """Return what the audit log says of the lease's notebook."""

    async def moved(self, lease: str, since: float) -> Moved:
        """Return what the VM has moved, as far as its tally does not tell it."""

    def stats(self, lease: str = "", *, follow: bool = False) -> AbstractAsyncContextManager[AsyncIterator[VMStats]]:
        """Tell what VMs use within the context."""

    def connections(
        self, lease: str = "", *, follow: bool = False
    ) -> AbstractAsyncContextManager[AsyncIterator[Connection]]:
        """Tell of connections within the context."""


@dataclass
class Tenure:
    """A guest's time in the lease, as those see it who operate on the lease.

    Attributes:
        supervisor: Keeps the VM.
        lease: The lease's id.
        link: To the guest.
        asking: Not done while the supervisor is asked for another VM in this one's place.
        successor: What it answered.
    """

    supervisor: Supervisor
    lease: str
    link: Link
    asking: asyncio.Future[None] | None = None
    successor: asyncio.Future[Replaced] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Watcher(Protocol):
    """Hears of a machine's ups and downs; `Succession` is the real one."""

    async def guest_ready(self, guest: Guest) -> Awaitable[AgentVMError]:
        """A new guest is up: its streams may be read. What is returned ends it."""

    async def guest_quiet(self) -> None:
        """Its kernel died but the link stands: return when what it had said has arrived."""

    async def guest_ended(self, error: AgentVMError) -> None:
        """The guest is gone, or could not be had; `error` says why."""

    async def guest_replaced(self, snapshot: SnapshotInfo) -> None:
        """The guest is gone because a clone of a snapshot, which will be ready soon, has taken its place."""

    async def guest_leaving(self, text: str, patience: float) -> SnapshotRequest:
        """The supervisor is about to leave: return what the snapshot is to say that keeps the VM.

        Args:
            text: What it says anyway.
            patience: Seconds that a running cell has to end; after them it is frozen.
        """

    def snapshot_begins(self) -> Callable[[str, bool], None]:
        """Nothing is on its way to the guest, which is about to be saved.

        Returns:
            To be called with the snapshot's id, and whether it froze a running cell.
        """
