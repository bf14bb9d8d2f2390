"""A router in this process: real zmq sockets and a real Jupyter client, a scripted supervisor, a scripted guest."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from jupyter_client.asynchronous import AsyncKernelClient
from jupyter_client.session import Session

from agentvm_kernel.egress.record import Connection
from agentvm_kernel.errors import AgentVMError, ApiError, LinkClosedError, LinkError
from agentvm_kernel.firewall.policy import Policy
from agentvm_kernel.kernel.guestside import GuestSide
from agentvm_kernel.kernel.machine import Machine
from agentvm_kernel.kernel.router import Router
from agentvm_kernel.kernel.sockets import Addresses, Heartbeat, Sockets
from agentvm_kernel.kernel.wire import Wire
from agentvm_kernel.link.endpoint import UnixEndpoint
from agentvm_kernel.magics import Registry
from agentvm_kernel.observe.chain import Record
from agentvm_kernel.profiles import Limits, changed
from agentvm_kernel.supervisor.audit_messages import AuditRecords
from agentvm_kernel.supervisor.fork_messages import ForkRequest
from agentvm_kernel.supervisor.messages import Granted, LeaseEvent, LeaseRequest, LimitsRequest
from agentvm_kernel.supervisor.network_messages import (
    CassetteRequest,
    CellRequest,
    NetworkInfo,
    NetworkRequest,
    RuleInfo,
)
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

TIMEOUT = 20.0

_Event = TypeVar("_Event")


def granted(number: int = 1, **changes: object) -> Granted:
    """A grant; its process is this one, so that there is something to measure."""
    values: dict[str, object] = {
        "vm": f"vm-{number}",
        "epoch": number,
        "key": "ab" * 32,
        "link": UnixEndpoint("/nowhere"),
        "image": "c0ffee" * 8,
        "flavour": "minimal",
        "profile": "test",
        "vcpus": 1,
        "memory_mib": 512,
        "disk_gb": 4,
        "accelerator": "tcg",
        "pid": os.getpid(),
        "acquire_ms": 12.3,
    }
    return Granted.model_validate(values | changes)


class ScriptedLease:
    """Gives out the events that a test puts in; an exception is raised."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[LeaseEvent | Exception | None] = asyncio.Queue()

    def __aiter__(self) -> ScriptedLease:
        return self

    async def __anext__(self) -> LeaseEvent:
        event = await self.events.get()
        if event is None:
            raise StopAsyncIteration
        if isinstance(event, Exception):
            raise event
        return event


async def _all(known: list[_Event], coming: asyncio.Queue[_Event | None] | None = None) -> AsyncIterator[_Event]:
    """What is known, and then, until None comes, what comes."""
    for one in known:
        yield one
    while coming is not None and (event := await coming.get()) is not None:
        yield event


