"""The server extension as pages use it: real Jupyter server, supervisor and VMs; what counts is in the VM."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from documents import all_blocks
from jupyter_client.asynchronous.client import AsyncKernelClient
from lab_bed import Jupyter, jupyter
from vms import environment_of, own_supervisor

from agentvm_kernel.config import Paths
from agentvm_kernel.server.news import EVENT_SCHEMA
from agentvm_kernel.supervisor.client import SupervisorClient

SHARED = Path(__file__).resolve().parents[2] / "labextension" / "shared"
TIMEOUT = 240.0


@pytest.fixture
def paths() -> Iterator[Paths]:
    with own_supervisor() as found:
        yield found


@contextmanager
def server(folder: Path, paths: Paths) -> Iterator[Jupyter]:
    """A Jupyter server that has the extension as an installation has it: by a file among its configuration."""
    config = folder / "config-path" / "jupyter_server_config.d"
    config.mkdir(parents=True, exist_ok=True)
    shutil.copy(SHARED / "jupyter_server_config.json", config / "agentvm_kernel.json")
    with jupyter(folder, environment_of(paths) | {"JUPYTER_CONFIG_PATH": str(config.parent)}) as running:
        yield running


@dataclass
class Page:
    """A page that has logged in.

    Attributes:
        server: Where.
        http: Its connection.
        told: Events that it was told.
    """

    server: Jupyter
    http: aiohttp.ClientSession
    told: list[dict[str, Any]] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def ask(self, verb: str, path: str, body: object = None, *, status: int = 200) -> dict[str, Any]:
        url = f"{self.server.url}{path if path.startswith('/api') else f'/agentvm/api{path}'}"
        async with self.http.request(verb, url, json=body) as response:
            answer = await response.text()
            assert response.status == status, answer
            return dict(json.loads(answer)) if answer else {}

    async def did(self, verb: str, path: str, body: object) -> dict[str, Any]:
        """Ask for an action, which must succeed."""
        done = await self.ask(verb, path, body)
        assert done["status"] == "ok", done
        return done

    async def open(self, name: str = "n.ipynb") -> Book:
        """Open a notebook, and wait for its VM."""
        wanted = {"path": name, "name": name, "type": "notebook", "kernel": {"name": "agentvm"}}
        session = await self.ask("POST", "/api/sessions", wanted, status=201)
        book = Book(self, str(session["kernel"]["id"]))
        assert await book.value("1 + 1") == "2"
        return book

    async def news(self, kernel: str, what: str, since: int) -> dict[str, Any]:
        async with asyncio.timeout(TIMEOUT):
            while True:
                for one in self.told[since:]:
                    if (one["kernel_id"], one["what"]) == (kernel, what):
                        return one
                self.arrived.clear()
                await self.arrived.wait()


@dataclass
class Book:
    """An open notebook."""

    page: Page
    kernel: str

    @property
    def path(self) -> str:
        return f"/kernels/{self.kernel}"

    async def run(self, code: str, expression: str = "") -> dict[str, Any]:
        """Run a cell; return its reply's content."""
        client = AsyncKernelClient()
        client.load_connection_file(str(self.page.server.folder.parent / "runtime" / f"kernel-{self.kernel}.json"))
        client.start_channels(hb=False)
        try:
            await client.wait_for_ready(timeout=TIMEOUT)
            wanted = {"it": expression} if expression else {}
            reply = await client.execute_interactive(
                code, timeout=TIMEOUT, output_hook=lambda _: None, user_expressions=wanted
            )
            return dict(reply["content"])
        finally:
            client.stop_channels()

    async def value(self, expression: str) -> str:
        """What an expression is in the VM."""
        return str((await self.run("", expression))["user_expressions"]["it"]["data"]["text/plain"])

    async def machine(self) -> dict[str, Any]:
        return await self.page.ask("GET", self.path)

    async def tree(self) -> dict[str, Any]:
        return await self.page.ask("GET", f"{self.path}/snapshots")


