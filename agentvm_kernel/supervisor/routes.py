"""All that the supervisor can be asked for: one table, from which both the server and its description are made."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any, Final

from agentvm_kernel.egress.names import NameRefusedError
from agentvm_kernel.errors import (
    AgentVMError,
    CassetteError,
    ConfigError,
    DiskFullError,
    HostError,
    LabelTakenError,
    LimitError,
    NoForkError,
    NoLeaseError,
    NoSnapshotError,
    QuotaError,
    RequestError,
    SnapshotError,
    VMEndedError,
    host_error,
)
from agentvm_kernel.observe.events.vm import LeaseReleased
from agentvm_kernel.profiles import Limits
from agentvm_kernel.supervisor import openapi
from agentvm_kernel.supervisor.audit_messages import AuditNews, AuditRecords, news_adapter
from agentvm_kernel.supervisor.clones import lend
from agentvm_kernel.supervisor.emit import Emit
from agentvm_kernel.supervisor.fork_messages import ForkRequest, fork_event_adapter
from agentvm_kernel.supervisor.forks import Forks, rest
from agentvm_kernel.supervisor.lease import Lease, StoppedError
from agentvm_kernel.supervisor.lease_network import NetworkLockedError, NoNetworkError
from agentvm_kernel.supervisor.messages import Ended, LeaseRequest, LimitsRequest, lease_event_adapter
from agentvm_kernel.supervisor.network_messages import (
    CassetteRequest,
    CellRequest,
    NetworkInfo,
    NetworkRequest,
    connection_adapter,
)
from agentvm_kernel.supervisor.operator import NoVMError
from agentvm_kernel.supervisor.operator_messages import DiskCopied, DiskRequest, PoolInfo, Resumed, VMList
from agentvm_kernel.supervisor.route import QUERY, Call, Route
from agentvm_kernel.supervisor.snapshot_messages import (
    LabelRequest,
    PruneRequest,
    Removed,
    Replaced,
    RollbackPlan,
    RollbackRequest,
    SnapshotInfo,
    SnapshotRequest,
    SnapshotTree,
)
from agentvm_kernel.supervisor.stats_messages import Moved, stats_adapter
from agentvm_kernel.supervisor.status import Reloaded, Status
from agentvm_kernel.supervisor.workspace_messages import WorkspaceInfo, WorkspaceRequest
from agentvm_kernel.vm.sharing import ShareError

_log = logging.getLogger(__name__)

_OF_A_LEASE: Final = (NoLeaseError, VMEndedError)
_OF_THE_NETWORK: Final = (NameRefusedError, NetworkLockedError)
_OF_THE_STORE: Final = (SnapshotError, QuotaError, DiskFullError)


async def get_document(call: Call) -> dict[str, Any]:
    """Describe this API (OpenAPI 3.1)."""
    return openapi.describe(ROUTES)


async def get_status(call: Call) -> Status:
    """Tell of the supervisor: version, accelerator, what is leased and what is ready."""
    return call.supervisor.status()


async def shut_down(call: Call) -> None:
    """End the VMs, or keep them as configured, and leave."""
    call.stop.set()


async def reload(call: Call) -> Reloaded:
    """Read the configuration again; if it is not valid, the old one stays in force."""
    return Reloaded(changed=tuple(call.operator.reload()))


async def list_vms(call: Call) -> VMList:
    """List all VMs, with what they use."""
    return await call.operator.vms()


async def kill_vm(call: Call) -> None:
    """End a VM; its session is told."""
    await call.operator.kill(call.parameters["vm"])


async def resume_vm(call: Call) -> Resumed:
    """Let a VM run on that was slowed down or stopped because of an anomaly."""
    return await asyncio.shield(call.operator.resume(call.parameters["vm"]))


async def copy_disk(call: Call, wanted: DiskRequest) -> DiskCopied:
    """Copy the disk of a session's VM into a file, with its file systems frozen for a moment."""
    # A client that goes away must not stop it half-way.
    return await asyncio.shield(call.operator.copy_disk(call.parameters["vm"], wanted))


async def get_pool(call: Call) -> PoolInfo:
    """Tell what is kept ready, and who waits."""
    return call.operator.pool_info()


