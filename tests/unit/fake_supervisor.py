"""A supervisor without VMs: the real HTTP API on the real socket; what it leases are guest agents on this host.

    python tests/unit/fake_supervisor.py        # folders from AGENTVM_*_DIR; prints "ready" once it accepts

It keeps one guest ready, so that a lease is granted at once, as the real one does. A process cannot be saved: a
snapshot is only noted, and what takes a guest's place after a rollback is a fresh one.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web
from local_guest import LocalGuest, local_guest

from agentvm_kernel.config import Paths
from agentvm_kernel.egress.record import Connection
from agentvm_kernel.observe.chain import Record
from agentvm_kernel.observe.events.snapshot import (
    SnapshotCreated,
    SnapshotRelabelled,
    SnapshotRestored,
    SnapshotsRemoved,
)
from agentvm_kernel.observe.events.vm import LeaseAcquired, LeaseReleased
from agentvm_kernel.observe.fields import Event
from agentvm_kernel.profiles import Limits
from agentvm_kernel.supervisor.audit_messages import AuditNews, AuditRecords
from agentvm_kernel.supervisor.fork_messages import ForkGranted, ForkRequest
from agentvm_kernel.supervisor.messages import Ended, Granted, LeaseRequest, LimitsRequest, Message, Progress
from agentvm_kernel.supervisor.network_messages import CellRequest, NetworkInfo, NetworkRequest, RuleInfo
from agentvm_kernel.supervisor.operator_messages import Held, Resumed, VMInfo, VMList
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
from agentvm_kernel.supervisor.stats_messages import VMStats
from agentvm_kernel.supervisor.status import LeaseInfo, Status
from agentvm_kernel.supervisor.workspace_messages import WorkspaceInfo


@dataclass
class FakeLease:
    """A lease: its present guest, and what was noted of its snapshots."""

    wanted: LeaseRequest
    guest: LocalGuest
    stack: AsyncExitStack
    current: str = ""
    limits: Limits = field(default_factory=Limits)
    is_travelling: bool = False
    held: Held = ""
    network: NetworkRequest = field(default_factory=NetworkRequest)
    taken: list[SnapshotInfo] = field(default_factory=list)
    forks: dict[int, tuple[LocalGuest, AsyncExitStack]] = field(default_factory=dict)

    def find(self, to: str) -> SnapshotInfo:
        for one in self.taken:
            if (to or self.current) in (one.id, one.label):
                return one
        raise web.HTTPConflict(text=f'{{"code": "snapshot", "message": "There is no snapshot {to}.", "hint": ""}}')


class FakeSupervisor:
    """Leases local guests.

    Args:
        paths: Where the socket is.
        progress: Progress events before each grant.
        refuse: End every lease with this instead.
    """

    def __init__(self, paths: Paths, *, progress: list[Progress] | None = None, refuse: Ended | None = None) -> None:
        self.paths = paths
        self.progress = progress or []
        self.refuse = refuse
        self.leases = 0
        self.vms = 0
        self.asked: list[str] = []
        self.lets_go_back = asyncio.Event()
        self.lets_go_back.set()
        self.made: list[Connection] = []
        self.recorded: list[Record] = []
        self._listeners: set[asyncio.Queue[AuditNews]] = set()
        self._leases: dict[str, FakeLease] = {}
        self._spare: asyncio.Task[tuple[LocalGuest, AsyncExitStack]] | None = None
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> FakeSupervisor:
        app = web.Application(middlewares=[self._note])
        lease = "/v1/leases/{lease}"
        app.add_routes(
            [
                web.get("/v1/status", self._status),
                web.get("/v1/vms", self._vms),
                web.post("/v1/vms/{vm}/resume", self._resume),
                web.get("/v1/stats", self._stats),
                web.get("/v1/events", self._events),
                web.post("/v1/leases", self._lease),
                web.get(f"{lease}/stats", self._stats),
                web.get(f"{lease}/connections", self._connections),
                web.get(f"{lease}/audit", self._audit),
                web.get(f"{lease}/limits", self._limits),
                web.put(f"{lease}/limits", self._limits),
                web.put(f"{lease}/cell", self._cell),
                web.get(f"{lease}/network", self._network),
                web.put(f"{lease}/network", self._network),
                web.get(f"{lease}/workspace", self._workspace),
                web.get(f"{lease}/snapshots", self._tree),
                web.post(f"{lease}/snapshots", self._snapshot),
                web.post(f"{lease}/snapshots/prune", self._prune),
                web.patch(f"{lease}/snapshots/{{snapshot}}", self._relabel),
                web.delete(f"{lease}/snapshots/{{snapshot}}", self._remove),
                web.post(f"{lease}/rollback/plan", self._plan),
                web.post(f"{lease}/rollback", self._rollback),
                web.post(f"{lease}/forks", self._forks),
                web.post(f"{lease}/forks/{{fork}}/rest", self._rest),
                web.post(f"{lease}/forks/{{fork}}/adopt", self._adopt),
            ]
        )
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)
        await self._runner.setup()
        self.paths.runtime.mkdir(parents=True, exist_ok=True, mode=0o700)
        await web.UnixSite(self._runner, str(self.paths.socket)).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner
        for site in list(self._runner.sites):
            await site.stop()
        await _accepted()  # or the runner would forget those
        await self._runner.cleanup()
        if self._spare:
            _, stack = await self._spare
            await stack.aclose()

    @web.middleware
    async def _note(self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]):  # type: ignore[no-untyped-def]
        self.asked.append(f"{request.method} {request.path}")
        return await handler(request)

    def happens(self, event: Event, missed: int = 0) -> None:
        """Tell who listens to the audit log."""
        for listener in self._listeners:
            listener.put_nowait(AuditNews(time=time.time(), event=event, missed=missed))

    def falls_silent(self) -> None:
        """Tell nobody any more what happens."""
        self._listeners = _Nobody()

    def _about(self, name: str) -> dict[str, str]:
        return {"lease": name, "vm": f"local-{self._leases[name].guest.epoch}"}

    async def _vms(self, _: web.Request) -> web.Response:
        vms = [
            VMInfo(
                id=f"local-{one.guest.epoch}", state="leased", lease=name, owner=one.wanted.owner,
                notebook=one.wanted.notebook, vcpus=1, memory_mib=512, pid=one.guest.pid, age=12.5,
                travelling=one.is_travelling, held=one.held, snapshot=one.current,
            )
            for name, one in self._leases.items()
        ]  # fmt: skip
        return _answer(VMList(vms=tuple(vms)))

    async def _resume(self, request: web.Request) -> web.Response:
        (one,) = (one for one in self._leases.values() if f"local-{one.guest.epoch}" == request.match_info["vm"])
        held, one.held = one.held, ""
        return _answer(Resumed(was_paused=held == "paused", was_slowed=held == "slowed"))

    async def _stats(self, request: web.Request) -> web.StreamResponse:
        """Measure each lease's guest, thirty times a second where that is followed."""
        response = await _open(request)
        while True:
            for name, one in self._leases.items():
                if request.match_info.get("lease", name) == name:
                    await _say(response, _measured(name, one))
            if request.query.get("follow") != "1":
                return response
            await asyncio.sleep(0.033)

    async def _events(self, request: web.Request) -> web.StreamResponse:
        response = await _open(request)
        news: asyncio.Queue[AuditNews] = asyncio.Queue()
        self._listeners.add(news)
        try:
            while True:
                await _say(response, await news.get())
        finally:
            self._listeners.discard(news)

    async def _connections(self, request: web.Request) -> web.StreamResponse:
        response = await _open(request)
        for one in self.made:
            await response.write(one.model_dump_json().encode() + b"\n")
        return response

    async def _audit(self, request: web.Request) -> web.Response:
        names = request.query.get("events", "").split(",")
        records = [one for one in self.recorded if names == [""] or one.event.event in names]
        return _answer(AuditRecords(records=tuple(records[-int(request.query["last"]) :])))

    async def _status(self, _: web.Request) -> web.Response:
        """Tell of leases what was granted, as the real one does: what has changed since is told elsewhere."""
        granted = {name: self._granted(name, one.guest) for name, one in self._leases.items()}
        leases = [
            LeaseInfo.of(
                one.model_copy(update={"limits": Limits(), "snapshot": ""}),
                self._leases[name].wanted,
                network="; ".join(("filtered", *self._leases[name].network.allow)),
                hypervisor="QEMU",
            )
            for name, one in granted.items()
        ]
        return _answer(
            Status(version="fake", pid=os.getpid(), uptime=1.0, libvirt="", accelerator="tcg", leases=tuple(leases))
        )

    async def _lease(self, request: web.Request) -> web.StreamResponse:
        wanted = LeaseRequest.model_validate_json(await request.read())
        response = web.StreamResponse()
        response.content_type = "application/x-ndjson"
        response.enable_chunked_encoding()
        await response.prepare(request)
        self.leases += 1
        number = self.leases
        for step in self.progress:
            await _say(response, step)
        if self.refuse:
            await _say(response, self.refuse)
            return response
        guest, stack = await self._fresh()
        name, lease = f"lease-{number}", FakeLease(wanted, guest, stack)
        self._leases[name] = lease
        self.happens(LeaseAcquired(owner=wanted.owner, **self._about(name)))
        try:
            await _say(response, self._granted(name, lease.guest))
            gone = None
            while gone is not lease.guest:
                gone = lease.guest
                await _ended(gone.pid)
            await _say(response, Ended(code="vm_ended", reason="The virtual machine powered off."))
        finally:
            self.happens(LeaseReleased(owner=wanted.owner, **self._about(name)))
            del self._leases[name]
            for _, fork in lease.forks.values():
                await fork.aclose()
            await lease.stack.aclose()
        return response

    async def _limits(self, request: web.Request) -> web.Response:
        lease = self._leases[request.match_info["lease"]]
        if request.method == "PUT":
            changes = LimitsRequest.model_validate_json(await request.read()).changes
            lease.limits = Limits.model_validate(lease.limits.model_dump() | changes)
        return web.Response(text=lease.limits.model_dump_json(), content_type="application/json")

    async def _cell(self, request: web.Request) -> web.Response:
        told = CellRequest.model_validate_json(await request.read())
        self._leases[request.match_info["lease"]].is_travelling = told.travelling
        return web.Response(text="{}", content_type="application/json")

    async def _network(self, request: web.Request) -> web.Response:
        lease = self._leases[request.match_info["lease"]]
        if request.method == "PUT":
            lease.network = NetworkRequest.model_validate_json(await request.read())
        rules = [RuleInfo(pattern=host, verdict="allow", source="session") for host in lease.network.allow]
        rules += [RuleInfo(pattern=host, verdict="deny", source="session") for host in lease.network.deny]
        mode = lease.network.mode or "filtered"
        return _answer(NetworkInfo(mode=mode, connected=True, rules=tuple(rules), max_connections=1))

    async def _workspace(self, _request: web.Request) -> web.Response:
        return _answer(WorkspaceInfo())

    async def _tree(self, request: web.Request) -> web.Response:
        lease = self._leases[request.match_info["lease"]]
        tree = SnapshotTree(
            notebook="fake", current=lease.current, snapshots=tuple(lease.taken), quota=1 << 30, used=0,
            vm=f"local-{lease.guest.epoch}",
        )  # fmt: skip
        return _answer(tree)

    async def _snapshot(self, request: web.Request) -> web.Response:
        lease = self._leases[request.match_info["lease"]]
        wanted = SnapshotRequest.model_validate_json(await request.read())
        asked = wanted.model_dump(include={"label", "text", "kind", "cell", "busy"})
        info = SnapshotInfo.model_validate(
            {"id": secrets.token_hex(6), "parent": lease.current, "created": time.time(), "size": 1, "written": 1}
            | {"pause_ms": 1.0}
            | asked
        )
        lease.taken.append(info)
        lease.current = info.id
        self.happens(SnapshotCreated(snapshot=info.id, **self._about(request.match_info["lease"])))
        return _answer(info)

    async def _relabel(self, request: web.Request) -> web.Response:
        name, wanted = request.match_info["lease"], LabelRequest.model_validate_json(await request.read())
        lease = self._leases[name]
        info = lease.find(request.match_info["snapshot"]).model_copy(update={"label": wanted.label})
        lease.taken = [info if one.id == info.id else one for one in lease.taken]
        self.happens(SnapshotRelabelled(snapshot=info.id, **self._about(name)))
        return _answer(info)

    async def _remove(self, request: web.Request) -> web.Response:
        lease = self._leases[request.match_info["lease"]]
        return self._removed(request, [lease.find(request.match_info["snapshot"])])

    async def _prune(self, request: web.Request) -> web.Response:
        lease = self._leases[request.match_info["lease"]]
        keep = PruneRequest.model_validate_json(await request.read()).keep
        found = [one for one in lease.taken if not one.label and one.id != lease.current]
        return self._removed(request, found[: max(0, len(found) - keep)])

    def _removed(self, request: web.Request, found: list[SnapshotInfo]) -> web.Response:
        name, ids = request.match_info["lease"], tuple(one.id for one in found)
        lease = self._leases[name]
        lease.taken = [one for one in lease.taken if one.id not in ids]
        self.happens(SnapshotsRemoved(snapshots=ids, count=len(ids), **self._about(name)))
        return _answer(Removed(removed=ids, freed=len(ids)))

    async def _plan(self, request: web.Request) -> web.Response:
        lease = self._leases[request.match_info["lease"]]
        wanted = RollbackRequest.model_validate_json(await request.read())
        return _answer(RollbackPlan(target=lease.find(wanted.to), left=(), seconds=1.0, written=1))

    async def _rollback(self, request: web.Request) -> web.Response:
        name = request.match_info["lease"]
        wanted = RollbackRequest.model_validate_json(await request.read())
        await self.lets_go_back.wait()
        target = self._leases[name].find(wanted.to)
        return await self._replace(name, target, await self._fresh())

    async def _replace(self, name: str, target: SnapshotInfo, new: tuple[LocalGuest, AsyncExitStack]) -> web.Response:
        lease = self._leases[name]
        old = lease.stack
        lease.guest, lease.stack = new
        lease.current = target.id
        await old.aclose()
        self.happens(SnapshotRestored(snapshot=target.id, **self._about(name)))
        return _answer(Replaced(granted=self._granted(name, lease.guest), snapshot=target, seconds=0.1))

    async def _forks(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["lease"]
        lease = self._leases[name]
        wanted = ForkRequest.model_validate_json(await request.read())
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        await _say(response, Progress(stage="saving the virtual machine"))
        for number in range(1, wanted.count + 1):
            lease.forks[number] = await self._fresh(fork=number)
            granted = self._granted(name, lease.forks[number][0])
            await _say(response, ForkGranted(fork=number, granted=granted))
        return response

    async def _rest(self, _: web.Request) -> web.Response:
        return web.json_response({})

    async def _adopt(self, request: web.Request) -> web.Response:
        name = request.match_info["lease"]
        lease = self._leases[name]
        point = SnapshotInfo.model_validate(
            {"id": "f" * 12, "parent": lease.current, "label": "", "text": "", "kind": "fork", "created": time.time()}
            | {"size": 1, "written": 1, "cell": {}, "busy": False, "pause_ms": 1.0}
        )
        return await self._replace(name, point, lease.forks.pop(int(request.match_info["fork"])))

    async def _fresh(self, fork: int = 0) -> tuple[LocalGuest, AsyncExitStack]:
        guest, stack = await self._take()
        self.vms += 1
        await guest.identify(self.vms, fork=fork)
        return guest, stack

    def _granted(self, name: str, guest: LocalGuest) -> Granted:
        lease = self._leases[name]
        return Granted(
            lease=name,
            snapshot=lease.current,
            vm=f"local-{guest.epoch}",
            epoch=guest.epoch,
            key=guest.key.hex(),
            link=guest.endpoint,
            image="0" * 64,
            flavour=lease.wanted.image or "minimal",
            profile=lease.wanted.profile or "standard",
            vcpus=1,
            memory_mib=512,
            disk_gb=4,
            accelerator="tcg",
            pid=guest.pid,
            acquire_ms=1.0,
            limits=lease.limits,
        )

    async def _take(self) -> tuple[LocalGuest, AsyncExitStack]:
        spare, self._spare = self._spare or asyncio.create_task(_start()), asyncio.create_task(_start())
        return await asyncio.shield(spare)


async def _start() -> tuple[LocalGuest, AsyncExitStack]:
    stack = AsyncExitStack()
    return await stack.enter_async_context(local_guest(identify=False)), stack


async def _accepted() -> None:
    """Wait until connections that the loop has taken off their listening sockets are known to their server."""
    loop = asyncio.get_running_loop()
    names = {task: getattr(task.get_coro(), "__name__", "") for task in asyncio.all_tasks(loop)}
    accepting = [task for task, name in names.items() if name == "_accept_connection2"]
    if accepting:
        await asyncio.wait(accepting)


def _answer(message: Message) -> web.Response:
    return web.Response(text=message.model_dump_json(), content_type="application/json")


class _Nobody(set[asyncio.Queue[AuditNews]]):
    """Stays empty."""

    def add(self, _: asyncio.Queue[AuditNews]) -> None:
        pass


async def _open(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    response.enable_chunked_encoding()
    await response.prepare(request)
    return response


def _measured(name: str, lease: FakeLease) -> VMStats:
    whole = set(VMStats.model_fields) - {"vm", "lease", "state", "time", "executing", "stale"}
    values = dict.fromkeys(whole, 7) | {"executing": False, "stale": False, "time": time.time()}
    return VMStats.model_validate({"vm": f"local-{lease.guest.epoch}", "lease": name, "state": "leased", **values})


async def _say(response: web.StreamResponse, event: Message) -> None:
    await response.write(event.model_dump_json().encode() + b"\n")


async def _ended(pid: int) -> None:
    """Return once a process is gone."""
    descriptor = os.pidfd_open(pid)
    gone = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, gone.set)
    try:
        await gone.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


async def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ready-fd", type=int, default=1)
    arguments = parser.parse_args()
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, over.set)
    async with FakeSupervisor(Paths.of_user()):
        os.write(arguments.ready_fd, b"1")
        with suppress(asyncio.CancelledError):
            await over.wait()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    asyncio.run(_main())
