"""The client of the supervisor's API: against the fake supervisor, and against servers that misbehave."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from fake_supervisor import FakeSupervisor

from agentvm_kernel.config import Paths
from agentvm_kernel.errors import ApiError, NoLeaseError, SupervisorError
from agentvm_kernel.supervisor import answers, launch
from agentvm_kernel.supervisor import client as module
from agentvm_kernel.supervisor.client import SupervisorClient
from agentvm_kernel.supervisor.fork_messages import ForkRequest
from agentvm_kernel.supervisor.launch import start_supervisor
from agentvm_kernel.supervisor.messages import Ended, Granted, LeaseRequest, Progress

REQUEST = LeaseRequest(image="minimal", owner="test")


@pytest.fixture
def paths(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    monkeypatch.setenv("AGENTVM_STATE_DIR", str(short_tmp))
    return Paths.of_user()


@asynccontextmanager
async def serving(paths: Paths, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[None]:
    app = web.Application()
    app.add_routes([web.route("*", "/{path:.*}", handler)])
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    paths.runtime.mkdir(parents=True, exist_ok=True)
    await web.UnixSite(runner, str(paths.socket)).start()
    try:
        yield
    finally:
        await runner.cleanup()


def chunks(*lines: bytes) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for line in lines:
            await response.write(line)
        return response

    return handle


async def test_a_lease_tells_progress_grant_and_the_end(paths: Paths) -> None:
    async with (
        FakeSupervisor(paths, progress=[Progress(stage="booting", done=0.5)]),
        SupervisorClient(paths, start=False) as client,
        client.lease(REQUEST) as lease,
    ):
        assert await anext(lease) == Progress(stage="booting", done=0.5)
        granted = await anext(lease)
        assert isinstance(granted, Granted)
        os.kill(granted.pid, 9)
        assert isinstance(await anext(lease), Ended)


async def test_leaving_the_lease_gives_the_vm_back(paths: Paths) -> None:
    async with FakeSupervisor(paths), SupervisorClient(paths, start=False) as client:
        async with client.lease(REQUEST) as lease:
            granted = await anext(lease)
            assert isinstance(granted, Granted)
            process = os.pidfd_open(granted.pid)
        gone = asyncio.Event()
        asyncio.get_running_loop().add_reader(process, gone.set)
        async with asyncio.timeout(20):
            await gone.wait()
        asyncio.get_running_loop().remove_reader(process)
        os.close(process)


async def test_status_is_what_the_supervisor_says(paths: Paths) -> None:
    async with FakeSupervisor(paths), SupervisorClient(paths, start=False) as client:
        status = await client.status()
        assert (status.version, status.pid, status.leases) == ("fake", os.getpid(), ())


async def test_nobody_there_is_an_error_when_none_may_be_started(paths: Paths) -> None:
    async with SupervisorClient(paths, start=False) as client:
        with pytest.raises(SupervisorError, match="not running"):
            await client.status()


async def test_a_client_that_is_not_open_says_so(paths: Paths) -> None:
    with pytest.raises(SupervisorError, match="not open"):
        await SupervisorClient(paths, start=False).status()


async def test_blank_lines_are_keep_alives_and_lines_may_come_in_pieces(paths: Paths) -> None:
    line = Ended(code="vm_ended", reason="over").model_dump_json().encode() + b"\n"
    async with (
        serving(paths, chunks(b"\n", b"\n \n", line[:10], line[10:] + line)),
        SupervisorClient(paths, start=False) as client,
        client.lease(REQUEST) as lease,
    ):
        assert [event.reason async for event in lease if isinstance(event, Ended)] == ["over", "over"]


@pytest.mark.parametrize(
    "body", [b"no json\n", b'{"event": "granted"}\n', b'{"event": "other"}\n', b"x" * 200_000], ids=range(4)
)
async def test_what_is_no_event_is_an_error(paths: Paths, body: bytes) -> None:
    async with (
        serving(paths, chunks(body)),
        SupervisorClient(paths, start=False) as client,
        client.lease(REQUEST) as lease,
    ):
        with pytest.raises(SupervisorError):
            await anext(lease)


async def test_an_error_answer_keeps_its_code_and_hint(paths: Paths) -> None:
    async def refuse(_: web.Request) -> web.Response:
        return web.json_response({"code": "host", "message": "No QEMU.", "hint": "Install it."}, status=500)

    async with serving(paths, refuse), SupervisorClient(paths, start=False) as client:
        with pytest.raises(ApiError, match="No QEMU") as caught:
            async with client.lease(REQUEST):
                pass
    assert (caught.value.code, caught.value.hint) == ("host", "Install it.")


@pytest.mark.parametrize("body", [b"oops", b"[]", b'{"code": 1}'])
async def test_an_error_answer_that_is_no_description_is_still_an_error(paths: Paths, body: bytes) -> None:
    async def refuse(_: web.Request) -> web.Response:
        return web.Response(status=500, body=body)

    async with serving(paths, refuse), SupervisorClient(paths, start=False) as client:
        with pytest.raises(SupervisorError, match="500"):
            await client.status()


@pytest.mark.parametrize("body", [b"oops", b"[]"])
async def test_a_status_that_is_no_object_is_an_error(paths: Paths, body: bytes) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=body)

    async with serving(paths, answer), SupervisorClient(paths, start=False) as client:
        with pytest.raises(SupervisorError, match="answer is no"):
            await client.status()


async def test_an_endless_status_is_an_error(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "_MAX_BODY", 1000)
    async with serving(paths, chunks(b"x" * 5000)), SupervisorClient(paths, start=False) as client:
        with pytest.raises(SupervisorError, match="too long"):
            await client.status()


async def test_a_supervisor_that_does_not_answer_is_an_error(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ANSWER_TIMEOUT", 0.05)
    over = asyncio.Event()

    async def hang(_: web.Request) -> web.Response:
        await over.wait()
        return web.Response()

    async with serving(paths, hang), SupervisorClient(paths, start=False) as client:
        with pytest.raises(SupervisorError, match="does not answer"):
            await client.status()
        over.set()


async def test_an_answer_that_stalls_or_breaks_off_is_an_error(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "_BODY_TIMEOUT", 0.05)
    over = asyncio.Event()

    async def begin(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"{")
        if request.method == "POST":
            await over.wait()
        assert request.transport
        request.transport.abort()
        return response

    async with serving(paths, begin), SupervisorClient(paths, start=False) as client:
        for request in (client.status(), client.adopt("l", 1)):
            with pytest.raises(SupervisorError, match="broke off"):
                await request
        over.set()


def instead(monkeypatch: pytest.MonkeyPatch, folder: Path, program: str) -> Path:
    """Start a script in place of the supervisor; returns the file in which each start leaves a line."""
    starts = folder / "starts"
    script = folder / "script.py"
    script.write_text(
        f"import os, sys, json, socket, time\nopen({str(starts)!r}, 'a').write('x\\n')\n"
        f"fd = int(sys.argv[-1])\npath = {str(folder / 'run' / 'supervisor.sock')!r}\n{program}"
    )
    wrapper = folder / "python"
    wrapper.write_text(f'#!/bin/sh\nexec {sys.executable} {script} "$@"\n')
    wrapper.chmod(0o700)
    monkeypatch.setattr(launch.sys, "executable", str(wrapper))
    return starts


LISTEN = """
s = socket.socket(socket.AF_UNIX)
s.bind(path)
s.listen()
os.write(fd, b"1")
os.close(fd)
s.settimeout(20)
while True:
    c, _ = s.accept()
    data = c.recv(65536)
    if b"shutdown" in data:
        c.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\n{}")
        break
    if data:
        body = json.dumps({"version": "mine", "pid": 1, "uptime": 1, "libvirt": "", "accelerator": "tcg"}).encode()
        c.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\nConnection: close\\r\\n\\r\\n" % len(body) + body)
    c.close()
