"""The API as any HTTP client sees it: answers, refusals, its own description. Over a hypervisor without VMs."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from fake_hypervisor import FakeHypervisor
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator, validate
from supervisor_bed import first_grant, make_paths, serving

from agentvm_kernel.config import Paths
from agentvm_kernel.errors import AgentVMError, DiskFullError, LabelTakenError
from agentvm_kernel.supervisor.client import SupervisorClient
from agentvm_kernel.supervisor.core import Supervisor
from agentvm_kernel.supervisor.daemon import _private_socket
from agentvm_kernel.supervisor.messages import LeaseRequest
from agentvm_kernel.supervisor.openapi import describe
from agentvm_kernel.supervisor.route import STATUS
from agentvm_kernel.supervisor.routes import ROUTES

Answer = tuple[int, Any]
NOBODY = 65534

ASK = """
import os, socket, sys
os.setgroups([]); os.setgid({nobody}); os.setuid({nobody})
s = socket.socket(socket.AF_UNIX)
s.settimeout(20)
try:
    s.connect(sys.argv[1])
except PermissionError:
    raise SystemExit("no permission")
s.sendall(b"GET /v1/status HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
while part := s.recv(65536):
    sys.stdout.write(part.decode())
"""


def cassette(folder: str) -> bytes:
    return json.dumps({"action": "replay", "name": "calls", "folder": folder}).encode()


class Raw:
    """Asks without the client's help."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def __call__(
        self, method: str, path: str, body: str | bytes | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        async with self._session.request(method, f"http://supervisor{path}", data=body, headers=headers) as response:
            assert response.content_type == "application/json", await response.text()
            return response.status, await response.json()


@pytest.fixture
def paths(short_tmp: Path) -> Paths:
    return make_paths(short_tmp)


@pytest.fixture
async def supervisor(paths: Paths) -> AsyncIterator[Supervisor]:
    async with serving(paths, FakeHypervisor()) as supervisor:
        yield supervisor


@pytest.fixture
async def ask(paths: Paths, supervisor: Supervisor) -> AsyncIterator[Raw]:
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(paths.socket))) as session:
        yield Raw(session)


@pytest.fixture
async def lease(paths: Paths, supervisor: Supervisor) -> AsyncIterator[str]:
    async with (
        SupervisorClient(paths, start=False) as client,
        client.lease(LeaseRequest(owner="a test", notebook="n.ipynb")) as lease,
    ):
        yield (await first_grant(lease)).lease


def test_the_description_is_valid_openapi() -> None:
    validate(describe(ROUTES), cls=OpenAPIV31SpecValidator)