@asynccontextmanager
async def page(running: Jupyter) -> AsyncIterator[Page]:
    headers = {"Authorization": f"token {running.token}"}
    async with (
        aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=600)) as http,
        http.ws_connect(f"{running.url}/api/events/subscribe") as events,
    ):
        opened = Page(running, http)

        async def listen() -> None:
            async for message in events:
                if (told := message.json()).get("schema_id") == EVENT_SCHEMA:
                    opened.told.append(told)
                    opened.arrived.set()

        listening = asyncio.create_task(listen())
        try:
            yield opened
        finally:
            listening.cancel()
            await asyncio.wait([listening])


async def supervisor_pid(paths: Paths) -> int:
    async with SupervisorClient(paths, start=False) as client:
        return (await client.status()).pid


async def lease_of(paths: Paths, book: Book) -> Any:
    async with SupervisorClient(paths, start=False) as client:
        return next(one for one in (await client.status()).leases if one.owner == f"kernel-{book.kernel}")


async def test_each_action_changes_the_vm_and_pages_are_told(paths: Paths, tmp_path: Path) -> None:
    with server(tmp_path, paths) as running:
        async with page(running) as opened:
            book = await opened.open()
            await opened.ask("POST", "/watch", {"kernels": [book.kernel]})
            assert (await opened.news(book.kernel, "stats", 0))["stats"]["memory_cost"] > 1 << 20
            await see_the_machine(paths, book)
            await snapshot_and_go_back(book)
            await fork_and_adopt(book)
            await change_network_and_see_it_refused(paths, book)
            await change_limits_and_see_a_cell_end(book)
            await travel(book)
            await see_output_blocked(book)
            await ask_as_documented(book)
            await restart_and_stop(paths, book)


async def see_the_machine(paths: Paths, book: Book) -> None:
    machine, lease = await book.machine(), await lease_of(paths, book)
    assert (machine["state"], machine["vm"], machine["digest"]) == ("running", lease.vm, lease.image)
    assert (machine["vcpus"], machine["memory_mib"], machine["profile"]) == (1, 512, "test")
    assert machine["age"] > 0
    assert machine["stats"]["cpu_percent"] >= 0
    host = await book.page.ask("GET", "/host")
    assert (host["supervisor"], host["accelerator"]) == ("running", machine["accelerator"])


async def snapshot_and_go_back(book: Book) -> None:
    await book.run("x = 1; open('/tmp/kept', 'w').close()")
    before = len(book.page.told)
    taken = (await book.page.did("POST", f"{book.path}/snapshots", {"label": "one", "text": "it's first"}))["snapshot"]
    await book.page.news(book.kernel, "snapshots", before)
    assert (await book.machine())["snapshot"] == (await book.tree())["current"] == taken
    await book.run("x = 2; import os; os.remove('/tmp/kept')")
    plan = await book.page.ask("POST", f"{book.path}/rollback/plan", {"to": taken})
    assert plan["target"]["label"] == "one"
    assert plan["written"] > 0
    vm, before = (await book.machine())["vm"], len(book.page.told)
    assert (await book.page.did("POST", f"{book.path}/rollback", {"to": taken}))["snapshot"] == taken
    told = await book.page.news(book.kernel, "snapshots", before)
    assert told.get("restored") == taken
    assert await book.value("x, __import__('os').path.exists('/tmp/kept')") == "(1, True)"
    machine = await book.machine()
    assert machine["vm"] != vm
    assert machine["snapshot"] == taken

    await book.run("y = [1, 2]; open('added.txt', 'w').write('four')")
    other = (await book.page.did("POST", f"{book.path}/snapshots", {}))["snapshot"]
    found = await book.page.ask("GET", f"{book.path}/snapshots/{taken}/compare/{other}")
    assert "added.txt" in [one["path"].rpartition("/")[2] for one in found["files"]["added"]]
    assert [one["name"] for one in found["variables"]["added"]] == ["y"]
    await book.run("z = 3")
    found = await book.page.ask("GET", f"{book.path}/snapshots/{other}/compare/present")
    assert [one["name"] for one in found["variables"]["added"]] == ["z"]
    present = (await book.tree())["current"]
    assert found["b"] == present
    await book.page.did("POST", f"{book.path}/rollback", {"to": other})
    await book.page.ask("DELETE", f"{book.path}/snapshots/{present}")
    await book.page.ask("PATCH", f"{book.path}/snapshots/{other}", {"label": "two"})
    assert [one["label"] for one in (await book.tree())["snapshots"]] == ["one", "two"]
    await book.page.did("POST", f"{book.path}/rollback", {"to": "one"})
    assert (await book.page.ask("DELETE", f"{book.path}/snapshots/{other}"))["freed"] > 0
    assert [one["label"] for one in (await book.tree())["snapshots"]] == ["one"]
    taken = (await book.page.did("POST", f"{book.path}/snapshots", {}))["snapshot"]
    await book.page.did("POST", f"{book.path}/rollback", {"to": "one"})
    assert (await book.page.ask("POST", f"{book.path}/snapshots/prune", {"keep": 0}))["removed"] == [taken]


