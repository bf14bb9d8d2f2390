"""A small world for a supervisor under test: its host, the internet, a private neighbour, a metadata service.

    internet -- 45.55.0.0/16, 2600:55::/64 -- host -- 10.99.0.0/24, 100.64.0.0/10, fd99::/64 -- neighbour
                                                \\-- 169.254.0.0/16, fd00:ec2::/64 -- metadata

Each is a network namespace. The addresses of the internet look public and are made up: nothing leads out of here.
Whoever is spoken to is noted, by servers (what they were asked) and by wire-taps (every packet that is new).
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import trustme
from internet_servers import NameServer, RawServer, Request, WebServer, make_repository, serve_git, ssh_server
from namespaces import Knock, Namespace, Wiretap, etc_folder
from vms import own_supervisor

from agentvm_kernel.blocking import LoopThread
from agentvm_kernel.config import Paths

NAME_SERVER = "45.55.0.53"
GOOD, OTHER, EVIL, RAW = "45.55.0.20", "45.55.0.21", "45.55.0.66", "45.55.0.30"
SITES = {
    "pypi.org": "45.55.0.10",
    "files.pythonhosted.org": "45.55.0.11",
    "registry.npmjs.org": "45.55.0.12",
    "github.com": "45.55.0.13",
    "deb.debian.org": "45.55.0.14",
    "good.example.org": GOOD,
    "other.example.org": OTHER,
    "raw.example.org": RAW,
    "evil.example.net": EVIL,
}
HOST, NEIGHBOUR, METADATA = "45.55.0.1", "10.99.0.7", "169.254.169.254"
FORBIDDEN = {
    "loopback": ["127.0.0.1"],
    "loopback-other": ["127.8.8.8"],
    "zero": ["0.0.0.0"],
    "host": [HOST],
    "host-private": ["10.99.0.1"],
    "private": [NEIGHBOUR],
    "shared": ["100.64.0.7"],
    "metadata": [METADATA],
    "multicast": ["224.0.0.1"],
    "broadcast": ["255.255.255.255"],
    "benchmark": ["198.18.0.7"],
    "loopback6": ["::1"],
    "host6": ["2600:55::1"],
    "private6": ["fd99::7"],
    "metadata6": ["fd00:ec2::254"],
    "mapped": [f"::ffff:{METADATA}"],
    "mapped-private": [f"::ffff:{NEIGHBOUR}"],
    "nat64": ["64:ff9b::a9fe:a9fe"],
    "6to4": ["2002:a9fe:a9fe::1"],
    "mixed": [NEIGHBOUR, METADATA],
}
"""Addresses that nobody in a VM may reach; ``to-NAME.example.org`` leads to each."""

PORTS = (22, 80, 443, 8080, 9418)
CAUGHT = b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nCAUGHT\n"
STARTED_WITHIN = 60.0
_World = TypeVar("_World", bound="Internet")


class Internet:
    """The world; use `internet` to have one.

    Attributes:
        host: Where the supervisor runs.
        web: The web sites.
        raw: The server behind ``raw.example.org``, port 80.
        names: The name server.
        authority: Certificates of the web sites are signed by it: a PEM text.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.host, self._world = Namespace("host"), Namespace("internet")
        self._neighbour, self._metadata = Namespace("neighbour"), Namespace("metadata")
        self._namespaces = (self.host, self._world, self._neighbour, self._metadata)
        self._lay_cables()
        self.etc = etc_folder(folder / "etc", NAME_SERVER)
        repositories = folder / "git"
        make_repository(repositories)
        self._repositories = repositories
        authority = trustme.CA()
        self.authority = authority.cert_pem.bytes().decode()
        self.web, self.raw = WebServer(repositories), RawServer()
        self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._tls.set_alpn_protocols(["http/1.1"])
        authority.issue_cert(*SITES, "rebound.example.org").configure_cert(self._tls)
        self._tls.sni_callback = self.web.note_name
        self._looked_up = 0
        self.names = NameServer(
            {name: partial(list, [address]) for name, address in SITES.items()}
            | {f"to-{name}.example.org": partial(list, addresses) for name, addresses in FORBIDDEN.items()}
            | {"rebound.example.org": self._rebind}
        )
        self._taps = [
            Wiretap(self._world),
            Wiretap(self._neighbour),
            Wiretap(self._metadata),
            Wiretap(self.host, "lo"),
        ]
        self._knocks: list[Knock] = []

    def _lay_cables(self) -> None:
        addresses = sorted({NAME_SERVER, *SITES.values()})
        self.host.join(
            self._world,
            (f"{HOST}/16", "2600:55::1/64"),
            ("45.55.0.2/16", "2600:55::2/64", *(f"{one}/16" for one in addresses)),
        )
        self.host.join(
            self._neighbour, ("10.99.0.1/24", "fd99::1/64"), (f"{NEIGHBOUR}/24", "100.64.0.7/10", "fd99::7/64")
        )
        self.host.join(self._metadata, ("169.254.0.1/16", "fd00:ec2::1/64"), (f"{METADATA}/16", "fd00:ec2::254/64"))
        self.host.ip("route", "add", "default", "via", "45.55.0.2")
        self.host.ip("route", "add", "default", "via", "2600:55::2")
        self.host.ip("route", "add", "100.64.0.0/10", "via", NEIGHBOUR)

    def _rebind(self) -> list[str]:
        """A name that leads somewhere good when it is first looked up, and then to a neighbour."""
        self._looked_up += 1
        # A look-up asks twice, for IPv4 and for IPv6.
        return [GOOD] if self._looked_up <= 2 else [NEIGHBOUR]

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Run all servers; in the event loop's thread."""
        loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            listening = partial(self._world.inside)
            name_socket = listening(lambda: _bound(socket.SOCK_DGRAM, NAME_SERVER, 53))
            transport, _ = await loop.create_datagram_endpoint(lambda: self.names, sock=name_socket)
            stack.callback(transport.close)
            web = self.web.server()
            stack.push_async_callback(web.shutdown, 1)
            for port, tls in ((80, None), (443, self._tls), (8080, None)):
                for one in listening(partial(_wildcards, port)):
                    server = await loop.create_server(web, sock=one, ssl=tls, backlog=4096)
                    stack.push_async_callback(_closed, server)
            await stack.enter_async_context(ssh_server(self._repositories, listening(partial(_wildcards, 22))))
            git = partial(serve_git, self._repositories)
            for one in listening(partial(_wildcards, 9418)):
                await self._start(stack, git, one)
            await self._start(stack, self.raw.serve, listening(partial(_bound, socket.SOCK_STREAM, RAW, 80)))
            for place in (self.host, self._neighbour, self._metadata):
                for port in PORTS:
                    for one in place.inside(partial(_wildcards, port)):
                        await self._start(stack, _catch, one)
            yield

    async def _start(
        self,
        stack: AsyncExitStack,
        serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
        listening: socket.socket,
    ) -> None:
        stack.push_async_callback(_closed, await asyncio.start_server(serve, sock=listening))

    @property
    def knocks(self) -> list[Knock]:
        """Whoever wanted something of anybody, but of the name server, in their order."""
        for tap in self._taps:
            self._knocks += tap.read()
        return [one for one in self._knocks if (one.address, one.port) != (NAME_SERVER, 53)]

    @property
    def trespasses(self) -> list[Knock]:
        """Who was spoken to without being a site of the internet: must be empty, whatever a VM tries."""
        allowed = set(SITES.values()) - {EVIL}
        return [one for one in self.knocks if one.place != "internet" or one.address not in allowed]

    def requests(self, address: str = "") -> list[Request]:
        """What the web servers were asked for, at one address or at all."""
        return [one for one in self.web.requests if address in {"", one.address}]

    def forget(self) -> None:
        """Begin all records anew."""
        self.knocks.clear()
        self._knocks.clear()
        self.web.requests.clear()
        self.web.names.clear()
        self.names.asked.clear()
        self.raw.received = b""
        self._looked_up = 0

    def command(self, *argv: str) -> list[str]:
        """The command that runs another one on the host, with its name server."""
        return self.host.command(*argv, etc=self.etc)

    @contextmanager
    def supervised(self, config: str = "") -> Iterator[Paths]:
        """Run a supervisor, and so its QEMUs, on the host.

        Args:
            config: What its configuration has besides the tests' own.
        """
        with own_supervisor(config) as paths:
            # Another one, started on demand when this has left, would run outside.
            paths.config.write_text(paths.config.read_text().replace("idle_exit = 120", "idle_exit = 100000"))
            paths.runtime.mkdir(mode=0o711)
            with self.supervisor(paths):
                yield paths

    @contextmanager
    def supervisor(self, paths: Paths) -> Iterator[None]:
        """Run a supervisor on the host, in folders that are there; it may have been killed meanwhile."""
        process = self._start_supervisor(paths)
        try:
            yield
        finally:
            process.terminate()
            process.wait(STARTED_WITHIN)

    def python(self) -> tuple[list[str], dict[str, str]]:
        """The Python that the supervisor runs in, and its environment; it ends even with tests that are killed."""
        return ["setpriv", "--pdeathsig", "TERM", sys.executable], dict(os.environ)

    def _start_supervisor(self, paths: Paths) -> subprocess.Popen[bytes]:
        receiver, sender = os.pipe()
        python, environment = self.python()
        command = self.command(*python, "-m", "agentvm_kernel.supervisor", "--ready-fd", str(sender))
        with paths.log.open("ab") as log:
            process = subprocess.Popen(
                command,
                env={**environment, **paths.environment},
                pass_fds=(sender,),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        os.close(sender)
        with os.fdopen(receiver, "rb") as ready:
            assert ready.read() == b"1", paths.log.read_text()
        return process

    def close(self) -> None:
        for tap in self._taps:
            tap.close()
        for namespace in self._namespaces:
            namespace.close()


@contextmanager
def internet(kind: Callable[[Path], _World] = Internet) -> Iterator[_World]:  # type: ignore[assignment]
    """Make a world, let its servers run, and leave nothing of it behind.

    Args:
        kind: Makes it, in a folder that is empty.
    """
    folder = Path(tempfile.mkdtemp(prefix="avm-net-"))
    try:
        ours = kind(folder)
        try:
            with LoopThread() as thread:
                serving = ours.serving()
                thread.call(serving.__aenter__())
                try:
                    yield ours
                finally:
                    thread.call(serving.__aexit__(None, None, None))
        finally:
            ours.close()
    finally:
        shutil.rmtree(folder)


def _bound(kind: int, address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    bound = socket.socket(family, kind)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # So one address of the internet can have another server than all the others.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if family == socket.AF_INET6:
        bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    bound.bind((address, port))
    bound.setblocking(False)
    return bound


def _wildcards(port: int) -> list[socket.socket]:
    return [_bound(socket.SOCK_STREAM, address, port) for address in ("0.0.0.0", "::")]


async def _catch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(CAUGHT)
    await writer.drain()
    writer.close()


async def _closed(server: asyncio.Server) -> None:
    server.close()