async def test_the_description_is_served_and_every_route_answers_as_described(ask: Raw, lease: str) -> None:
    status, document = await ask("GET", "/v1/openapi.json")
    assert (status, document) == (200, describe(ROUTES))
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            others = {"fork": 1, "vm": "vm-0", "snapshot": "0" * 12}
            for names in ({"lease": "nobody"} | others, {"lease": lease} | others):
                is_refused = "requestBody" in operation or (names["lease"] == "nobody" and "{lease}" in path)
                if "application/x-ndjson" in operation["responses"]["200"]["content"] and not is_refused:
                    continue
                if "application/x-ndjson" in operation["responses"]["200"]["content"]:
                    status, answer = await ask(method, path.format(**names), b"{")
                    assert status in {400, 404}
                else:
                    status, answer = await ask(method, path.format(**names), b"{}")
                described = operation["responses"][str(status)]["content"]["application/json"]["schema"]
                Draft202012Validator(described | {"components": document["components"]}).validate(answer)
                assert answer.get("code") not in {"no_route", "method", "internal"}, (method, path, answer)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code", "says"),
    [
        ("GET", "/v1/nothing", None, 404, "no_route", "/v1/nothing"),
        ("GET", "/", None, 404, "no_route", "'/'"),
        ("PATCH", "/v1/status", None, 405, "method", "GET"),
        ("POST", "/v1/leases", b"x" * 70_000, 413, "too_large", "65536"),
        ("POST", "/v1/leases", b'{"image"', 400, "request", "no JSON"),
        ("POST", "/v1/leases", b"[]", 400, "request", "must be a table"),
        ("POST", "/v1/leases", b'{"imag": "x"}', 400, "request", "Did you mean image"),
        ("POST", "/v1/leases", b'{"image": "../.."}', 400, "request", 'image is "../.."'),
        ("POST", "/v1/leases/{lease}/forks", b'{"count": 1000}', 400, "request", "count is 1000"),
        ("POST", "/v1/leases/{lease}/forks", b"{}", 400, "request", "count is missing"),
        ("POST", "/v1/leases/none/forks", b'{"count": 1}', 404, "no_lease", "no lease 'none'"),
        ("GET", "/v1/leases/none/snapshots", None, 404, "no_lease", "no lease 'none'"),
        ("GET", "/v1/leases/{lease}/%2E%2E", None, 404, "no_route", "nothing at"),
        ("POST", "/v1/leases/{lease}/rollback", b'{"to": "nowhere"}', 404, "no_snapshot", "nowhere"),
        ("DELETE", "/v1/leases/{lease}/snapshots/000000000000", None, 404, "no_snapshot", "000000000000"),
        ("DELETE", "/v1/leases/{lease}/snapshots/clean", None, 404, "no_route", "nothing at"),
        ("PATCH", "/v1/leases/{lease}/snapshots/000000000000", b"{}", 400, "request", "label is missing"),
        ("POST", "/v1/leases/{lease}/snapshots/prune", b"{}", 400, "request", "keep is missing"),
        ("POST", "/v1/leases/{lease}/snapshots/prune", b'{"keep": -1}', 400, "request", "keep is -1"),
        ("POST", "/v1/leases/{lease}/forks/9/adopt", None, 404, "no_fork", "fork 9"),
        ("POST", "/v1/leases/{lease}/forks/x/adopt", None, 404, "no_route", "nothing at"),
        ("PUT", "/v1/leases/{lease}/limits", b'{"changes": {"cpus": 1}}', 400, "limit", "cpus"),
        ("PUT", "/v1/leases/{lease}/cassette", cassette("/nowhere"), 409, "cassette", "'/nowhere'"),
        ("PUT", "/v1/leases/{lease}/cassette", cassette("here"), 409, "cassette", "'here'"),
        ("PUT", "/v1/leases/{lease}/cassette", cassette("/a\0b"), 409, "cassette", "\\x00b'"),
        ("PUT", "/v1/leases/{lease}/cassette", cassette("/" + "x" * 300), 409, "cassette", "'/xxx"),
        ("POST", "/v1/vms/{vm}/disk", b'{"file": "here"}', 400, "request", "'here'"),
        ("POST", "/v1/vms/{vm}/disk", b'{"file": "/nowhere/disk"}', 400, "request", "'/nowhere/disk'"),
        ("POST", "/v1/vms/{vm}/disk", b'{"file": "/etc/passwd/disk"}', 400, "request", "'/etc/passwd/disk'"),
        ("POST", "/v1/vms/{vm}/disk", b'{"file": "/tmp"}', 400, "request", "'/tmp'"),
        ("POST", "/v1/vms/{vm}/disk", b'{"file": "/a\\u0000b"}', 400, "request", "\\x00b'"),
        ("POST", "/v1/vms/{vm}/disk", b'{"file": "/%s"}' % (b"x" * 300), 400, "request", "'/xxx"),
        ("DELETE", "/v1/vms/vm-0", None, 404, "no_vm", "vm-0"),
        ("DELETE", "/v1/vms/%5Bred%5D%1B", None, 404, "no_vm", "\\x1b"),
    ],
)
async def test_a_refusal_has_a_code_one_line_and_a_status(
    ask: Raw,
    lease: str,
    supervisor: Supervisor,
    method: str,
    path: str,
    body: bytes | None,
    status: int,
    code: str,
    says: str,
) -> None:
    answered, refusal = await ask(method, path.format(lease=lease, vm=supervisor.leases[lease].vm.id), body)
    assert (answered, refusal["code"]) == (status, code)
    assert says in refusal["message"]
    assert refusal["hint"]
    assert "\n" not in refusal["message"] + refusal["hint"]
    assert set(refusal) == {"code", "message", "hint"}


async def test_what_is_not_encoded_as_it_says_is_refused(ask: Raw, lease: str) -> None:
    path = f"/v1/leases/{lease}/snapshots"
    answered, refusal = await ask("POST", path, b"no gzip", {"Content-Encoding": "gzip"})
    assert (answered, refusal["code"]) == (400, "request")


@pytest.mark.parametrize(("error", "status"), [(LabelTakenError, 409), (DiskFullError, 507), (AgentVMError, 500)])
async def test_the_status_follows_the_errors_code(
    ask: Raw,
    lease: str,
    supervisor: Supervisor,
    monkeypatch: pytest.MonkeyPatch,
    error: type[AgentVMError],
    status: int,
) -> None:
    async def refuse(*_: object) -> None:
        raise error("It cannot be.", "Do it otherwise.")

    monkeypatch.setattr(supervisor.history, "snapshot", refuse)
    answer = await ask("POST", f"/v1/leases/{lease}/snapshots", b"{}")
    assert answer == (status, {"code": error.code, "message": "It cannot be.", "hint": "Do it otherwise."})