async def fork_and_adopt(book: Book) -> None:
    wanted = {"count": 2, "code": "import os\nmine = os.urandom(4).hex()\nprint(mine)\nmine", "timeout": 60}
    done = await book.page.did("POST", f"{book.path}/fork", wanted)
    (drawn,) = [one for one in done["outputs"] if "text/html" in one["data"]]
    assert await book.value("'mine' in globals()") == "False"
    await book.page.did("POST", f"{book.path}/adopt", {"fork": 2})
    mine = await book.value("mine")
    assert mine.strip("'") in drawn["data"]["text/plain"]


async def change_network_and_see_it_refused(paths: Paths, book: Book) -> None:
    await book.page.did("PUT", f"{book.path}/network", {"allow": ["*.allowed.example"], "deny": ["denied.example:80"]})
    async with SupervisorClient(paths, start=False) as client:
        rules = (await client.network((await lease_of(paths, book)).lease)).rules
    assert {(one.pattern, one.verdict) for one in rules if one.source == "session"} == {
        ("*.allowed.example", "allow"), ("denied.example:80", "deny")
    }  # fmt: skip
    before = len(book.page.told)
    await book.page.ask("POST", "/watch", {"kernels": [book.kernel]})
    await book.run("import socket\ntry: socket.create_connection(('denied.example', 80), 5)\nexcept OSError: pass")
    await book.page.news(book.kernel, "connections", before)
    found = (await book.page.ask("GET", f"{book.path}/connections"))["connections"]
    assert ("denied.example", "refused") in [(one["name"], one["verdict"]) for one in found]
    assert (await book.machine())["network"]["refused"] >= 1


async def change_limits_and_see_a_cell_end(book: Book) -> None:
    await book.page.did("PUT", f"{book.path}/limits", {"cell_deadline": 3})
    assert (await book.machine())["limits"]["cell_deadline"] == 3
    ended = await book.run("import time; time.sleep(100)")
    assert ended["status"] == "error"
    await book.page.did("PUT", f"{book.path}/limits", {"cell_deadline": 300})
    refused = await book.page.ask("PUT", f"{book.path}/limits", {"user_memory_mib": 4096})
    assert (refused["status"], refused["error"]["code"]) == ("error", "limit")


async def travel(book: Book) -> None:
    await book.page.did("PUT", f"{book.path}/timetravel", {"on": True})
    assert (await book.machine())["travelling"] is True
    known = {one["id"] for one in (await book.tree())["snapshots"]}
    await book.run("travelled = 1")
    fresh = [one for one in (await book.tree())["snapshots"] if one["id"] not in known]
    assert [(one["kind"], one["cell"]["code"]) for one in fresh] == [("auto", "travelled = 1")]
    await book.page.did("PUT", f"{book.path}/timetravel", {"on": False})
    assert (await book.machine())["travelling"] is False


async def see_output_blocked(book: Book) -> None:
    before = len(book.page.told)
    await book.page.ask("POST", "/watch", {"kernels": [book.kernel]})
    await book.run("from IPython.display import display; display({'application/x-unknown': 'x'}, raw=True)")
    await book.page.news(book.kernel, "blocked", before)
    (blocked,) = (await book.page.ask("GET", f"{book.path}/blocked"))["blocked"]
    assert (blocked["reason"], blocked["count"], blocked["cell"] > 0) == ("mime", 1, True)
    assert (await book.machine())["blocked"] == 1


