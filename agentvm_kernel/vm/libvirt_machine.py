"""One QEMU process under libvirt."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast
from xml.etree import ElementTree as ET  # nosec B405 - parses only what libvirt itself wrote

import libvirt
import libvirt_qemu

from agentvm_kernel.errors import HypervisorError
from agentvm_kernel.link.endpoint import VsockEndpoint
from agentvm_kernel.vm.domain import DISK_ALIAS
from agentvm_kernel.vm.hypervisor import Machine
from agentvm_kernel.vm.libvirt_connection import DomainGoneError, LibvirtConnection
from agentvm_kernel.vm.spec import VSOCK_PORT, DomainSpec, Transport

_LOAD_SECONDS = 60.0
_END_SECONDS = 15.0


class LibvirtMachine(Machine):
    """A domain that libvirt has started.

    Args:
        connection: The connection that owns it.
        domain: Libvirt's handle.
        spec: What it was made from.
        pid: QEMU's process id.
    """

    def __init__(self, connection: LibvirtConnection, domain: libvirt.virDomain, spec: DomainSpec, pid: int) -> None:
        self.spec = spec
        self.pid = pid
        self.vsock = None
        self.ended = asyncio.get_running_loop().create_future()
        self.reaped_as = ""
        self._connection = connection
        self._domain = domain
        self._migration: asyncio.Future[str] | None = None
        self._is_ending = False
        self._disk_nodes = 0

    async def find_vsock(self) -> None:
        """Read the CID that libvirt chose."""
        if self.spec.hardware.transport is Transport.VSOCK:
            xml = await self._connection.call(self._domain.XMLDesc)
            cid = ET.fromstring(xml).find("devices/vsock/cid")  # nosec B314 - libvirt's own XML
            if cid is None:
                raise HypervisorError(f"Libvirt names no CID for {self.spec.name}.")
            self.vsock = VsockEndpoint(int(cid.attrib["address"]), VSOCK_PORT)

    async def qmp(self, command: str, **arguments: object) -> object:
        """Ask QEMU's monitor.

        Args:
            command: QMP command.
            **arguments: Its arguments; underscores in names become hyphens.

        Returns:
            The answer's ``return`` value.

        Raises:
            HypervisorError: QEMU refused; the message is QEMU's.
        """
        request = {"execute": command, "arguments": {key.replace("_", "-"): value for key, value in arguments.items()}}
        answer = await self._connection.call(libvirt_qemu.qemuMonitorCommand, self._domain, json.dumps(request), 0)
        reply = json.loads(answer)
        if "error" in reply:
            raise HypervisorError(f"QEMU: {command}: {reply['error'].get('desc', reply['error'])}")
        return reply.get("return")

    async def resume(self) -> None:
        """Let the guest run."""
        await self._connection.call(self._domain.resume)

    async def pause(self) -> None:
        """Stop the guest's CPUs."""
        await self._connection.call(self._domain.suspend)

    async def load(self, device_state: Path) -> None:
        """Load a device state through an incoming migration from its file."""
        with self._expect_migration() as migration:
            await self.qmp("migrate-incoming", uri=f"file:{device_state}")
            async with asyncio.timeout(_LOAD_SECONDS):
                done, _ = await asyncio.wait({migration, self.ended}, return_when=asyncio.FIRST_COMPLETED)
        if migration not in done:
            raise HypervisorError(f"QEMU ended while it loaded a device state: {self.ended.result()}.")
        if migration.result() != "completed":
            raise HypervisorError(f"QEMU could not load the device state {device_state}: {migration.result()}.")

    @contextmanager
    def _expect_migration(self) -> Iterator[asyncio.Future[str]]:
        self._migration = asyncio.get_running_loop().create_future()
        try:
            yield self._migration
        finally:
            self._migration = None

    def on_migration(self, status: str) -> None:
        """Take note of QEMU's MIGRATION event; called by the hypervisor in the event loop's thread."""
        if (
            self._migration is not None
            and not self._migration.done()
            and status in {"completed", "failed", "cancelled"}
        ):
            self._migration.set_result(status)

    async def save(self, device_state: Path) -> None:
        """Write the device state, without memory."""
        await self.qmp("xen-save-devices-state", filename=str(device_state), live=False)

    async def attach_disk(self, chain: tuple[Path, ...]) -> None:
        """Build the chain of block nodes and let the disk, which holds a placeholder, use it instead."""
        node: dict[str, object] | None = None
        for layer in reversed(chain):
            node = _block_node(layer, node, read_only=layer is not chain[0])
        await self.qmp("blockdev-add", **(node or {}), node_name=self._next_node())
        await self.qmp(
            "qom-set", path=f"/machine/peripheral/{DISK_ALIAS}/virtio-backend", property="drive", value=self._disk_node
        )

    async def disk_writes(self) -> int:
        """Ask QEMU's statistics."""
        (disk,) = cast("list[dict[str, dict[str, int]]]", await self.qmp("query-blockstats"))
        return disk["stats"]["wr_operations"] + disk["stats"]["unmap_operations"]

    async def freeze_disk(self, overlay: Path) -> None:
        """Make the overlay the disk's top: QEMU's external snapshot."""
        below = self._disk_node
        node = _block_node(overlay, None, read_only=False)
        await self.qmp("blockdev-add", **node, node_name=self._next_node())
        await self.qmp("blockdev-snapshot", node=below, overlay=self._disk_node)

    def _next_node(self) -> str:
        self._disk_nodes += 1
        return self._disk_node

    @property
    def _disk_node(self) -> str:
        return f"agentvm-disk-{self._disk_nodes}"

    async def end(self) -> None:
        """End QEMU by a signal (libvirt's ``destroy`` takes longer), then wait until libvirt has found it gone."""
        if not self._is_ending and not self.ended.done():
            self._is_ending = True
            with suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, signal.SIGKILL)
        try:
            async with asyncio.timeout(_END_SECONDS):
                await asyncio.shield(self.ended)
        except TimeoutError:
            with suppress(DomainGoneError):
                await self._connection.call(self._domain.destroy)

    def on_stopped(self, reason: str) -> None:
        """Take note that libvirt has seen it go; called by the hypervisor in the event loop's thread."""
        if not self.ended.done():
            self.ended.set_result("was ended" if self._is_ending else reason)


def _block_node(layer: Path, below: dict[str, object] | None, *, read_only: bool) -> dict[str, object]:
    """Describe a layer of a disk as blockdev-add wants it; an overlay without one below gets it by its snapshot."""
    # A VM's overlay dies with the VM, so the guest's flushes need not reach the host's disk.
    options: dict[str, object] = {"discard": "unmap", "cache": {"no-flush": True}}
    # A frozen layer soon belongs to a snapshot, and cannot be opened for writing any more.
    file = {"driver": "file", "filename": str(layer), "auto-read-only": True, **options}
    if layer.suffix != ".qcow2":
        return {"driver": "raw", "file": file, "read-only": read_only, **options}
    return {"driver": "qcow2", "file": file, "backing": below, "read-only": read_only, **options}