async def drain_pool(call: Call) -> None:
    """End what is kept ready, and keep nothing ready until it is filled."""
    await call.operator.drain()


async def fill_pool(call: Call) -> None:
    """Keep VMs ready again."""
    call.operator.fill()


async def lease_vm(call: Call, wanted: LeaseRequest, emit: Emit) -> None:
    """Lease a VM: progress, its grant, at last its end; to close the connection gives it back."""
    lease: Lease | None = None
    try:
        lease = await call.supervisor.acquire(wanted, emit)
        emit(lease.granted)
        emit(await lease.ended())
    except (AgentVMError, OSError) as failure:
        error = host_error(failure) if isinstance(failure, OSError) else failure
        _log.warning("no VM for %r: %s", wanted.owner, error)
        emit(Ended(code=error.code, reason=error.message, hint=error.hint))
    finally:
        if lease is not None:
            await asyncio.shield(call.supervisor.release(lease))


async def get_limits(call: Call) -> Limits:
    """Tell what holds for what runs in a lease's VM."""
    return call.lease.limits


async def set_limits(call: Call, wanted: LimitsRequest) -> Limits:
    """Change limits of a lease's VM."""
    return await call.supervisor.set_limits(call.lease, wanted)


async def get_network(call: Call) -> NetworkInfo:
    """Tell what a lease's VM may reach, and what it has done."""
    return call.supervisor.networks.info(call.lease)


async def set_network(call: Call, wanted: NetworkRequest) -> NetworkInfo:
    """Change a lease's own part of what its VM may reach; no connection is cut but by turning the network off."""
    return await call.supervisor.networks.change(call.lease, wanted)


async def play_cassette(call: Call, wanted: CassetteRequest) -> NetworkInfo:
    """Record what inspected hosts say to a lease's VM, or replay it in their place."""
    return await call.supervisor.networks.play(call.lease, wanted)


async def set_cell(call: Call, wanted: CellRequest) -> None:
    """Tell which cell runs in a lease's VM and what only it may reach, and how others have ended."""
    lease = call.lease
    lease.executions.take(wanted)
    lease.network.set_cell(wanted)
    lease.output = wanted.output
    lease.is_travelling = wanted.travelling


async def get_workspace(call: Call) -> WorkspaceInfo:
    """Tell which folder of the host a lease's VM shares."""
    return call.supervisor.workspaces.info(call.lease)


async def set_workspace(call: Call, wanted: WorkspaceRequest) -> WorkspaceInfo:
    """Let a lease's VM share a folder of the host, or none."""
    # A client that goes away must not stop it half-way.
    return await asyncio.shield(call.supervisor.workspaces.change(call.lease, wanted))


async def list_audit(call: Call) -> AuditRecords:
    """List the newest records of the audit log about a lease's notebook, of this session and of earlier ones."""
    last, names = call.query.get("last", "20"), call.query.get("events", "")
    if not re.fullmatch(QUERY["last"][0], last):
        raise RequestError(f"last is {last!a:.40}; valid is a number from 1 to 999.")
    if names and not re.fullmatch(QUERY["events"][0], names):
        raise RequestError(f"events is {names!a:.40}; valid are up to ten names, with commas between them.")
    events = frozenset(names.split(",") if names else ())
    audit, notebook = call.supervisor.audit, call.lease.terms.session
    return AuditRecords(records=tuple(await asyncio.to_thread(audit.newest, notebook, int(last), events)))


async def follow_events(call: Call, emit: Emit) -> None:
    """Tell what is recorded about a lease from now on, a line each, until it is over."""
    await _follow(call, emit, call.lease.terms.id)


async def follow_all_events(call: Call, emit: Emit) -> None:
    """Tell what goes into the audit log from now on, a line each, until the supervisor leaves."""
    await _follow(call, emit, "")


async def _follow(call: Call, emit: Emit, lease: str) -> None:
    with call.supervisor.audit.listen(lease) as listener:
        async for time, event, missed in listener:
            emit(AuditNews.model_construct(time=time, event=event, missed=missed))
            if isinstance(event, LeaseReleased) and event.lease == lease:
                return
            await emit.sent()


