"""The servers of the tests' internet, and their name server. All record who asked them for what."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import asyncssh
import dnslib
from aiohttp import web
from wares import Shelf, make_repository, many_bytes, shelf

_TRICKLE = 64 << 10
_TRICKLE_EVERY = 0.02

Zone = dict[str, Callable[[], list[str]]]
"""What gives a name's addresses, asked at each look-up."""


@dataclass(frozen=True)
class Request:
    """A request that has reached a web server.

    Attributes:
        address: Which of the internet's addresses it came to.
        port: And which port.
        method: The method.
        host: What it said in its Host header.
        path: Path and query.
        headers: All its headers, with names in lower case.
    """

    address: str
    port: int
    method: str
    host: str
    path: str
    headers: dict[str, str]


class NameServer(asyncio.DatagramProtocol):
    """Answers for a zone; what is not in it does not exist.

    Args:
        zone: Its names.
    """

    def __init__(self, zone: Zone) -> None:
        self.zone = zone
        self.asked: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, sender: tuple[str, int]) -> None:
        query = dnslib.DNSRecord.parse(data)
        name, kind = str(query.q.qname).rstrip(".").lower(), dnslib.QTYPE[query.q.qtype]
        # Libvirt looks its host's own name up.
        if name != socket.gethostname():
            self.asked.append(f"{kind} {name}")
        reply = query.reply()
        if name not in self.zone:
            reply.header.rcode = dnslib.RCODE.NXDOMAIN
        elif kind in {"A", "AAAA"}:
            version, record = (4, dnslib.A) if kind == "A" else (6, dnslib.AAAA)
            for address in self.zone[name]():
                if ip_address(address).version == version:
                    reply.add_answer(
                        dnslib.RR(query.q.qname, query.q.qtype, ttl=0, rdata=record(tuple(ip_address(address).packed)))
                    )
        self._transport.sendto(reply.pack(), sender)  # type: ignore[attr-defined]


class WebServer:
    """Every web site of the internet in one: what it answers depends on the Host header and the path.

    What lies on the shelf, git's smart protocol below ``/acme``, ``/bytes/N``, ``/trickle`` (never ends), ``/socket``
    (a WebSocket echo), ``/headers`` (the request's), ``/to?URL`` (a redirect), else a line that says who was reached.

    Args:
        repositories: The folder of git's repositories.
    """

    def __init__(self, repositories: Path) -> None:
        self._repositories = repositories
        self._shelf: Shelf = shelf()
        self.requests: list[Request] = []
        self.names: list[str | None] = []
        """Server names of the TLS handshakes."""
        self.active: Counter[str] = Counter()
        """Requests that are being answered, by path."""

    def server(self) -> web.Server[web.BaseRequest]:
        """What speaks HTTP; in the event loop's thread."""
        return web.Server(self._answer, access_log=None)

    def note_name(self, _socket: ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> None:
        self.names.append(name)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        assert request.transport is not None
        address, port = request.transport.get_extra_info("sockname")[:2]
        headers = {name.lower(): value for name, value in request.headers.items()}
        seen = Request(address, port, request.method, request.host, request.path_qs, headers)
        self.requests.append(seen)
        with self._counted(request.path):
            return await self._respond(request)

    @contextlib.contextmanager
    def _counted(self, path: str) -> Iterator[None]:
        self.active[path] += 1
        try:
            yield
        finally:
            self.active[path] -= 1

    async def _respond(self, request: web.BaseRequest) -> web.StreamResponse:
        first, _, rest = request.path[1:].partition("/")
        match first:
            case "acme":
                return await self._git(request, *rest.split("/", 1))
            case "bytes":
                return await _stream(request, many_bytes(int(rest)), int(rest))
            case "trickle":
                return await _trickle(request)
            case "headers":
                return web.json_response(dict(request.headers))
            case "socket":
                return await _echo(request)
        size = 0
        # Not `read`, which takes no more than 1 MiB.
        async for block in request.content.iter_any():
            size += len(block)
        return self._lying_ready(request, size)

    def _lying_ready(self, request: web.BaseRequest, size: int) -> web.Response:
        found = self._shelf.get((request.host, request.path))
        if found is not None:
            return web.Response(body=found[1], content_type=found[0])
        if request.path == "/to":
            return web.Response(status=302, headers={"Location": request.query_string})
        if request.host in {host for host, _ in self._shelf}:
            return web.Response(status=404)
        return web.Response(text=f"reached {request.host}{request.path} with {size} bytes\n")

    async def _git(self, request: web.BaseRequest, repository: str, rest: str) -> web.Response:
        """Git's smart protocol, its version 0 (gitprotocol-http(5))."""
        options, service = ["--stateless-rpc"], "git-upload-pack"
        head = b""
        if rest == "info/refs":
            options.append("--http-backend-info-refs")
            line = f"# service={service}\n".encode()
            head = b"%04x%s0000" % (len(line) + 4, line)
        target = self._repositories / "acme" / repository
        process = await asyncio.create_subprocess_exec(
            service, *options, str(target), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate(await request.read())
        kind = "advertisement" if head else "result"
        return web.Response(body=head + out, content_type=f"application/x-{service}-{kind}")


async def _stream(request: web.BaseRequest, blocks: Iterator[bytes], size: int) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": str(size)})
    await response.prepare(request)
    for block in blocks:
        await response.write(block)
    return response


async def _trickle(request: web.BaseRequest) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b"x" * _TRICKLE)
        await asyncio.sleep(_TRICKLE_EVERY)


async def _echo(request: web.BaseRequest) -> web.WebSocketResponse:
    response = web.WebSocketResponse()
    await response.prepare(request)
    async for message in response:
        await response.send_str(f"echo {message.data}")
    return response


class RawServer:
    """Answers ``200`` to whatever comes, and keeps every byte: what a stricter server would refuse is not missed."""

    def __init__(self) -> None:
        self.received = b""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                self.received += data
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\ncaught\n")
                await writer.drain()
        writer.close()


async def serve_git(repositories: Path, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Speak git's own protocol to one client."""
    process = await asyncio.create_subprocess_exec(
        "git", "daemon", "--inetd", "--export-all", f"--base-path={repositories}", str(repositories),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(ConnectionError):
        await asyncio.gather(_pump(reader, process.stdin), _pump(process.stdout, writer))
    await process.wait()


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while data := await source.read(65536):
        target.write(data)
        await target.drain()
    target.close()


class _AnyUser(asyncssh.SSHServer):
    def begin_auth(self, _username: str) -> bool:
        return False


@asynccontextmanager
async def ssh_server(repositories: Path, sockets: list[Any]) -> AsyncIterator[None]:
    """Run git's side of ssh on listening sockets; everybody may log in, and clone."""

    async def handle(process: asyncssh.SSHServerProcess[bytes]) -> None:
        name = (process.command or "").removeprefix("git-upload-pack ").strip("'").lstrip("/")
        child = await asyncio.create_subprocess_exec(
            "git-upload-pack", str(repositories / name),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        await process.redirect(stdin=child.stdin, stdout=child.stdout)
        process.exit(await child.wait())
        await process.wait_closed()

    key = asyncssh.generate_private_key("ssh-ed25519")
    async with contextlib.AsyncExitStack() as stack:
        for listening in sockets:
            server = await asyncssh.listen(
                sock=listening, server_factory=_AnyUser, server_host_keys=[key], process_factory=handle, encoding=None
            )
            await stack.enter_async_context(server)
        yield


__all__ = ["NameServer", "RawServer", "Request", "WebServer", "Zone", "make_repository", "serve_git", "ssh_server"]
