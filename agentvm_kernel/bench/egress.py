"""``agentvm bench egress``: what the way through forwarder, tunnel and gateway costs, beside QEMU's own networking."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from agentvm_kernel.bench.bed import PROFILE, Say, Wanted, bench_settings
from agentvm_kernel.bench.book import Book
from agentvm_kernel.bench.figures import Figure, differences
from agentvm_kernel.bench.slirp import HOST, plug_slirp
from agentvm_kernel.bench.stage import Stage, stage
from agentvm_kernel.bench.webserver import web_server
from agentvm_kernel.config import Paths, load_settings
from agentvm_kernel.egress.access import Access, AccessLimits
from agentvm_kernel.egress.addresses import Forbidden, parse_reachable
from agentvm_kernel.egress.gateway import Gateway
from agentvm_kernel.egress.log import ConnectionLog
from agentvm_kernel.egress.names import Pattern
from agentvm_kernel.egress.policy import Policy
from agentvm_kernel.egress.resolver import Found, Resolver
from agentvm_kernel.egress.tunnel import NetworkSettings, Tunnel

_REPEAT: Final = 10
_NAME: Final = "server.example.org"
_SIZE: Final = 64 << 20
_SETUPS: Final = 20
_BURST: Final = 200
_AT_ONCE: Final = 16
_HELD: Final = 1000

_OURS, _SLIRP = "through the gateway", "through slirp"
_SETUP: Final = "a connection, from its name to the first byte of an answer"
_DOWNLOAD: Final = f"download of {_SIZE >> 20} MiB"
_RATE: Final = f"connections per second, {_AT_ONCE} at a time"
_ADDED: Final = "added to a connection by forwarder and gateway"
_MEMORY: Final = f"private memory of the gateway's process with {_HELD} open connections"
_IDLE_MEMORY: Final = "private memory of the gateway's process without one"

# Programs of the guest: they print what they measured, in seconds.
_COMMON: Final = """
import asyncio, json, socket, time
def ask(host, port, path):
    connection = socket.create_connection((host, port))
    connection.sendall(f"GET {path} HTTP/1.1\\r\\nHost: {host}\\r\\nConnection: close\\r\\n\\r\\n".encode())
    return connection
def setup(host, port):
    began = time.perf_counter()
    connection = ask(host, port, "/bytes/1")
    assert connection.recv(1 << 16)
    taken = time.perf_counter() - began
    connection.close()
    return taken
def download(host, port, size):
    began, room, got = time.perf_counter(), memoryview(bytearray(1 << 20)), 0
    connection = ask(host, port, f"/bytes/{size}")
    while count := connection.recv_into(room):
        got += count
    assert got > size
    return time.perf_counter() - began
async def one(host, port):
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(f"GET /bytes/1 HTTP/1.1\\r\\nHost: {host}\\r\\nConnection: close\\r\\n\\r\\n".encode())
    assert await reader.read(1 << 16)
    writer.close()
async def burst(host, port, count, width):
    left = iter(range(count))
    async def some():
        for _ in left:
            await one(host, port)
    began = time.perf_counter()
    await asyncio.gather(*(some() for _ in range(width)))
    return time.perf_counter() - began
held = []
def hold(host, port, count):
    for _ in range(count):
        held.append(ask(host, port, "/held"))
    for connection in held:
        assert connection.recv(1 << 16)
