"""A real Jupyter server with the server extension in this process; its kernels run over a fake supervisor."""

from __future__ import annotations

import asyncio
import io
import json
import secrets
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from fake_supervisor import FakeSupervisor
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_server.serverapp import ServerApp

from agentvm_kernel.config import Paths
from agentvm_kernel.server.news import EVENT_SCHEMA

TIMEOUT = 60.0


@dataclass
class Answer:
    """What was answered."""

    status: int
    body: dict[str, Any]


@dataclass
class ServerBed:
    """The server, and a page of it.

    Attributes:
        url: The server's address, with its base URL.
        token: Who knows it may do everything.
        app: The server.
        supervisor: What its kernels lease from.
        http: The page's connection.
        told: Events that the page was told.
        arrived: Set whenever one comes.
    """

    url: str
    token: str
    app: ServerApp
    supervisor: FakeSupervisor
    http: aiohttp.ClientSession
    told: list[dict[str, Any]] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def ask(
        self,
        verb: str,
        path: str,
        body: object = None,
        *,
        headers: dict[str, str] | None = None,
        raw: bytes | None = None,
    ) -> Answer:
        """Ask as the page does; `headers` in place of its token."""
        data = None if raw is None and body is None else io.BytesIO(json.dumps(body).encode() if raw is None else raw)
        own = {"Authorization": f"token {self.token}"} if headers is None else headers
        async with self.http.request(verb, f"{self.url}agentvm/api{path}", data=data, headers=own) as response:
            text = await response.text()
            return Answer(response.status, json.loads(text) if text.startswith("{") else {"text": text})

    async def kernel(self, name: str = "agentvm") -> str:
        """Start a kernel, and return its id once it runs cells."""
        kernel = str(await self.app.kernel_manager.start_kernel(kernel_name=name))
        await self.run(kernel, "1")
        return kernel

    def client(self, kernel: str) -> AsyncKernelClient:
        """Return a client, as a notebook has one."""
        client = AsyncKernelClient()
        client.load_connection_info(self.app.kernel_manager.get_kernel(kernel).get_connection_info(session=False))
        return client

    async def run(self, kernel: str, code: str) -> dict[str, Any]:
        """Run a cell as a notebook does, and return its reply."""
        client = self.client(kernel)
        client.start_channels(hb=False)
        try:
            await client.wait_for_ready(timeout=TIMEOUT)
            return dict(await client.execute_interactive(code, timeout=TIMEOUT, output_hook=lambda _: None))
        finally:
            client.stop_channels()

    async def news(self, kernel: str, what: str, since: int = 0) -> dict[str, Any]:
        """Return the first event of a kind after so many others, once it has come."""
        async with asyncio.timeout(TIMEOUT):
            while True:
                for one in self.told[since:]:
                    if (one["kernel_id"], one["what"]) == (kernel, what):
                        return one
                self.arrived.clear()
                await self.arrived.wait()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for something that nobody tells of."""
        async with asyncio.timeout(TIMEOUT):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@asynccontextmanager
async def server_bed(folder: Path) -> AsyncIterator[ServerBed]:
    """Run it within the context, with all folders below `folder`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AGENTVM_STATE_DIR", str(folder / "s"))
        patch.setenv("AGENTVM_IMAGE", "minimal")
        for kind in ("CONFIG", "DATA", "RUNTIME"):
            patch.setenv(f"JUPYTER_{kind}_DIR", str(folder / kind.lower()))
        patch.setenv("JUPYTER_PATH", str(folder / "path"))
        patch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
        _kernelspec(folder / "path", "agentvm", "agentvm_kernel")
        _kernelspec(folder / "path", "plain", "ipykernel_launcher")
        async with (
            FakeSupervisor(Paths.of_user()) as supervisor,
            _served(folder) as (app, url, token),
            aiohttp.ClientSession() as http,
            http.ws_connect(f"{url}api/events/subscribe?token={token}") as events,
        ):
            bed = ServerBed(url, token, app, supervisor, http)
            listener = asyncio.create_task(_listen(bed, events))
            try:
                yield bed
            finally:
                listener.cancel()
                await asyncio.wait([listener])


@asynccontextmanager
async def _served(folder: Path) -> AsyncIterator[tuple[ServerApp, str, str]]:
    token, port = secrets.token_hex(16), _free_port()
    app = ServerApp.instance(
        ip="127.0.0.1", port=port, port_retries=0, base_url="/base/", open_browser=False, allow_root=True,
        root_dir=str(folder), jpserver_extensions={"agentvm_kernel.server": True}, log_level=50,
    )  # fmt: skip
    app.config.IdentityProvider.token = token
    try:
        app.initialize(argv=[], find_extensions=False)
        bound = asyncio.Event()
        app.io_loop.add_callback(bound.set)  # behind the one that binds the port
        await bound.wait()
        yield app, f"http://127.0.0.1:{port}/base/", token
    finally:
        await app._cleanup()
        app.http_server.stop()
        ServerApp.clear_instance()


def _kernelspec(path: Path, name: str, module: str) -> None:
    place = path / "kernels" / name
    place.mkdir(parents=True)
    argv = [sys.executable, "-m", module, "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": name, "language": "python", "interrupt_mode": "message"}
    (place / "kernel.json").write_text(json.dumps(spec))


async def _listen(bed: ServerBed, events: aiohttp.ClientWebSocketResponse) -> None:
    async for message in events:
        told = message.json()
        if told.get("schema_id") == EVENT_SCHEMA:
            bed.told.append({key: told[key] for key in ("kernel_id", "what", "stats", "restored") if key in told})
            bed.arrived.set()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


__all__ = ["Answer", "ServerBed", "server_bed"]