class ScriptedSupervisor:
    """Leases what the test says; `grant` makes it grant a VM at once."""

    def __init__(self, *, grant: bool = True) -> None:
        self.grant = grant
        self.leases: list[ScriptedLease] = []
        self.requests: list[LeaseRequest] = []
        self.released = 0
        self.leased = asyncio.Event()
        self.vms = 0
        self.current = ""
        self.taken: list[SnapshotInfo] = []
        self.wanted: list[SnapshotRequest] = []
        self.asked: list[str] = []
        self.fails: AgentVMError | None = None
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.at_work = asyncio.Event()
        self.working = 0
        self.forking = False
        self.fork_events: asyncio.Queue[object] = asyncio.Queue()
        self.given = Limits()
        self.enforced_by = {"cpu": "the test"}
        self.network_wanted = NetworkRequest()
        self.shared = WorkspaceInfo()
        self.rules: list[RuleInfo] = []
        self.cells: list[CellRequest] = []
        self.told = asyncio.Event()
        self.resumed = Resumed(was_paused=False, was_slowed=False)
        self.connected: list[Connection] = []
        self.connecting: asyncio.Queue[Connection | None] = asyncio.Queue()
        self.measured: list[VMStats] = []
        self.measuring: asyncio.Queue[VMStats | None] = asyncio.Queue()
        self.followers = 0
        self.audited: list[Record] = []
        self.since: list[float] = []
        self.has_moved: Moved | None = None
        self.tally = ""

    async def __aenter__(self) -> ScriptedSupervisor:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    @asynccontextmanager
    async def lease(self, request: LeaseRequest) -> AsyncIterator[ScriptedLease]:
        lease = ScriptedLease()
        self.requests.append(request)
        self.leases.append(lease)
        self.leased.set()
        if self.grant:
            lease.events.put_nowait(self._granted())
        try:
            yield lease
        finally:
            self.released += 1

    def _granted(self) -> Granted:
        self.vms += 1
        return granted(self.vms, lease="lease-1", snapshot=self.current, limits=self.given, tally=self.tally)

    async def status(self) -> Status:
        return Status(version="", pid=1, uptime=1, libvirt="", accelerator="tcg", enforced_by=self.enforced_by)

    async def resume(self, vm: str) -> Resumed:
        self.asked.append(f"resume {vm}")
        return self.resumed

    async def set_limits(self, lease: str, request: LimitsRequest) -> Limits:
        self.asked.append(f"limits {request.changes}")
        if self.fails:
            raise self.fails
        return changed(self.given, request.changes)

    async def network(self, lease: str) -> NetworkInfo:
        own = self.network_wanted
        rules = [RuleInfo(pattern=host, verdict="allow", source="session") for host in own.allow]
        rules += [RuleInfo(pattern=host, verdict="deny", source="session") for host in own.deny]
        rules += self.rules
        return NetworkInfo(
            mode=own.mode or "filtered", connected=True, rules=tuple(rules), max_connections=9, allowed=2, refused=3,
            bytes_sent=2048, bytes_received=3 << 20,
        )  # fmt: skip

    async def set_network(self, lease: str, request: NetworkRequest) -> NetworkInfo:
        if self.fails:
            raise self.fails
        self.network_wanted = request
        return await self.network(lease)

    async def play_cassette(self, lease: str, request: CassetteRequest) -> NetworkInfo:
        self.asked.append(f"{request.action} {request.name}")
        return (await self.network(lease)).model_copy(update={"cassette": request.name})

    async def workspace(self, lease: str) -> WorkspaceInfo:
        return self.shared

    async def set_workspace(self, lease: str, request: WorkspaceRequest) -> WorkspaceInfo:
        if self.fails:
            raise self.fails
        self.asked.append(f"share {request.folder}{' rw' if request.writable else ''}")
        given = {"place": "/workspace/shared", "is_there": True, "owner": 1000} if request.folder else {}
        self.shared = WorkspaceInfo(folder=request.folder, writable=request.writable, **given)
        return self.shared

    async def set_cell(self, lease: str, request: CellRequest) -> None:
        if self.fails:
            raise self.fails
        self.cells.append(request)
        self.told.set()

    async def moved(self, lease: str, since: float) -> Moved:
        self.since.append(since)
        return self.has_moved or Moved(vm=f"vm-{self.vms}", disk_read=0, disk_written=0)

    async def audit(self, lease: str, last: int = 20) -> AuditRecords:
        return AuditRecords(records=tuple(self.audited[-last:]))

    @asynccontextmanager
    async def connections(self, lease: str = "", *, follow: bool = False) -> AsyncIterator[AsyncIterator[Connection]]:
        yield _all(self.connected, self.connecting if follow else None)

    @asynccontextmanager
    async def stats(self, lease: str = "", *, follow: bool = False) -> AsyncIterator[AsyncIterator[VMStats]]:
        self.followers += follow
        try:
            yield _all(self.measured, self.measuring if follow else None)
        finally:
            self.followers -= follow

    async def _work(self, what: str) -> None:
        """Be at work until the test lets it go on; one thing at a time."""
        self.asked.append(what)
        self.working += 1
        assert self.working == 1
        self.at_work.set()
        try:
            await self.go_on.wait()
        finally:
            self.working -= 1
        if self.fails:
            raise self.fails

    async def snapshot(self, lease: str, request: SnapshotRequest) -> SnapshotInfo:
        await self._work("snapshot")
        self.wanted.append(request)
        number = len(self.taken) + 1
        info = SnapshotInfo(
            id=f"{number:012x}",
            parent=self.current,
            label=request.label,
            text=request.text,
            kind=request.kind,
            created=float(number),
            size=3 << 20,
            written=1 << 20,
            cell=request.cell,
            busy=request.busy,
            pause_ms=10.25,
        )
        self.taken.append(info)
        self.current = info.id
        return info

    async def snapshots(self, lease: str) -> SnapshotTree:
        return SnapshotTree(
            notebook="n", current=self.current, snapshots=tuple(self.taken), quota=10 << 30, used=3 << 20
        )

    def _find(self, to: str) -> SnapshotInfo:
        found = [one for one in self.taken if (to or self.current) in (one.id, one.label)]
        if not found:
            raise ApiError("snapshot", f"There is no snapshot {to!r}.", "%snapshots shows what there is.")
        return found[0]

    async def plan_rollback(self, lease: str, to: str) -> RollbackPlan:
        target = self._find(to)
        left = [one for one in reversed(self.taken) if one.created > target.created]
        sent = tuple(self.connected)
        return RollbackPlan(
            target=target, left=tuple(left), seconds=65.0, written=5 << 20, connections=sent, connection_count=len(sent)
        )

    async def rollback(self, lease: str, to: str) -> Replaced:
        await self._work(f"rollback {to}")
        return self._replaced(self._find(to))

    async def adopt(self, lease: str, fork: int) -> Replaced:
        await self._work(f"adopt {fork}")
        return self._replaced(self.taken[-1])

    @asynccontextmanager
    async def forks(self, lease: str, request: ForkRequest) -> AsyncIterator[AsyncIterator[object]]:
        self.asked.append(f"forks {request.count} {request.randomness}")
        self.forking = True
        try:
            yield self._fork_events()
        finally:
            self.forking = False

    async def _fork_events(self) -> AsyncIterator[object]:
        while event := await self.fork_events.get():
            yield event

    async def rest_fork(self, lease: str, fork: int) -> None:
        self.asked.append(f"rest {fork}")

    async def end_fork(self, lease: str, fork: int) -> None:
        self.asked.append(f"end {fork}")

    def _replaced(self, snapshot: SnapshotInfo) -> Replaced:
        self.current = snapshot.id
        return Replaced(granted=self._granted(), snapshot=snapshot, seconds=0.1)