async def ask_as_documented(book: Book) -> None:
    """Do what server.md shows."""
    own = f"tests/vm/{Path(__file__).name}"
    (block,) = [one for one in all_blocks("run by") if (one.page.name, one.word) == ("server.md", own)]
    (command,) = block.commands({})
    server = book.page.server
    process = await asyncio.create_subprocess_exec(
        "bash", "-c", command.replace("http://127.0.0.1:8888", server.url), stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"TOKEN": server.token, "KERNEL": book.kernel},
    )  # fmt: skip
    answer = json.loads((await process.communicate())[0])
    assert list(answer) == re.findall(r'"(\w+)":', block.text.splitlines()[1])
    assert answer["status"] == "ok"
    assert "loaded" in [one["label"] for one in (await book.tree())["snapshots"]]


async def restart_and_stop(paths: Paths, book: Book) -> None:
    await book.run("x = 5")
    vm = (await book.machine())["vm"]
    await book.page.did("POST", f"{book.path}/vm", {"do": "restart"})
    assert await book.value("'x' in globals()") == "False"
    assert (await book.machine())["vm"] != vm
    await book.page.did("POST", f"{book.path}/vm", {"do": "stop"})
    assert (await book.machine())["state"] == "ended"
    async with SupervisorClient(paths, start=False) as client:
        assert (await client.status()).leases == ()
    refused = await book.page.ask("GET", f"{book.path}/snapshots", status=404)
    assert (refused["code"], "%vm restart" in refused["hint"]) == ("no_lease", True)


async def test_notebooks_are_apart_and_survive_restarts_of_kernels_servers_and_supervisors(
    paths: Paths, tmp_path: Path
) -> None:
    with server(tmp_path, paths) as running:
        async with page(running) as opened:
            one, two = await opened.open("one.ipynb"), await opened.open("two.ipynb")
            await one.run("x = 'one'")
            await two.run("x = 'two'")
            await opened.did("POST", f"{one.path}/snapshots", {"label": "kept"})
            assert (await two.tree())["snapshots"] == []
            await one.run("x = 'lost'")
            untouched = (await two.machine())["vm"]
            await opened.did("POST", f"{one.path}/rollback", {"to": "kept"})
            assert (await one.value("x"), await two.value("x")) == ("'one'", "'two'")
            assert (await two.machine())["vm"] == untouched

            vm = (await two.machine())["vm"]
            await opened.ask("POST", f"/api/kernels/{two.kernel}/restart", {})
            assert await two.value("'x' in globals()") == "False"
            assert (await two.machine())["vm"] != vm
            await opened.did("POST", f"{two.path}/snapshots", {"label": "again"})

            await opened.ask("POST", "/watch", {"kernels": [one.kernel]})
            await opened.news(one.kernel, "stats", 0)
            before = len(opened.told)
            os.kill(await supervisor_pid(paths), signal.SIGKILL)
            await opened.news(one.kernel, "gone", before)
            machine = await one.machine()
            assert machine["state"] == "none"
            assert "%vm restart" in machine["text"]
            refused = await opened.ask("POST", f"{one.path}/rollback/plan", {"to": "kept"}, status=503)
            assert refused["code"] == "supervisor"
            await opened.did("POST", f"{one.path}/vm", {"do": "restart"})
            await opened.did("POST", f"{one.path}/rollback", {"to": "kept"})
            assert await one.value("x") == "'one'"
            await opened.ask("POST", "/watch", {"kernels": [one.kernel]})
            await opened.news(one.kernel, "stats", len(opened.told))
    with server(tmp_path, paths) as running:
        async with page(running) as opened:
            await opened.ask("GET", f"/kernels/{one.kernel}", status=404)
            one = await opened.open("one.ipynb")
            assert await one.value("'x' in globals()") == "False"
            assert [snapshot["label"] for snapshot in (await one.tree())["snapshots"]] == ["kept"]
            await opened.did("POST", f"{one.path}/rollback", {"to": "kept"})
            assert await one.value("x") == "'one'"
