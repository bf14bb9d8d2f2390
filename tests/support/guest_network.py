"""A VM of the test's own, with a tunnel that the test serves itself: the guest's half, without a policy."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from agentvm_kernel.config import Paths
from agentvm_kernel.egress.channel import Channel, Opening
from agentvm_kernel.egress.tunnel import NetworkSettings, Tunnel
from agentvm_kernel.link.connection import Link, connect
from agentvm_kernel.profiles import Profile
from agentvm_kernel.supervisor.catalogue import Catalogue
from agentvm_kernel.vm.blank import start_blank
from agentvm_kernel.vm.clone import VM, Randomness, become
from agentvm_kernel.vm.libvirt_connection import EMBED
from agentvm_kernel.vm.libvirt_hypervisor import LibvirtHypervisor
from agentvm_kernel.vm.spec import Transport

PROFILE = Profile(vcpus=1, memory_mib=512, disk_gb=4)
ECHO_PORT = 9000


class GuestNetwork:
    """The VM, its link and its tunnel.

    Attributes:
        vm: The VM.
        tunnel: What its forwarder was dialled with last.
        openings: What the guest said about the connections that it opened.
        stuck: Set when a connection to a host whose name begins with ``endless`` has been served for a while.
    """

    def __init__(self, vm: VM) -> None:
        self.vm = vm
        self.openings: list[Opening] = []
        self.stuck = asyncio.Event()
        self.tunnel: Tunnel | None = None
        self._link: Link | None = None

    async def dial(self, settings: NetworkSettings | None = None) -> None:
        """Dial agent and forwarder."""
        vm = self.vm
        self._link = await connect(vm.link, key=vm.key, epoch=vm.epoch)
        self.tunnel = await Tunnel.open(
            vm.egress, vm.key, vm.epoch, self._serve, settings or NetworkSettings(), inbox=vm.open_inbox()
        )

    async def hang_up(self) -> None:
        """Close both."""
        if self.tunnel is not None:
            await self.tunnel.close()
        if self._link is not None:
            await self._link.close()

    async def renew(self) -> None:
        """Give the VM another identity, as a clone gets one."""
        self.vm.epoch += 1
        self.vm.key = secrets.token_bytes(32)
        await self.vm.give_identity(Randomness(), network="filtered")

    async def shell(self, script: str, timeout: float = 60) -> str:
        """Run a shell script as the user; returns what it puts out, and its exit code in the last line."""
        assert self._link is not None
        stream = await self._link.open("exec")
        await stream.send([json.dumps({"argv": ["bash", "-c", script]}).encode()])
        await stream.send([b"eof"])
        output = b""
        async with asyncio.timeout(timeout):
            while (message := await stream.receive())[0] not in (b"exit", b"error"):
                output += message[1] if message[0] in (b"stdout", b"stderr") else b""
        return output.decode() + str(json.loads(message[1]).get("code"))

    async def _serve(self, opening: Opening, channel: Channel) -> None:
        self.openings.append(opening)
        name = opening.name or ""
        if name.startswith("endless"):
            await self._flood(channel)
        elif opening.port == ECHO_PORT:
            await self._digest(channel)
        elif opening.port == 80:
            await self._answer(name, channel)

    async def _flood(self, channel: Channel) -> None:
        await channel.send(b"HTTP/1.1 200 OK\r\n\r\n")
        for number in range(1 << 30):
            await channel.send(bytes(32768))
            if number == 50:
                self.stuck.set()

    async def _digest(self, channel: Channel) -> None:
        """Take everything, then say its digest."""
        digest = hashlib.sha256()
        while data := await channel.receive():
            digest.update(data)
        await channel.send(digest.hexdigest().encode())
        await channel.send_eof()

    async def _answer(self, name: str, channel: Channel) -> None:
        body = f"hello {name}\n".encode()
        if name.startswith("big"):
            body = bytes(range(256)) * 40_000
        await channel.receive()
        await channel.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await channel.send_eof()
        while await channel.receive():
            pass


@asynccontextmanager
async def guest_network() -> AsyncIterator[GuestNetwork]:
    """A running VM whose tunnel is open."""
    state = Path(tempfile.mkdtemp(prefix="avm-"))
    state.chmod(0o711)
    hypervisor = LibvirtHypervisor(EMBED, state / "libvirt", f"g{os.getpid()}")
    await hypervisor.open()
    try:
        catalogue = Catalogue(hypervisor, Paths.of_user().cache, "tcg", Transport.SERIAL)
        snapshot = await catalogue.golden("minimal", PROFILE, lambda _: None)
        blank = await start_blank(hypervisor, snapshot, state / "vm", hypervisor.domain_name("vm-net"))
        vm = await become(blank, "vm-net", network="filtered")
        network = GuestNetwork(vm)
        try:
            await network.dial()
            yield network
            await network.hang_up()
        finally:
            await vm.end()
    finally:
        await hypervisor.close()
        shutil.rmtree(state)