class MemoryStream:
    """One stream of a `MemoryLink`: `to_guest` and `to_host` are its two directions."""

    def __init__(self, link: MemoryLink, service: str) -> None:
        self._link = link
        self._service = service
        self.to_guest: asyncio.Queue[list[bytes]] = asyncio.Queue()
        self.to_host: asyncio.Queue[list[bytes] | None] = asyncio.Queue()
        self.late: list[list[bytes]] = []

    async def send(self, parts: Sequence[bytes]) -> None:
        self._link.check()
        if self._link.held:
            self.late.append(list(parts))
        elif self._service == "agent" and json.loads(parts[0])["op"] == "facts":
            answer = {"ok": True, **self._link.claims, "id": json.loads(parts[0])["id"]}
            self.to_host.put_nowait([json.dumps(answer).encode()])
        else:
            self.to_guest.put_nowait(list(parts))

    async def receive(self) -> list[bytes]:
        parts = await self.to_host.get()
        if parts is None:
            self.to_host.put_nowait(None)
            self._link.check()
            raise LinkClosedError("closed")
        return parts


class MemoryLink:
    """A link whose other end is the test."""

    def __init__(self) -> None:
        self.streams: dict[str, MemoryStream] = {}
        self.error: LinkError | None = None
        self.held = False
        self.claims: dict[str, object] = {"processes": 7, "load": 0.5}
        self._closed = asyncio.Event()

    @asynccontextmanager
    async def hold(self, *, drain: bool = True) -> AsyncIterator[None]:
        self.check()
        self.held = True
        try:
            yield
        finally:
            self.held = False
            for stream in self.streams.values():
                for parts in stream.late:
                    stream.to_guest.put_nowait(parts)
                stream.late.clear()

    async def open(self, service: str) -> MemoryStream:
        self.streams[service] = MemoryStream(self, service)
        return self.streams[service]

    def check(self) -> None:
        if self.error:
            raise self.error

    def end(self, error: LinkError) -> None:
        if self.error is None:
            self.error = error
            self._closed.set()
            for stream in self.streams.values():
                stream.to_host.put_nowait(None)

    async def close(self) -> None:
        self.end(LinkClosedError("closed by this end"))

    async def wait_closed(self) -> LinkError:
        await self._closed.wait()
        assert self.error
        return self.error


