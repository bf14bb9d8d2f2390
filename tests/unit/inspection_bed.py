"""An inspection between real sockets: programs on one side, a host with a test authority's certificate on the other."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import trustme
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult

from agentvm_kernel.egress.access import Access
from agentvm_kernel.egress.authority import Authority
from agentvm_kernel.egress.inspection import Inspection
from agentvm_kernel.egress.meter import Meter
from agentvm_kernel.egress.names import Pattern
from agentvm_kernel.egress.policy import Decision, Policy, Rule
from agentvm_kernel.egress.secrets import SecretStore
from agentvm_kernel.errors import AgentVMError, LinkClosedError, LinkError

NAME = "api.example.org"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class SocketChannel:
    """A `Channel` over a socket, as the tunnel's are over a stream."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def receive(self) -> bytes:
        try:
            return await self._reader.read(1 << 16)
        except ConnectionError as error:
            raise LinkClosedError("The connection was reset.") from error

    async def send(self, data: bytes) -> None:
        try:
            self._writer.write(data)
            await self._writer.drain()
        except ConnectionError as error:
            raise LinkClosedError("The connection was reset.") from error

    async def send_eof(self) -> None:
        try:
            self._writer.write_eof()
        except OSError as error:
            raise LinkClosedError("The connection was reset.") from error

    def close(self) -> None:
        self._writer.close()


class _Here(AbstractResolver):
    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [ResolveResult(hostname=host, host="127.0.0.1", port=port, family=socket.AF_INET, proto=0, flags=0)]

    async def close(self) -> None:
        pass


@dataclass
class Bed:
    """What a test works with.

    Attributes:
        folder: The state folder.
        port: The port that programs connect to.
        host_port: The port of the host's server.
        access: The lease.
        secrets: The user's secrets, of the host at ``port``.
        inspection: What is tested.
        errors: How connections ended that did not end well.
        plain: Nobody speaks TLS.
        connected: How often the host was connected to.
        hits: Requests that reached the host: path and headers.
        serving: One task for each connection.
    """

    folder: Path
    port: int
    host_port: int
    access: Access
    secrets: SecretStore
    inspection: Inspection
    errors: list[Exception] = field(default_factory=list)
    plain: bool = False
    connected: int = 0
    hits: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    serving: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"{'http' if self.plain else 'https'}://{NAME}:{self.port}"

    @property
    def decision(self) -> Decision:
        rule = Rule(Pattern.parse(f"{NAME}:{self.port}"), inspect=True)
        return Decision(NAME, self.port, True, rule, "Allowed by the test.")

    def trust(self) -> ssl.SSLContext:
        """Return what a program in the guest trusts."""
        return ssl.create_default_context(cadata=Authority.of(self.folder).pem)

    @asynccontextmanager
    async def program(self) -> AsyncIterator[aiohttp.ClientSession]:
        """A program in the guest."""
        connector = aiohttp.TCPConnector(ssl=self.trust(), resolver=_Here())
        async with aiohttp.ClientSession(self.url, connector=connector) as session:
            yield session

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream: list[asyncio.StreamWriter] = []
        task = asyncio.current_task()
        assert task is not None
        self.serving.append(task)

        async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            self.connected += 1
            streams = await asyncio.open_connection("127.0.0.1", self.host_port)
            upstream.append(streams[1])
            return streams

        channel = SocketChannel(reader, writer)
        try:
            if self.plain:
                await self.inspection.serve_plain(self.access, self.decision, Meter(channel, self.access), connect)
            else:
                await self.inspection.serve(self.access, self.decision, channel, connect)
        except LinkError:
            pass
        except (AgentVMError, OSError) as error:
            self.errors.append(error)
        finally:
            for one in (*upstream, writer):
                one.close()


@asynccontextmanager
async def inspecting(
    folder: Path, handler: Handler, *, certified: str = NAME, trusted: bool = True, plain: bool = False
) -> AsyncIterator[Bed]:
    """Everything around one inspection.

    Args:
        folder: The state folder.
        handler: What the host answers.
        certified: The name on the host's certificate.
        plain: Whether all speak HTTP without TLS.
        trusted: Whether the gateway trusts who signed it.
    """
    authority = trustme.CA()
    trust = ssl.create_default_context()
    if trusted:
        authority.configure_trust(trust)
    secrets = SecretStore(folder, "tag")
    bed = Bed(folder, 0, 0, Access("s", "n", "vm", Policy()), secrets, Inspection(Authority.of(folder), secrets, trust))
    bed.plain = plain

    async def noted(request: web.Request) -> web.StreamResponse:
        bed.hits.append((request.path_qs, dict(request.headers)))
        return await handler(request)

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(certified).configure_cert(context)
    runner = web.AppRunner(_application(noted), shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=None if plain else context)
    await site.start()
    assert site._server is not None
    bed.host_port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    server = await asyncio.start_server(bed.serve, "127.0.0.1", 0)
    bed.port = server.sockets[0].getsockname()[1]
    try:
        yield bed
    finally:
        server.close()
        await asyncio.gather(*bed.serving)
        await runner.cleanup()


def _application(handler: Handler) -> web.Application:
    application = web.Application(client_max_size=64 << 20)
    application.router.add_route("*", "/{path:.*}", handler)
    return application