async def list_connections(call: Call, emit: Emit) -> None:
    """Tell of a lease's newest connections, a line each."""
    await call.supervisor.networks.tell(call.lease.terms.id, emit, follow=call.query.get("follow") == "1")


async def list_all_connections(call: Call, emit: Emit) -> None:
    """Tell of the newest connections of all leases, a line each."""
    await call.supervisor.networks.tell(None, emit, follow=call.query.get("follow") == "1")


async def get_moved(call: Call) -> Moved:
    """Tell what a lease's VM has moved: its disk up to now, the hosts that it has spoken with since some time."""
    since = call.query.get("since", "0")
    if not re.fullmatch(QUERY["since"][0], since):
        raise RequestError(f"since is {since!a:.40}; valid are seconds on the host's monotonic clock.")
    return await call.supervisor.stats.moved(call.lease, float(since))


async def list_stats(call: Call, emit: Emit) -> None:
    """Tell what a lease's VMs have used of late, a line for each moment."""
    await call.supervisor.stats.tell(call.lease.terms.id, emit, follow=call.query.get("follow") == "1")


async def list_all_stats(call: Call, emit: Emit) -> None:
    """Tell what all VMs use now, a line each."""
    await call.supervisor.stats.tell(None, emit, follow=call.query.get("follow") == "1")


async def list_snapshots(call: Call) -> SnapshotTree:
    """List the snapshots of a lease's notebook."""
    return await call.supervisor.history.tree(call.lease)


async def take_snapshot(call: Call, wanted: SnapshotRequest) -> SnapshotInfo:
    """Snapshot a lease's VM."""
    return await call.supervisor.history.snapshot(call.lease, wanted)


async def label_snapshot(call: Call, wanted: LabelRequest) -> SnapshotInfo:
    """Give a snapshot another label."""
    return await asyncio.shield(call.supervisor.history.relabel(call.lease, call.parameters["snapshot"], wanted))


async def remove_snapshot(call: Call) -> Removed:
    """Remove a snapshot; what descends from it stays as it is."""
    return await asyncio.shield(call.supervisor.history.remove(call.lease, call.parameters["snapshot"]))


async def prune_snapshots(call: Call, wanted: PruneRequest) -> Removed:
    """Remove the oldest of a notebook's snapshots that have no label and are not in use."""
    return await asyncio.shield(call.supervisor.history.prune(call.lease, wanted.keep))


async def plan_rollback(call: Call, wanted: RollbackRequest) -> RollbackPlan:
    """Tell what a rollback would do."""
    plan = await call.supervisor.history.plan(call.lease, wanted.to)
    return call.supervisor.networks.with_connections(call.lease, plan)


async def roll_back(call: Call, wanted: RollbackRequest) -> Replaced:
    """Give a lease a clone of an older snapshot in its VM's place."""
    # A client that goes away must not stop it half-way.
    return await asyncio.shield(call.supervisor.rollback(call.lease, wanted.to))


async def fork_vm(call: Call, wanted: ForkRequest, emit: Emit) -> None:
    """Clone a lease's VM: progress, each fork, its end; to close the connection ends those that do not rest."""
    await Forks(call.supervisor, call.lease, wanted, emit).serve()


async def lend_clone(call: Call, emit: Emit) -> None:
    """Clone a snapshot to look into it, without a network: the clone, its end; to close the connection ends it."""
    await lend(call.supervisor, call.lease, call.parameters["snapshot"], emit)


async def rest_fork(call: Call) -> None:
    """Pause a fork whose work is done, so that it can be adopted."""
    await rest(call.lease, call.fork)


async def end_fork(call: Call) -> None:
    """End a fork; nothing happens if it is gone already."""
    call.supervisor.end_fork(call.lease, call.fork)


async def adopt_fork(call: Call) -> Replaced:
    """Make a resting fork the lease's VM; the present VM and the other forks end."""
    return await asyncio.shield(call.supervisor.adopt(call.lease, call.fork))


_LEASE: Final = "/v1/leases/{lease}"
_SNAPSHOT: Final = "/v1/leases/{lease}/snapshots/{snapshot}"
_FORK: Final = "/v1/leases/{lease}/forks/{fork}"

