"""A gateway over loopback, and a guest's connection to it, for the tests."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from agentvm_kernel.egress.access import Access, AccessLimits
from agentvm_kernel.egress.addresses import Forbidden, parse_reachable
from agentvm_kernel.egress.channel import Opening
from agentvm_kernel.egress.gateway import Gateway, GatewayLimits
from agentvm_kernel.egress.log import ConnectionLog
from agentvm_kernel.egress.names import Pattern
from agentvm_kernel.egress.policy import Policy, Rule
from agentvm_kernel.egress.record import Connection
from agentvm_kernel.egress.resolver import Found, Resolver
from agentvm_kernel.errors import LinkError

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
NAME = "good.example"
POLICY = Policy().plus([Rule(Pattern.parse(f"{NAME}:22,80,443,5000,9418"))])


class GuestChannel:
    """Both ends of a guest's connection, in memory."""

    def __init__(self) -> None:
        self._from_guest: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.to_guest = bytearray()
        self.changed = asyncio.Event()
        self.eof = False
        self.closed = False
        self._ended = False

    async def receive(self) -> bytes:
        if self._ended:
            return b""
        data = await self._from_guest.get()
        if data is None:
            raise LinkError("The guest has reset the connection.")
        self._ended = not data
        return data

    async def send(self, data: bytes) -> None:
        assert data
        assert not self.closed
        self.to_guest += data
        self.changed.set()

    async def send_eof(self) -> None:
        assert not self.eof
        self.eof = True
        self.changed.set()

    def close(self) -> None:
        self.closed = True
        self.changed.set()

    @property
    def orderly(self) -> bool:
        return self.closed and self.eof and self._ended

    def say(self, data: bytes) -> None:
        self._from_guest.put_nowait(data)

    def end(self) -> None:
        self._from_guest.put_nowait(b"")

    def reset(self) -> None:
        self._from_guest.put_nowait(None)

    async def heard(self, wanted: bytes) -> bytes:
        async with asyncio.timeout(20):
            while wanted not in self.to_guest:
                assert not self.closed, bytes(self.to_guest)
                self.changed.clear()
                await self.changed.wait()
        return bytes(self.to_guest)

    async def ended(self) -> bytes:
        async with asyncio.timeout(20):
            while not (self.eof or self.closed):
                self.changed.clear()
                await self.changed.wait()
        return bytes(self.to_guest)


class Bed:
    """A gateway whose one known host is a server on loopback, under every port's number."""

    def __init__(self, folder: Path, reachable: tuple[str, ...], **limits: float | int) -> None:
        self.verdicts: list[Connection] = []
        self.log = ConnectionLog(folder, self.verdicts.append)
        self.looked_up: list[str] = []
        self.accepted = 0
        self.addresses: list[tuple[str, int]] = []
        self.resolver = Resolver(self._lookup)
        self.gateway = Gateway(
            self.log, self.resolver, Forbidden(parse_reachable(reachable)), replace(GatewayLimits(), **limits)
        )
        self.access = Access("session", "book", "vm-1", POLICY, AccessLimits())
        self.tasks: list[asyncio.Task[None]] = []

    def _lookup(self, name: str, port: int) -> list[Found]:
        self.looked_up.append(name)
        if not self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return [
            (socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, number))
            for host, number in self.addresses
        ]

    def open(self, port: int, name: str | None = NAME, said: bytes = b"", address: str = "198.18.0.7") -> GuestChannel:
        channel = GuestChannel()
        if said:
            channel.say(said)
        task = asyncio.ensure_future(self.gateway.serve(self.access, Opening(name, address, port), channel))
        self.tasks.append(task)
        return channel

    async def done(self) -> list[Connection]:
        async with asyncio.timeout(30):
            await asyncio.gather(*self.tasks)
        return self.log.of("session")

    async def only(self) -> Connection:
        (connection,) = await self.done()
        return connection


@asynccontextmanager
async def bed(
    folder: Path, serve: Serve, reachable: tuple[str, ...] = ("127.0.0.1",), **limits: float | int
) -> AsyncIterator[Bed]:
    made = Bed(folder / "connections", reachable, **limits)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        made.accepted += 1
        try:
            await serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    made.addresses = [server.sockets[0].getsockname()[:2]]
    try:
        yield made
    finally:
        server.close()
        for task in made.tasks:
            task.cancel()
        await asyncio.gather(*made.tasks, return_exceptions=True)
        made.resolver.close()
        made.log.close()
