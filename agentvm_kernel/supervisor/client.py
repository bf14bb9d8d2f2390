"""The typed client of the supervisor's API; starts the supervisor when nobody answers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Final, Self, TypeVar
from urllib.parse import quote

import aiohttp
from pydantic import BaseModel, ValidationError

from agentvm_kernel.config import Paths
from agentvm_kernel.errors import NoLeaseError, SupervisorError
from agentvm_kernel.profiles import Limits
from agentvm_kernel.supervisor.answers import AuditEvents, Connections, Forks, Lease, Stats, read_body, read_refusal
from agentvm_kernel.supervisor.audit_messages import AuditRecords
from agentvm_kernel.supervisor.fork_messages import ForkRequest
from agentvm_kernel.supervisor.launch import start_supervisor
from agentvm_kernel.supervisor.messages import LeaseRequest, LimitsRequest, Message
from agentvm_kernel.supervisor.network_messages import CassetteRequest, CellRequest, NetworkInfo, NetworkRequest
from agentvm_kernel.supervisor.operator_messages import DiskCopied, DiskRequest, PoolInfo, Resumed, VMList
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
from agentvm_kernel.supervisor.stats_messages import Moved
from agentvm_kernel.supervisor.status import Reloaded, Status
from agentvm_kernel.supervisor.workspace_messages import WorkspaceInfo, WorkspaceRequest
from agentvm_kernel.validation import checked

__all__ = ["AuditEvents", "Connections", "Forks", "Lease", "Stats", "SupervisorClient"]

_BASE: Final = "http://supervisor"
_LEASES: Final = "/v1/leases/"
"""Of one lease: a supervisor that would have to be started first does not know it."""

_ANSWER_TIMEOUT: Final = 30.0
_WORK_TIMEOUT: Final = 600.0
"""For what may have to write gigabytes, wait for other such work, or start a QEMU on a busy host."""

_Answer = TypeVar("_Answer", bound=BaseModel)


class SupervisorClient:
    """Speaks to the user's supervisor over its Unix socket.

    Every method raises `ApiError`, with the supervisor's code, where the supervisor refuses or fails, and another
    `SupervisorError` where it cannot be reached, started or understood.

    Where a method does not say otherwise, ``lease`` is a lease's id, from its grant, ``fork`` the number of one of its
    forks, and ``request`` what is wanted, as its class says.

    Args:
        paths: Where the socket is.
        start: Whether to start a supervisor when none answers.
    """

    def __init__(self, paths: Paths, *, start: bool = True) -> None:
        self._paths = paths
        self._start = start
        self._http: aiohttp.ClientSession | None = None
        self._streams: set[aiohttp.ClientResponse] = set()

    async def __aenter__(self) -> Self:
        """Open the client; connects nowhere yet."""
        connector = aiohttp.UnixConnector(path=str(self._paths.socket))
        self._http = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close every connection; leases end with theirs, and who still reads a stream is told that it is over."""
        # aiohttp lets go of a body when it closes the connection below it, and who waits for more would wait for ever.
        for response in list(self._streams):
            _hang_up(response)
        if self._http is not None:
            await self._http.close()

    async def status(self) -> Status:
        """Return what the supervisor tells about itself and its leases."""
        return await self._ask(Status, "GET", "/v1/status")

    async def shutdown(self) -> None:
        """Ask the supervisor to leave; it ends its VMs, or lets them be kept, as configured."""
        (await self._request("POST", "/v1/shutdown")).release()

    async def reload(self) -> Reloaded:
        """Let the supervisor read the configuration again."""
        return await self._ask(Reloaded, "POST", "/v1/reload")

    async def vms(self) -> VMList:
        """Return all VMs, with what they use."""
        return await self._ask(VMList, "GET", "/v1/vms")

    async def kill(self, vm: str) -> None:
        """End a VM; its session is told.

        Args:
            vm: Its id.
        """
        await read_body(await self._request("DELETE", f"/v1/vms/{quote(vm, safe='')}", patient=True))

    async def resume(self, vm: str) -> Resumed:
        """Let a VM run on that was slowed down or stopped because of an anomaly.

        Args:
            vm: Its id.
        """
        return await self._ask(Resumed, "POST", f"/v1/vms/{quote(vm, safe='')}/resume")

    async def copy_disk(self, vm: str, request: DiskRequest) -> DiskCopied:
        """Copy the disk of a session's VM into a file.

        Args:
            vm: Its id.
            request: Which file.
        """
        return await self._ask(DiskCopied, "POST", f"/v1/vms/{quote(vm, safe='')}/disk", request, patient=True)

    async def pool(self) -> PoolInfo:
        """Return what is kept ready, and who waits."""
        return await self._ask(PoolInfo, "GET", "/v1/pool")

    async def drain(self) -> None:
        """End what is kept ready, and keep nothing ready until `fill`."""
        await read_body(await self._request("POST", "/v1/pool/drain", patient=True))

    async def fill(self) -> None:
        """Keep VMs ready again."""
        await read_body(await self._request("POST", "/v1/pool/fill"))

    @asynccontextmanager
    async def lease(self, request: LeaseRequest) -> AsyncIterator[Lease]:
        """Ask for a VM and hold it within the context."""
        async with self._stream("POST", "/v1/leases", request) as response:
            yield Lease(response)

    async def snapshots(self, lease: str) -> SnapshotTree:
        """Return the snapshots of a lease's notebook."""
        return await self._ask(SnapshotTree, "GET", f"{_path(lease)}/snapshots")

    async def snapshot(self, lease: str, request: SnapshotRequest) -> SnapshotInfo:
        """Snapshot a lease's VM."""
        return await self._ask(SnapshotInfo, "POST", f"{_path(lease)}/snapshots", request, patient=True)

    async def relabel(self, lease: str, snapshot: str, label: str, text: str | None = None) -> SnapshotInfo:
        """Give a snapshot another label.

        Args:
            lease: The lease's id.
            snapshot: The snapshot's id.
            label: Its label from now on; empty for none.
            text: What the user says of it; ``None`` leaves that.
        """
        request = checked(LabelRequest, label=label, text=text)
        return await self._ask(SnapshotInfo, "PATCH", _snapshot_path(lease, snapshot), request)

    async def remove(self, lease: str, snapshot: str) -> Removed:
        """Remove a snapshot; what descends from it stays as it is.

        Args:
            lease: The lease's id.
            snapshot: The snapshot's id.
        """
        return await self._ask(Removed, "DELETE", _snapshot_path(lease, snapshot), patient=True)

    async def prune(self, lease: str, keep: int) -> Removed:
        """Remove the notebook's oldest snapshots that have no label and are not in use.

        Args:
            lease: The lease's id.
            keep: How many of the newest without a label stay.
        """
        request = checked(PruneRequest, keep=keep)
        return await self._ask(Removed, "POST", f"{_path(lease)}/snapshots/prune", request, patient=True)

    async def plan_rollback(self, lease: str, to: str) -> RollbackPlan:
        """Return what a rollback would do.

        Args:
            lease: The lease's id.
            to: Where to; see `RollbackRequest`.
        """
        request = checked(RollbackRequest, to=to)
        return await self._ask(RollbackPlan, "POST", f"{_path(lease)}/rollback/plan", request)

    async def rollback(self, lease: str, to: str) -> Replaced:
        """Go back: the lease gets a VM that is a clone of the snapshot, and its present VM ends.

        Args:
            lease: The lease's id.
            to: Where to; see `RollbackRequest`.
        """
        request = checked(RollbackRequest, to=to)
        return await self._ask(Replaced, "POST", f"{_path(lease)}/rollback", request, patient=True)

    @asynccontextmanager
    async def forks(self, lease: str, request: ForkRequest) -> AsyncIterator[Forks]:
        """Fork a lease's VM; on leaving the context all forks end that do not rest."""
        async with self._stream("POST", f"{_path(lease)}/forks", request, patient=True) as response:
            yield Forks(response)

    @asynccontextmanager
    async def clone(self, lease: str, snapshot: str) -> AsyncIterator[Forks]:
        """Clone a snapshot to look into it; the clone has no network, and ends when the context is left.

        Args:
            lease: The lease's id.
            snapshot: The snapshot's id.
        """
        async with self._stream("POST", f"{_snapshot_path(lease, snapshot)}/clone", patient=True) as response:
            yield Forks(response)

    async def rest_fork(self, lease: str, fork: int) -> None:
        """Pause a fork whose work is done; it is kept, to be adopted, until the next forks or the lease's end."""
        await read_body(await self._request("POST", f"{_path(lease)}/forks/{fork}/rest", patient=True))

    async def end_fork(self, lease: str, fork: int) -> None:
        """End a fork."""
        await read_body(await self._request("DELETE", f"{_path(lease)}/forks/{fork}", patient=True))

    async def adopt(self, lease: str, fork: int) -> Replaced:
        """Make a resting fork the lease's VM; the present VM and the other forks end."""
        return await self._ask(Replaced, "POST", f"{_path(lease)}/forks/{fork}/adopt", patient=True)

    async def limits(self, lease: str) -> Limits:
        """Return what holds for what runs in a lease's VM."""
        return await self._ask(Limits, "GET", f"{_path(lease)}/limits")

    async def set_limits(self, lease: str, request: LimitsRequest) -> Limits:
        """Change limits of a lease's VM, and return all that hold then."""
        return await self._ask(Limits, "PUT", f"{_path(lease)}/limits", request)

    async def network(self, lease: str) -> NetworkInfo:
        """Return what a lease's VM may reach, and what it has done."""
        return await self._ask(NetworkInfo, "GET", f"{_path(lease)}/network")

    async def set_network(self, lease: str, request: NetworkRequest) -> NetworkInfo:
        """Change a lease's own part of what its VM may reach, and return what holds then."""
        return await self._ask(NetworkInfo, "PUT", f"{_path(lease)}/network", request, patient=True)

    async def play_cassette(self, lease: str, request: CassetteRequest) -> NetworkInfo:
        """Record what inspected hosts say to a lease's VM, or replay it in their place."""
        return await self._ask(NetworkInfo, "PUT", f"{_path(lease)}/cassette", request)

    async def workspace(self, lease: str) -> WorkspaceInfo:
        """Return which folder of the host a lease's VM shares."""
        return await self._ask(WorkspaceInfo, "GET", f"{_path(lease)}/workspace")

    async def set_workspace(self, lease: str, request: WorkspaceRequest) -> WorkspaceInfo:
        """Let a lease's VM share a folder of the host, or none."""
        return await self._ask(WorkspaceInfo, "PUT", f"{_path(lease)}/workspace", request, patient=True)

    async def set_cell(self, lease: str, request: CellRequest) -> None:
        """Tell which cell runs in a lease's VM."""
        await read_body(await self._request("PUT", f"{_path(lease)}/cell", request))

    async def audit(self, lease: str, last: int = 20) -> AuditRecords:
        """Return what the audit log says of a lease's notebook.

        Args:
            lease: The lease's id.
            last: How many of the newest records, 1 to 999.
        """
        return await self._ask(AuditRecords, "GET", f"{_path(lease)}/audit?last={last}")

    @asynccontextmanager
    async def events(self, lease: str = "") -> AsyncIterator[AuditEvents]:
        """Tell what goes into the audit log from now on, until the context is left.

        Args:
            lease: The lease's id: only what is recorded about it, until it is over; empty for everything.
        """
        async with self._stream("GET", f"{_path(lease) if lease else '/v1'}/events") as response:
            yield AuditEvents(response)

    async def moved(self, lease: str, since: float) -> Moved:
        """Return what a lease's VM has moved, as far as its tally does not tell it.

        Args:
            lease: The lease's id.
            since: When hosts are told of that it has spoken with, seconds on the monotonic clock.
        """
        return await self._ask(Moved, "GET", f"{_path(lease)}/moved?since={since:.6f}")

    @asynccontextmanager
    async def connections(self, lease: str = "", *, follow: bool = False) -> AsyncIterator[Connections]:
        """Tell of connections, the newest that are known and then, if wanted, those that come.

        Args:
            lease: The lease's id; empty for all leases.
            follow: Go on until the context is left.
        """
        path = f"{_path(lease)}/connections" if lease else "/v1/connections"
        async with self._stream("GET", f"{path}?follow={int(follow)}") as response:
            yield Connections(response)

    @asynccontextmanager
    async def stats(self, lease: str = "", *, follow: bool = False) -> AsyncIterator[Stats]:
        """Tell what a lease's VMs have used of late, or what all use now, and then, if wanted, what they go on to use.

        Args:
            lease: The lease's id; empty for all VMs.
            follow: Go on until the context is left, or the lease ends.
        """
        path = f"{_path(lease)}/stats" if lease else "/v1/stats"
        async with self._stream("GET", f"{path}?follow={int(follow)}") as response:
            yield Stats(response)

    async def metrics(self) -> str:
        """Return the metrics as Prometheus reads them."""
        return (await read_body(await self._request("GET", "/metrics"))).decode()

    async def _ask(
        self,
        answer: type[_Answer],
        method: str,
        path: str,
        message: Message | None = None,
        *,
        patient: bool = False,
    ) -> _Answer:
        body = await read_body(await self._request(method, path, message, patient=patient))
        try:
            return answer.model_validate_json(body)
        except ValidationError as error:
            raise SupervisorError(f"The supervisor's answer is no {answer.__name__}: {error}") from error

    @asynccontextmanager
    async def _stream(
        self, method: str, path: str, message: Message | None = None, *, patient: bool = False
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request whose answer stays open; it is hung up on leaving the context, or with the client."""
        response = await self._request(method, path, message, patient=patient)
        self._streams.add(response)
        try:
            yield response
        finally:
            self._streams.discard(response)
            _hang_up(response)

    async def _request(
        self, method: str, path: str, message: Message | None = None, *, patient: bool = False
    ) -> aiohttp.ClientResponse:
        """Send a request, starting the supervisor once if nobody listens."""
        body = None if message is None else message.model_dump_json()
        timeout = _WORK_TIMEOUT if patient else _ANSWER_TIMEOUT
        try:
            response = await self._send(method, path, body, timeout)
        except aiohttp.ClientConnectorError as error:
            if path.startswith(_LEASES):
                raise NoLeaseError(
                    "The supervisor that kept the VM is gone, and so is the VM.",
                    "Lease another, or restart the kernel.",
                ) from error
            if not self._start:
                raise SupervisorError(
                    "The supervisor is not running.", f"Nobody answers on {self._paths.socket}."
                ) from error
            await start_supervisor(self._paths)
            response = await self._send_again(method, path, body, timeout)
        if response.status >= 400:
            raise await read_refusal(response)
        return response

    async def _send_again(self, method: str, path: str, body: str | None, timeout: float) -> aiohttp.ClientResponse:
        try:
            return await self._send(method, path, body, timeout)
        except aiohttp.ClientConnectorError as error:
            raise SupervisorError(
                "The supervisor was started but does not answer.", f"Its log is {self._paths.log}."
            ) from error

    async def _send(self, method: str, path: str, body: str | None, timeout: float) -> aiohttp.ClientResponse:
        if self._http is None or self._http.closed:
            raise SupervisorError("The supervisor's client is not open.")
        headers = {"Content-Type": "application/json"}
        try:
            async with asyncio.timeout(timeout):
                return await self._http.request(method, _BASE + path, data=body, headers=headers)
        except aiohttp.ClientConnectorError:
            raise
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            raise SupervisorError(
                "The supervisor went away while it was asked.", "Try again: the next start brings a new one."
            ) from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise SupervisorError(
                f"The supervisor does not answer: {error or type(error).__name__}.", f"Its log is {self._paths.log}."
            ) from error


def _hang_up(response: aiohttp.ClientResponse) -> None:
    """Close a connection, also if a process that was forked meanwhile still has it."""
    transport = response.connection.transport if response.connection else None
    if transport is not None:
        with suppress(OSError):  # the other end was faster
            transport.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
    response.close()


def _path(lease: str) -> str:
    return f"{_LEASES}{quote(lease, safe='')}"


def _snapshot_path(lease: str, snapshot: str) -> str:
    return f"{_path(lease)}/snapshots/{quote(snapshot, safe='')}"
