"""The real forwarder as an ordinary process, with the test in the place of the agent and a `Tunnel` as its host."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import struct
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from agentvm_kernel.egress.channel import Channel, Opening
from agentvm_kernel.egress.tunnel import NetworkSettings, Tunnel
from agentvm_kernel.link.endpoint import UnixEndpoint
from agentvm_kernel.vm.inbox import make_inbox, open_inbox

FORWARDER = Path(__file__).resolve().parents[2] / "guest" / "agentvm_guest" / "forwarder.py"


class ForwarderBed:
    """A running forwarder.

    Attributes:
        key: The key that it was given last.
        epoch: The epoch that it was given last.
        accepted: Connections that reached the host, each with the event that lets go of it.
        environments: What was to be put into the environment.
        dns_port: Where its resolver answers.
        inbox: The file behind the machine's inbox, where it has one.
    """

    def __init__(self, folder: Path, agent: socket.socket) -> None:
        self.key, self.epoch = secrets.token_bytes(32), 0
        self.accepted: asyncio.Queue[tuple[Opening, Channel, asyncio.Event]] = asyncio.Queue()
        self.environments: list[dict[str, str]] = []
        self.dns_port = self.port = 0
        self.inbox = folder / "inbox"
        self._folder = folder
        self._agent = agent
        self._lines: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def begin(self) -> None:
        self._lines, self._writer = await asyncio.open_connection(sock=self._agent)
        assert json.loads(await self._lines.readline())["op"] == "up"
        self.dns_port, self.port = map(int, (self._folder / "ports").read_text().split())

    def end(self) -> None:
        """Be gone, as the agent."""
        if self._writer is None:
            self._agent.close()
        else:
            self._writer.close()

    def say(self, **line: object) -> None:
        """Say something as the agent."""
        assert self._writer is not None
        self._writer.write(json.dumps({"id": 0, **line}).encode() + b"\n")

    def identify(self) -> None:
        """Give it another identity."""
        self.key, self.epoch = secrets.token_bytes(32), self.epoch + 1
        self.say(op="identity", key=self.key.hex(), epoch=self.epoch)

    async def answer_environments(self) -> None:
        """Do what the agent does with variables, for ever."""
        assert self._lines is not None
        while line := await self._lines.readline():
            request = json.loads(line)
            self.environments.append(request["environment"])
            self.say(op="environment", ok=True, id=request["id"])

    async def open(self, settings: NetworkSettings | None = None, *, timeout: float = 30) -> Tunnel:
        """Dial it."""
        endpoint = UnixEndpoint(str(self._folder / "egress.sock"))
        return await Tunnel.open(
            endpoint, self.key, self.epoch, self._serve, settings or NetworkSettings(), timeout=timeout,
            inbox=open_inbox(self.inbox, None) if self.inbox.exists() else None,
        )  # fmt: skip

    async def _serve(self, opening: Opening, channel: Channel) -> None:
        let_go = asyncio.Event()
        self.accepted.put_nowait((opening, channel, let_go))
        await let_go.wait()

    async def resolve(self, name: str) -> str | None:
        """Ask its resolver over TCP; None when that refuses."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.dns_port)
        labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
        query = struct.pack(">6H", 5, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", 1, 1)
        writer.write(len(query).to_bytes(2, "big") + query)
        reply = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
        writer.close()
        await writer.wait_closed()
        return socket.inet_ntoa(reply[-4:]) if reply[7] else None

    async def connect(self, address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect as a program."""
        return await asyncio.open_connection(address, self.port)


@asynccontextmanager
async def forwarder_bed(*, has_inbox: bool = True) -> AsyncIterator[ForwarderBed]:
    """A forwarder with an identity."""
    ours, theirs = socket.socketpair()
    with tempfile.TemporaryDirectory(prefix="agentvm-") as name, theirs:
        if has_inbox:
            make_inbox(Path(name, "inbox"), None)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", str(FORWARDER), str(theirs.fileno()), "--unprivileged", name,
            pass_fds=(theirs.fileno(),),
        )  # fmt: skip
        theirs.close()
        bed = ForwarderBed(Path(name), ours)
        try:
            async with asyncio.timeout(60):
                await bed.begin()
            bed.identify()
            async with asyncio.TaskGroup() as group:
                group.create_task(bed.answer_environments())
                yield bed
                assert process.returncode is None
                bed.end()
        finally:
            bed.end()
            # Without an agent it ends by itself.
            assert await process.wait() == 0
