"""The client's snapshots, rollback and forks, against a real HTTP server that notes what it was asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from agentvm_kernel.config import Paths
from agentvm_kernel.errors import ApiError, SupervisorError
from agentvm_kernel.link.endpoint import UnixEndpoint
from agentvm_kernel.snapshots.notes import Cell
from agentvm_kernel.supervisor import client as module
from agentvm_kernel.supervisor.client import SupervisorClient
from agentvm_kernel.supervisor.fork_messages import ForkEnded, ForkGranted, ForkRequest
from agentvm_kernel.supervisor.messages import Granted, Message, Progress
from agentvm_kernel.supervisor.snapshot_messages import (
    Removed,
    Replaced,
    RollbackPlan,
    SnapshotInfo,
    SnapshotRequest,
    SnapshotTree,
)

GRANTED = Granted(
    lease="l1", snapshot="a" * 12, vm="vm-2", epoch=2, key="00" * 32, link=UnixEndpoint("/run/link.sock"),
    image="0" * 64, flavour="minimal", profile="light", vcpus=1, memory_mib=512, disk_gb=4, accelerator="tcg",
    pid=7, acquire_ms=1.0,
)  # fmt: skip
SNAPSHOT = SnapshotInfo(
    id="a" * 12, parent="", label="start", text="", kind="manual", created=1.0, size=10, written=5, cell=Cell(run=3),
    busy=False, pause_ms=9.5,
)  # fmt: skip
TREE = SnapshotTree(notebook="n", current=SNAPSHOT.id, snapshots=(SNAPSHOT,), quota=100, used=10)
PLAN = RollbackPlan(target=SNAPSHOT, left=(), seconds=2.0, written=4096)
REMOVED = Removed(removed=(SNAPSHOT.id,), freed=5)
REPLACED = Replaced(granted=GRANTED, snapshot=SNAPSHOT, seconds=0.2)

Call = Callable[[SupervisorClient], Awaitable[object]]


class Server:
    """Answers every request with the same, and notes what was asked."""

    def __init__(self, answer: bytes, status: int = 200) -> None:
        self.asked: list[tuple[str, str, object]] = []
        self._answer = answer
        self._status = status

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.asked.append((request.method, request.raw_path, json.loads(body) if body else None))
        return web.Response(body=self._answer, status=self._status)


@pytest.fixture
def paths(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    monkeypatch.setenv("AGENTVM_STATE_DIR", str(short_tmp))
    return Paths.of_user()


@asynccontextmanager
async def serving(
    paths: Paths, handle: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> AsyncIterator[SupervisorClient]:
    app = web.Application()
    app.add_routes([web.route("*", "/{path:.*}", handle)])
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    paths.runtime.mkdir(parents=True, exist_ok=True)
    await web.UnixSite(runner, str(paths.socket)).start()
    try:
        async with SupervisorClient(paths, start=False) as client:
            yield client
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("call", "answer", "method", "path", "body"),
    [
        (lambda c: c.snapshots("l1"), TREE, "GET", "/snapshots", None),
        (
            lambda c: c.snapshot("l1", SnapshotRequest(label="x", wait_stored=False)),
            SNAPSHOT,
            "POST",
            "/snapshots",
            SnapshotRequest(label="x", wait_stored=False).model_dump(mode="json"),
        ),
        (lambda c: c.relabel("l1", "a/b", ""), SNAPSHOT, "PATCH", "/snapshots/a%2Fb", {"label": "", "text": None}),
        (lambda c: c.remove("l1", "ab"), REMOVED, "DELETE", "/snapshots/ab", None),
        (lambda c: c.prune("l1", 3), REMOVED, "POST", "/snapshots/prune", {"keep": 3}),
        (lambda c: c.plan_rollback("l1", "~2"), PLAN, "POST", "/rollback/plan", {"to": "~2"}),
        (lambda c: c.rollback("l1", ""), REPLACED, "POST", "/rollback", {"to": ""}),
        (lambda c: c.adopt("l1", 3), REPLACED, "POST", "/forks/3/adopt", None),
        (lambda c: c.rest_fork("l1", 3), None, "POST", "/forks/3/rest", None),
        (lambda c: c.end_fork("l1", 3), None, "DELETE", "/forks/3", None),
    ],
)
async def test_each_request_reaches_its_place_and_its_answer_comes_back(
    paths: Paths, call: Call, answer: Message | None, method: str, path: str, body: object
) -> None:
    server = Server(answer.model_dump_json().encode() if answer else b"{}")
    async with serving(paths, server.handle) as client:
        assert await call(client) == answer
    assert server.asked == [(method, f"/v1/leases/l1{path}", body)]


async def test_a_lease_id_cannot_lead_to_another_place(paths: Paths) -> None:
    server = Server(TREE.model_dump_json().encode())
    async with serving(paths, server.handle) as client:
        await client.snapshots("../../x?y")
    assert server.asked[0][1] == "/v1/leases/..%2F..%2Fx%3Fy/snapshots"


@pytest.mark.parametrize("answer", [b"no json", b"{}", TREE.model_dump_json().encode()[:-1] + b', "more": 1}'])
async def test_an_answer_of_another_form_is_an_error(paths: Paths, answer: bytes) -> None:
    async with serving(paths, Server(answer).handle) as client:
        with pytest.raises(SupervisorError, match="no SnapshotTree"):
            await client.snapshots("l1")


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.snapshot("l1", SnapshotRequest()),
        lambda c: c.rollback("l1", "x"),
        lambda c: c.rest_fork("l1", 1),
        lambda c: c.end_fork("l1", 1),
        lambda c: c.adopt("l1", 1),
        lambda c: c.forks("l1", ForkRequest(count=1)).__aenter__(),
    ],
)
async def test_what_the_supervisor_refuses_keeps_code_and_hint(paths: Paths, call: Call) -> None:
    refusal = json.dumps({"code": "disk_full", "message": "No room.", "hint": "Prune."}).encode()
    async with serving(paths, Server(refusal, 500).handle) as client:
        with pytest.raises(ApiError, match="No room") as caught:
            await call(client)
    assert (caught.value.code, caught.value.hint) == ("disk_full", "Prune.")


async def test_work_may_take_longer_than_an_answer(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ANSWER_TIMEOUT", 0.01)
    answers = iter((SNAPSHOT, REPLACED, REPLACED, TREE))

    async def slow(_: web.Request) -> web.Response:
        await asyncio.sleep(0.1)
        return web.Response(body=next(answers).model_dump_json())

    async with serving(paths, slow) as client:
        assert await client.snapshot("l1", SnapshotRequest()) == SNAPSHOT
        assert await client.rollback("l1", "") == REPLACED
        assert await client.adopt("l1", 1) == REPLACED
        with pytest.raises(SupervisorError, match="does not answer"):
            await client.snapshots("l1")


async def test_forks_are_events_and_end_with_their_context(paths: Paths) -> None:
    events: list[Message] = [
        Progress(stage="waiting for memory"),
        ForkGranted(fork=1, granted=GRANTED),
        ForkEnded(fork=1, code="vm_ended", reason="gone"),
    ]
    closed = asyncio.Event()

    async def handle(request: web.Request) -> web.StreamResponse:
        assert ForkRequest.model_validate_json(await request.read()).count == 2
        response = web.StreamResponse()
        await response.prepare(request)
        for event in events:
            await response.write(b"\n" + event.model_dump_json().encode() + b"\n")
        try:
            await asyncio.Event().wait()
        finally:
            closed.set()
        return response

    async with serving(paths, handle) as client:
        async with client.forks("l1", ForkRequest(count=2)) as forks:
            assert [await anext(forks) for _ in events] == events
        async with asyncio.timeout(10):
            await closed.wait()


@pytest.mark.parametrize("line", [b"oops\n", b'{"event": "granted"}\n', b"x" * 100_000])
async def test_what_is_no_fork_event_is_an_error(paths: Paths, line: bytes) -> None:
    async with serving(paths, Server(line).handle) as client, client.forks("l1", ForkRequest(count=1)) as forks:
        with pytest.raises(SupervisorError):
            await anext(forks)