def parts_of(
    msg_type: str, content: object, parent: object = None, metadata: object = None, buffers: Sequence[bytes] = ()
) -> list[bytes]:
    """A guest's message."""
    header = {
        "msg_id": os.urandom(8).hex(),
        "msg_type": msg_type,
        "session": "guest",
        "username": "agent",
        "date": datetime.now(UTC).isoformat(),
        "version": "5.4",
    }
    dicts = (header, parent or {}, metadata or {}, content)
    return [*(part if isinstance(part, bytes) else json.dumps(part).encode() for part in dicts), *buffers]


class Asked:
    """What the host sent to the guest."""

    def __init__(self, channel: str, parts: list[bytes]) -> None:
        self.channel = channel
        self.header = json.loads(parts[0])
        self.content = json.loads(parts[3])
        self.buffers = parts[4:]


class ScriptedGuest:
    """The guest's end: the test takes what the host asked and says what it likes, honest or not."""

    def __init__(self, link: MemoryLink) -> None:
        self.link = link
        self.count = 0

    async def asked(self, channel: str = "shell") -> Asked:
        async with asyncio.timeout(TIMEOUT):
            return Asked(channel, await self.link.streams[channel].to_guest.get())

    def idle_hands(self, channel: str = "shell") -> bool:
        """Whether the host has asked nothing that the test has not taken."""
        return self.link.streams[channel].to_guest.empty()

    def say(self, channel: str, parts: list[bytes]) -> None:
        self.link.streams[channel].to_host.put_nowait(parts)

    def status(self, asked: Asked, state: str) -> None:
        self.say("iopub", parts_of("status", {"execution_state": state}, asked.header))

    def output(self, asked: Asked, text: str) -> None:
        self.say("iopub", parts_of("stream", {"name": "stdout", "text": text}, asked.header))

    def reply(self, asked: Asked, content: dict[str, object]) -> None:
        msg_type = asked.header["msg_type"].replace("_request", "_reply")
        self.say(asked.channel, parts_of(msg_type, content, asked.header))

    def begin(self, asked: Asked) -> None:
        self.count += 1
        self.status(asked, "busy")
        content = {"code": asked.content["code"], "execution_count": self.count}
        self.say("iopub", parts_of("execute_input", content, asked.header))

    def finish(self, asked: Asked, status: str = "ok") -> None:
        extra: dict[str, object] = {"payload": [], "user_expressions": {}}
        if status == "error":
            extra = {"ename": "E", "evalue": "v", "traceback": ["E: v"]}
            self.say("iopub", parts_of("error", extra, asked.header))
        self.reply(asked, {"status": status, "execution_count": self.count, **extra})
        self.status(asked, "idle")

    async def execute(self, status: str = "ok") -> Asked:
        asked = await self.asked()
        self.begin(asked)
        self.finish(asked, status)
        return asked


class InProcessKernel:
    """A running router, its client and its guest."""

    def __init__(self, folder: Path, supervisor: ScriptedSupervisor) -> None:
        self.supervisor = supervisor
        self.links: list[MemoryLink] = []
        self.session = Session(key=b"a key of this test")
        self.addresses = Addresses(
            "ipc", str(folder / "k"), dict.fromkeys(("shell", "control", "stdin", "iopub", "hb"), 0)
        )
        self.heartbeat = Heartbeat(self.addresses)
        self.sockets = Sockets(Wire(self.session), self.addresses)
        self.machine = Machine(
            LeaseRequest(owner="test"), lambda: supervisor, self._connect, Policy(comm_targets=("t",))
        )
        self.router = Router(self.sockets, self.machine, Registry())

    async def _connect(self, endpoint: object, *, key: bytes, epoch: int, limits: object = None) -> MemoryLink:
        self.links.append(MemoryLink())
        return self.links[-1]

    async def guest(self) -> ScriptedGuest:
        """The guest of the newest VM, once it is connected."""
        async with asyncio.timeout(TIMEOUT):
            await self.machine.settled()
        assert self.machine.error is None, self.machine.error
        return ScriptedGuest(self.links[-1])

    async def held(self, count: int) -> None:
        """Return once that many requests are held back on the main shell."""
        async with asyncio.timeout(TIMEOUT):
            while self.waiting("shell") < count:  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    def waiting(self, lane: str) -> int:
        """Return how many requests are held back on a lane."""
        lanes = self.router._lanes._lanes
        return len(lanes[lane]._waiting) if lane in lanes else 0

    @property
    def guest_side(self) -> GuestSide:
        """What reads the guest that is there."""
        side: GuestSide = self.machine.watcher._guest_side  # type: ignore[union-attr]
        return side

    async def _subscribed(self, client: AsyncKernelClient) -> None:
        """Return once iopub reaches the client, as it is told; others may be told of before it hears that."""
        said = ""
        while said != "iopub_welcome":
            said = (await client.get_iopub_msg(timeout=TIMEOUT))["msg_type"]

    @asynccontextmanager
    async def client(self) -> AsyncIterator[AsyncKernelClient]:
        client = AsyncKernelClient()
        ports = {f"{name}_port": port for name, port in self.addresses.ports.items()}
        client.load_connection_info(
            {"transport": "ipc", "ip": self.addresses.ip, "key": self.session.key.decode(), **ports}
        )
        # jupyter_client's heartbeat thread spins for ever when it is stopped before it has begun.
        client.start_channels(hb=False)
        try:
            await self._subscribed(client)
            yield client
        finally:
            client.stop_channels()
            client.context.term()


