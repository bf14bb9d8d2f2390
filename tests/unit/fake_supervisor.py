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
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web
from local_guest import LocalGuest, local_guest

from agentvm_kernel.config import Paths
from agentvm_kernel.profiles import Limits
from agentvm_kernel.supervisor.messages import (
    Ended,
    ForkGranted,
    ForkRequest,
    Granted,
    LeaseRequest,
    LimitsRequest,
    Message,
    Progress,
    Replaced,
    RollbackPlan,
    RollbackRequest,
    SnapshotInfo,
    SnapshotRequest,
    SnapshotTree,
    VMInfo,
    VMList,
)
from agentvm_kernel.supervisor.network_messages import CellRequest, NetworkInfo, NetworkRequest, RuleInfo
from agentvm_kernel.supervisor.status import LeaseInfo, Status


@dataclass
class FakeLease:
    """A lease: its present guest, and what was noted of its snapshots."""

    wanted: LeaseRequest
    guest: LocalGuest
    stack: AsyncExitStack
    current: str = ""
    limits: Limits = field(default_factory=Limits)
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
        self._leases: dict[str, FakeLease] = {}
        self._spare: asyncio.Task[tuple[LocalGuest, AsyncExitStack]] | None = None
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> FakeSupervisor:
        app = web.Application()
        lease = "/v1/leases/{lease}"
        app.add_routes(
            [
                web.get("/v1/status", self._status),
                web.get("/v1/vms", self._list_vms),
                web.post("/v1/leases", self._lease),
                web.get(f"{lease}/limits", self._limits),
                web.put(f"{lease}/limits", self._limits),
                web.put(f"{lease}/cell", self._cell),
                web.get(f"{lease}/network", self._network),
                web.put(f"{lease}/network", self._network),
                web.get(f"{lease}/snapshots", self._tree),
                web.post(f"{lease}/snapshots", self._snapshot),
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

    async def _status(self, _: web.Request) -> web.Response:
        leases = [LeaseInfo.of(self._granted(name, one.guest), one.wanted) for name, one in self._leases.items()]
        return _answer(
            Status(version="fake", pid=os.getpid(), uptime=1.0, libvirt="", accelerator="tcg", leases=tuple(leases))
        )

    async def _list_vms(self, _: web.Request) -> web.Response:
        vms = [
            VMInfo(
                id=f"vm-of-{name}", state="leased", lease=name, owner=one.wanted.owner, notebook=one.wanted.notebook,
                vcpus=1, memory_mib=1, pid=one.guest.pid,
            )
            for name, one in self._leases.items()
        ]  # fmt: skip
        return _answer(VMList(vms=tuple(vms)))

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
        try:
            await _say(response, self._granted(name, lease.guest))
            gone = None
            while gone is not lease.guest:
                gone = lease.guest
                await _ended(gone.pid)
            await _say(response, Ended(code="vm_ended", reason="The virtual machine powered off."))
        finally:
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
        CellRequest.model_validate_json(await request.read())
        return web.Response(text="{}", content_type="application/json")

    async def _network(self, request: web.Request) -> web.Response:
        lease = self._leases[request.match_info["lease"]]
        if request.method == "PUT":
            lease.network = NetworkRequest.model_validate_json(await request.read())
        rules = [RuleInfo(pattern=host, verdict="allow", source="session") for host in lease.network.allow]
        rules += [RuleInfo(pattern=host, verdict="deny", source="session") for host in lease.network.deny]
        mode = lease.network.mode or "filtered"
        return _answer(NetworkInfo(mode=mode, connected=True, rules=tuple(rules), max_connections=1))

    async def _tree(self, request: web.Request) -> web.Response:
        lease = self._leases[request.match_info["lease"]]
        tree = SnapshotTree(notebook="fake", current=lease.current, snapshots=tuple(lease.taken), quota=1 << 30, used=0)
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
        return _answer(info)

    async def _plan(self, request: web.Request) -> web.Response:
        lease = self._leases[request.match_info["lease"]]
        wanted = RollbackRequest.model_validate_json(await request.read())
        return _answer(RollbackPlan(target=lease.find(wanted.to), left=(), seconds=1.0, written=1))

    async def _rollback(self, request: web.Request) -> web.Response:
        name = request.match_info["lease"]
        wanted = RollbackRequest.model_validate_json(await request.read())
        target = self._leases[name].find(wanted.to)
        return await self._replace(name, target, await self._fresh())

    async def _replace(self, name: str, target: SnapshotInfo, new: tuple[LocalGuest, AsyncExitStack]) -> web.Response:
        lease = self._leases[name]
        old = lease.stack
        lease.guest, lease.stack = new
        lease.current = target.id
        await old.aclose()
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
            lease.forks[number] = await self._fresh()
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

    async def _fresh(self) -> tuple[LocalGuest, AsyncExitStack]:
        guest, stack = await self._take()
        self.vms += 1
        await guest.identify(self.vms)
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