async def test_what_nobody_foresaw_is_told_and_logged(
    ask: Raw, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(supervisor, "status", fail)
    status, refusal = await ask("GET", "/v1/status")
    assert (status, refusal["code"]) == (500, "internal")
    assert "secret" not in str(refusal)
    assert "GET /v1/status failed" in caplog.text


async def test_vms_and_pool_are_shown_and_steered(ask: Raw, lease: str, supervisor: Supervisor) -> None:
    await supervisor.pool.filled()
    _, listed = await ask("GET", "/v1/vms")
    leased = [vm for vm in listed["vms"] if vm["state"] == "leased"]
    assert [(vm["lease"], vm["owner"], vm["notebook"]) for vm in leased] == [(lease, "a test", "n.ipynb")]
    assert len(listed["vms"]) > 1
    assert (await ask("POST", "/v1/pool/drain"))[0] == 200
    assert (await ask("GET", "/v1/pool"))[1]["drained"] is True
    assert [vm["state"] for vm in (await ask("GET", "/v1/vms"))[1]["vms"]] == ["leased"]
    assert (await ask("POST", "/v1/pool/fill"))[0] == 200
    assert (await ask("GET", "/v1/pool"))[1]["drained"] is False
    vm = supervisor.leases[lease].vm
    assert await ask("DELETE", f"/v1/vms/{leased[0]['id']}") == (200, {})
    await asyncio.wait_for(asyncio.shield(vm.ended), 10)


async def test_limits_are_told_and_changed(ask: Raw, lease: str) -> None:
    path = f"/v1/leases/{lease}/limits"
    assert (await ask("GET", path))[1]["cell_deadline"] == 300
    assert (await ask("PUT", path, b'{"changes": {"cell_deadline": 7}}'))[1]["cell_deadline"] == 7
    assert (await ask("GET", path))[1]["cell_deadline"] == 7


async def test_the_configuration_is_read_again_and_a_broken_one_is_not_taken(ask: Raw, paths: Paths) -> None:
    paths.config.write_text("max_vms = 7\n")
    status, answer = await ask("POST", "/v1/reload")
    assert status == 200
    assert "max_vms" in answer["changed"]
    paths.config.write_text("max_vms = 7000\n")
    status, refusal = await ask("POST", "/v1/reload")
    assert (status, refusal["code"]) == (400, "config")
    assert "max_vms" in refusal["message"]
    assert (await ask("GET", "/v1/pool"))[1]["max_vms"] == 7


async def ask_as_another_user(paths: Paths) -> str:
    script = ASK.format(nobody=NOBODY)
    process = await asyncio.create_subprocess_exec(
        shutil.which("python3", path="/usr/bin:/bin") or sys.executable, "-c", script, str(paths.socket),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd="/",
    )  # fmt: skip
    said, _ = await process.communicate()
    return said.decode()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_another_user_gets_in_neither_by_the_socket_nor_by_the_check(
    paths: Paths, short_tmp: Path, supervisor: Supervisor
) -> None:
    for folder in (short_tmp, paths.state, paths.runtime):
        folder.chmod(0o755)
    paths.socket.chmod(0o600)
    assert "no permission" in await ask_as_another_user(paths)
    paths.socket.chmod(0o666)
    said = await ask_as_another_user(paths)
    assert said.startswith("HTTP/1.1 403")
    assert '"code":"forbidden"' in said
    assert "pid" not in said


async def test_the_socket_is_made_with_mode_0600(short_tmp: Path) -> None:
    socket = short_tmp / "s.sock"
    runner = web.AppRunner(web.Application())
    await runner.setup()
    with _private_socket(socket):
        await web.UnixSite(runner, str(socket)).start()
    assert stat.S_IMODE(socket.stat().st_mode) == 0o600
    await runner.cleanup()


def test_the_documentation_lists_every_route_and_every_status() -> None:
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    assert re.findall(r"^\| `([A-Z]+ /v1/[^`]+)` \|", page, re.MULTILINE) == [
        f"{route.method} {route.path}" for route in ROUTES
    ]
    rows = re.findall(r"^\| (\d{3}) \| (`.*`) \|", page, re.MULTILINE)
    assert {code: int(status) for status, codes in rows for code in re.findall(r"`(\w+)`", codes)} == STATUS