@asynccontextmanager
async def running(folder: Path, supervisor: ScriptedSupervisor | None = None) -> AsyncIterator[InProcessKernel]:
    """A router in this process, ended by cancellation (or by the shutdown request that the test sends)."""
    kernel = InProcessKernel(folder, supervisor or ScriptedSupervisor())
    kernel.heartbeat.start()
    task = asyncio.create_task(kernel.router.run())
    try:
        yield kernel
    finally:
        if not task.done():
            kernel.router.stop()
        await task
        kernel.sockets.close()
        kernel.heartbeat.stop()


async def outputs(client: AsyncKernelClient, msg_id: str) -> list[dict[str, object]]:
    """What iopub says about a request, to its `idle`."""
    messages = []
    while True:
        message = await client.get_iopub_msg(timeout=TIMEOUT)
        if message["parent_header"].get("msg_id") != msg_id:
            continue
        messages.append(message)
        if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
            return messages


def types(messages: list[dict[str, object]]) -> list[str]:
    """The message types, with the state where it is a status."""
    return [
        m["content"]["execution_state"] if m["msg_type"] == "status" else m["msg_type"]  # type: ignore[index]
        for m in messages
    ]


async def replied(client: AsyncKernelClient, msg_id: str, channel: str = "shell") -> dict[str, object]:
    """The reply to a request; replies to others that come before it are taken out."""
    while True:
        reply = await getattr(client, f"get_{channel}_msg")(timeout=TIMEOUT)
        if reply["parent_header"]["msg_id"] == msg_id:
            return dict(reply)


async def ask(
    client: AsyncKernelClient, msg_type: str, content: object, channel: str = "shell", **header: object
) -> str:
    """Send any request; return its msg_id."""
    message = client.session.msg(msg_type, content)
    message["header"].update(header)
    getattr(client, f"{channel}_channel").send(message)
    return str(message["header"]["msg_id"])


async def interrupted(guest: ScriptedGuest) -> None:
    """Return when the host has interrupted the guest, and let its agent say so."""
    async with asyncio.timeout(TIMEOUT):
        (raw,) = await guest.link.streams["agent"].to_guest.get()
    request = json.loads(raw)
    assert request["op"] == "interrupt"
    guest.say("agent", [json.dumps({"id": request["id"], "ok": True}).encode()])


async def cell(client: AsyncKernelClient, guest: ScriptedGuest, code: str, status: str = "ok") -> dict[str, object]:
    """Run a cell, or the stub of a magic, in a guest; return its reply."""
    msg_id = client.execute(code)
    await guest.execute(status)
    return await replied(client, msg_id)


async def told(client: AsyncKernelClient, guest: ScriptedGuest, magic: str) -> str:
    """Run a magic; return what it shows, or its error."""
    msg_id = client.execute(magic)
    await guest.execute()
    return shown(await outputs(client, msg_id))


def shown(messages: list[dict[str, object]]) -> str:
    """The plain text of what a cell displays, or its error's message."""
    for message in messages:
        content = message["content"]
        if message["msg_type"] == "display_data":
            return str(content["data"]["text/plain"])  # type: ignore[index]
        if message["msg_type"] == "error":
            return str(content["evalue"])  # type: ignore[index]
    raise AssertionError(f"nothing is shown: {types(messages)}")


async def within(condition: Callable[[], object]) -> None:
    """Return once a condition holds."""
    async with asyncio.timeout(TIMEOUT):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