"""


async def test_a_supervisor_is_started_once_for_two_who_ask(
    paths: Paths, short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = instead(monkeypatch, short_tmp, LISTEN)
    async with SupervisorClient(paths) as one, SupervisorClient(paths) as two:
        assert [answer.version for answer in await asyncio.gather(one.status(), two.status())] == ["mine", "mine"]
        await one.shutdown()
    assert starts.read_text() == "x\n"


async def test_what_one_session_chose_is_no_default_of_the_supervisors(
    paths: Paths, short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = short_tmp / "told"
    instead(monkeypatch, short_tmp, f"open({str(told)!r}, 'w').write(' '.join(os.environ))" + LISTEN)
    monkeypatch.setenv("AGENTVM_PROFILE", "light")
    monkeypatch.setenv("AGENTVM_IMAGE", "minimal")
    async with SupervisorClient(paths) as client:
        await client.shutdown()
    names = set(told.read_text().split())
    assert "AGENTVM_STATE_DIR" in names
    assert not {"AGENTVM_PROFILE", "AGENTVM_IMAGE"} & names


async def test_for_a_lease_that_is_lost_no_supervisor_is_started(
    paths: Paths, short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = instead(monkeypatch, short_tmp, LISTEN)
    async with SupervisorClient(paths) as client:
        for request in (client.snapshots("l"), client.rollback("l", ""), client.limits("l"), client.end_fork("l", 1)):
            with pytest.raises(NoLeaseError, match="is gone"):
                await request
        with pytest.raises(NoLeaseError):
            async with client.forks("l", ForkRequest(count=1)):
                pass
    assert not starts.exists()


async def test_one_that_is_on_its_way_out_is_waited_for(
    paths: Paths, short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = json.dumps({"code": "already_running", "message": "A supervisor of this user is already running."})
    twice = f"if open({str(short_tmp / 'starts')!r}).read().count('x') < 3:\n"
    twice += f"    os.write(fd, {error!r}.encode() + b'\\n')\n    raise SystemExit\n"
    starts = instead(monkeypatch, short_tmp, twice + LISTEN)
    async with SupervisorClient(paths) as client:
        assert (await client.status()).version == "mine"
        await client.shutdown()
    assert starts.read_text() == "x\n" * 3


async def test_a_supervisor_that_cannot_start_says_why(
    paths: Paths, short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = json.dumps({"code": "host", "message": "No libvirt.", "hint": "Run agentvm setup."})
    instead(monkeypatch, short_tmp, f"os.write(fd, {error!r}.encode() + b'\\n')")
    async with SupervisorClient(paths) as client:
        with pytest.raises(ApiError, match="No libvirt") as caught:
            await client.status()
    assert caught.value.hint == "Run agentvm setup."


async def test_a_supervisor_that_dies_while_starting_is_an_error_that_names_its_log(
    paths: Paths, short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    instead(monkeypatch, short_tmp, "print('to the log'); raise SystemExit(3)")
    with pytest.raises(SupervisorError, match="ended while it started") as caught:
        await start_supervisor(paths)
    assert str(paths.log) in caught.value.hint
    assert "to the log" in paths.log.read_text()


async def test_a_supervisor_that_is_never_ready_is_an_error(
    paths: Paths, short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_START_TIMEOUT", 0.3)
    instead(monkeypatch, short_tmp, "time.sleep(2)")
    with pytest.raises(SupervisorError, match="not ready"):
        await start_supervisor(paths)


async def test_a_supervisor_that_is_ready_but_deaf_is_an_error(
    paths: Paths, short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    instead(monkeypatch, short_tmp, 'os.write(fd, b"1")')
    async with SupervisorClient(paths) as client:
        with pytest.raises(SupervisorError, match="started but does not answer"):
            await client.status()


async def test_a_client_that_is_closed_ends_the_streams_that_others_still_read(paths: Paths) -> None:
    async def say_one_and_wait(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(Progress(stage="booting").model_dump_json().encode() + b"\n")
        await asyncio.Event().wait()
        return response

    async with serving(paths, say_one_and_wait):
        client = SupervisorClient(paths, start=False)
        await client.__aenter__()
        begun = asyncio.Event()

        async def read() -> None:
            async with client.lease(REQUEST) as lease:
                async for _ in lease:
                    begun.set()

        reader = asyncio.create_task(read())
        await begun.wait()
        await client.__aexit__(None, None, None)
        async with asyncio.timeout(20):
            with pytest.raises(SupervisorError):
                await reader