"""


async def run(wanted: Wanted, say: Say) -> list[Figure]:
    """Measure connections through the gateway, in turns with QEMU's user networking in the same VM.

    Args:
        wanted: Image, profile, repetitions (0 for 10).
        say: Told what is going on.

    Raises:
        AgentVMError: no VM could be had.
    """
    book, rounds = Book(), (wanted.repeat or _REPEAT) + 1
    blocks: list[tuple[list[float], list[float]]] = []
    profile = bench_settings(load_settings(Paths.of_user()), wanted).profiles[PROFILE]
    # The supervisor leaves the VM's way out alone: the gateway is this benchmark's, whose names are not the host's.
    profile = profile.model_copy(update={"network": "none"})
    with web_server() as port:
        async with stage(wanted, say, profile=profile) as ours, _gateway(ours, port):
            await plug_slirp(ours)
            await ours.run(_COMMON)
            await ours.filled()
            for number in range(rounds):
                say("connections and downloads, in turns", number / rounds)
                # The first round fills caches and does not count.
                block = await _round(ours, port, book if number else Book())
                blocks += [block] if number else []
            say(f"{_HELD} connections at once", None)
            await _hold(ours, port, book)
    return _figures(book, blocks)


async def _round(ours: Stage, port: int, book: Book) -> tuple[list[float], list[float]]:
    setups: list[list[float]] = []
    for host, way in ((_NAME, _OURS), (HOST, _SLIRP)):
        taken = await _value(ours, f"[setup({host!r}, {port}) for _ in range({_SETUPS})]")
        setups.append([seconds * 1000 for seconds in taken])
        for sample in setups[-1]:
            book.add(f"{_SETUP}, {way}", sample)
        (seconds,) = await _value(ours, f"[download({host!r}, {port}, {_SIZE})]")
        book.add(f"{_DOWNLOAD}, {way}", seconds * 1000)
        (seconds,) = await _value(ours, f"[await burst({host!r}, {port}, {_BURST}, {_AT_ONCE})]")
        book.add(f"{_RATE}, {way}", _BURST / seconds, "/s")
    return setups[0], setups[1]


async def _hold(ours: Stage, port: int, book: Book) -> None:
    book.weigh(_OURS, os.getpid())
    before = book[f"private memory, {_OURS}"].median
    await ours.run(f"hold({_NAME!r}, {port}, {_HELD})")
    book.add(_IDLE_MEMORY, before, "MB")
    held = Book()
    held.weigh(_OURS, os.getpid())
    book.add(_MEMORY, held[f"private memory, {_OURS}"].median, "MB")


async def _value(ours: Stage, expression: str) -> list[float]:
    return [float(one) for one in json.loads(await ours.run(f"print(json.dumps({expression}))"))]


@asynccontextmanager
async def _gateway(ours: Stage, port: int) -> AsyncIterator[None]:
    """Carry what the stage's VM sends out to a server on loopback, which has a name here."""
    vm = ours.lease.vm
    log = ConnectionLog(vm.folder / "connections")
    resolver = Resolver(_loopback)
    gateway = Gateway(log, resolver, Forbidden(parse_reachable(["127.0.0.1"])))
    policy = Policy().allow(Pattern.parse(f"{_NAME}:{port}"))
    limits = AccessLimits(connections=2 * _HELD, connections_per_second=1e6)
    access = Access("bench", "bench", vm.id, policy, limits)
    await vm.restrict("filtered")
    tunnel = await Tunnel.open(
        vm.egress, vm.key, vm.epoch, partial(gateway.serve, access), NetworkSettings(), inbox=vm.open_inbox()
    )
    try:
        yield
    finally:
        await tunnel.close()
        resolver.close()
        log.close()


def _loopback(name: str, port: int) -> list[Found]:
    return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", port))]


def _figures(book: Book, blocks: list[tuple[list[float], list[float]]]) -> list[Figure]:
    def both(name: str, limit: float | None = None) -> Figure:
        return Figure(book[f"{name}, {_OURS}"], book[f"{name}, {_SLIRP}"], limit=limit, limit_on="ratio")

    return [
        Figure(differences(_ADDED, "ms", blocks), book[f"{_SETUP}, {_SLIRP}"], limit=15),
        both(_SETUP),
        both(_DOWNLOAD, limit=1),
        both(_RATE),
        Figure(book[_MEMORY], book[_IDLE_MEMORY]),
    ]