ROUTES: Final = (
    Route("GET", "/v1/openapi.json", get_document),
    Route("GET", "/v1/status", get_status),
    Route("POST", "/v1/shutdown", shut_down),
    Route("POST", "/v1/reload", reload, (ConfigError,)),
    Route("GET", "/v1/vms", list_vms),
    Route("DELETE", "/v1/vms/{vm}", kill_vm, (NoVMError,)),
    Route("POST", "/v1/vms/{vm}/resume", resume_vm, (NoVMError, VMEndedError)),
    Route("POST", "/v1/vms/{vm}/disk", copy_disk, (NoVMError, RequestError, HostError, VMEndedError, StoppedError)),
    Route("GET", "/v1/pool", get_pool),
    Route("POST", "/v1/pool/drain", drain_pool),
    Route("POST", "/v1/pool/fill", fill_pool),
    Route("POST", "/v1/leases", lease_vm, events=lease_event_adapter),
    Route("GET", f"{_LEASE}/limits", get_limits, (NoLeaseError,)),
    Route("PUT", f"{_LEASE}/limits", set_limits, (*_OF_A_LEASE, LimitError, StoppedError)),
    Route("GET", f"{_LEASE}/network", get_network, (NoLeaseError,)),
    Route("PUT", f"{_LEASE}/network", set_network, (*_OF_A_LEASE, *_OF_THE_NETWORK, NoNetworkError)),
    Route("PUT", f"{_LEASE}/cassette", play_cassette, (NoLeaseError, CassetteError)),
    Route("GET", f"{_LEASE}/workspace", get_workspace, (NoLeaseError, ShareError)),
    Route("PUT", f"{_LEASE}/workspace", set_workspace, (*_OF_A_LEASE, ShareError, StoppedError)),
    Route("PUT", f"{_LEASE}/cell", set_cell, (NoLeaseError, *_OF_THE_NETWORK)),
    Route("GET", f"{_LEASE}/audit", list_audit, (NoLeaseError,), query=("last", "events")),
    Route("GET", f"{_LEASE}/events", follow_events, (NoLeaseError,), news_adapter),
    Route("GET", "/v1/events", follow_all_events, (), news_adapter),
    Route("GET", f"{_LEASE}/connections", list_connections, (NoLeaseError,), connection_adapter, ("follow",)),
    Route("GET", "/v1/connections", list_all_connections, (), connection_adapter, ("follow",)),
    Route("GET", f"{_LEASE}/moved", get_moved, (NoLeaseError,), query=("since",)),
    Route("GET", f"{_LEASE}/stats", list_stats, (NoLeaseError,), stats_adapter, ("follow",)),
    Route("GET", "/v1/stats", list_all_stats, (), stats_adapter, ("follow",)),
    Route("GET", f"{_LEASE}/snapshots", list_snapshots, (NoLeaseError,)),
    Route("POST", f"{_LEASE}/snapshots", take_snapshot, (*_OF_A_LEASE, *_OF_THE_STORE, LabelTakenError, StoppedError)),
    Route("PATCH", _SNAPSHOT, label_snapshot, (NoLeaseError, NoSnapshotError, *_OF_THE_STORE, LabelTakenError)),
    Route("DELETE", _SNAPSHOT, remove_snapshot, (NoLeaseError, NoSnapshotError, *_OF_THE_STORE)),
    Route("POST", f"{_LEASE}/snapshots/prune", prune_snapshots, (NoLeaseError, *_OF_THE_STORE)),
    Route("POST", f"{_SNAPSHOT}/clone", lend_clone, (NoLeaseError,), fork_event_adapter),
    Route("POST", f"{_LEASE}/rollback/plan", plan_rollback, (*_OF_A_LEASE, NoSnapshotError, SnapshotError)),
    Route("POST", f"{_LEASE}/rollback", roll_back, (*_OF_A_LEASE, NoSnapshotError, SnapshotError)),
    Route("POST", f"{_LEASE}/forks", fork_vm, _OF_A_LEASE, fork_event_adapter),
    Route("POST", f"{_FORK}/rest", rest_fork, (*_OF_A_LEASE, NoForkError)),
    Route("DELETE", _FORK, end_fork, (NoLeaseError,)),
    Route("POST", f"{_FORK}/adopt", adopt_fork, (*_OF_A_LEASE, NoForkError)),
)
