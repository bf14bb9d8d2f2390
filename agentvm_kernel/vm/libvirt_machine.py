"""One QEMU process under libvirt."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import cast
from xml.etree import ElementTree as ET  # nosec B405 - parses only what libvirt itself wrote

import libvirt
from qemu.qmp import EventListener, ExecuteError, QMPClient, QMPError, Runstate

from agentvm_kernel.errors import HypervisorError
from agentvm_kernel.link.endpoint import VsockEndpoint
from agentvm_kernel.vm.domain import DISK_ALIAS
from agentvm_kernel.vm.hypervisor import Machine
from agentvm_kernel.vm.libvirt_connection import DomainGoneError, LibvirtConnection
from agentvm_kernel.vm.spec import VSOCK_PORT, DomainSpec, Transport

_MIGRATION_SECONDS = 120.0
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
        self._monitor = QMPClient(spec.name)
        self._is_ending = False
        self._disk_node = "agentvm-disk"
        self._spare_node = ""

    async def connect(self) -> None:
        """Connect to QEMU's monitor, and read the CID that libvirt chose."""
        try:
            await self._monitor.connect(str(self.spec.monitor_socket))
        except QMPError as error:
            raise HypervisorError(f"QEMU's monitor of {self.spec.name} does not answer: {error}.") from error
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
            HypervisorError: QEMU refused, in its own words, or is gone.
        """
        try:
            return await self._monitor.execute(
                command, {key.replace("_", "-"): value for key, value in arguments.items()}
            )
        except ExecuteError as error:
            raise HypervisorError(f"QEMU: {command}: {error}") from error
        except QMPError as error:
            raise HypervisorError(f"QEMU is gone ({command}): {error}") from error

    async def resume(self) -> None:
        """Let the guest run; libvirt hears of it from QEMU."""
        await self.qmp("cont")

    async def pause(self) -> None:
        """Stop the guest's CPUs."""
        await self.qmp("stop")

    async def load(self, device_state: Path, *, is_dump: bool = False) -> None:
        """Load a device state through an incoming migration from its file."""
        if is_dump:
            await self._use_mapped_ram()
        await self._migrate("migrate-incoming", device_state)

    async def dump(self, path: Path) -> None:
        """Write everything through a migration to a file."""
        await self._use_mapped_ram()
        await self._migrate("migrate", path)

    async def _use_mapped_ram(self) -> None:
        """Let a file hold each page at a place of its own, so that what is zero is a hole; QEMU 9.0 or newer."""
        with suppress(HypervisorError):  # an older one writes a stream, which takes longer to load
            await self.qmp("migrate-set-capabilities", capabilities=[{"capability": "mapped-ram", "state": True}])

    async def _migrate(self, command: str, file: Path) -> None:
        with self._monitor.listener("MIGRATION") as events:
            await self.qmp(command, uri=f"file:{file}")
            waiting = asyncio.ensure_future(_migration_end(events))
            try:
                async with asyncio.timeout(_MIGRATION_SECONDS):
                    await asyncio.wait({waiting, self.ended}, return_when=asyncio.FIRST_COMPLETED)
                if not waiting.done():
                    raise HypervisorError(f"QEMU ended during {command}: {self.ended.result()}.")
                if waiting.result() != "completed":
                    raise HypervisorError(f"QEMU: {command} of {file}: {waiting.result()}.")
            finally:
                waiting.cancel()

    async def save(self, device_state: Path) -> None:
        """Write the device state, without memory."""
        await self.qmp("xen-save-devices-state", filename=str(device_state), live=False)

    async def attach_disk(self, chain: tuple[Path, ...]) -> None:
        """Build the chain of block nodes and let the disk, which holds a placeholder, use it instead."""
        node: dict[str, object] | None = None
        for layer in reversed(chain):
            node = _block_node(layer, node, read_only=layer is not chain[0])
        await self.qmp("blockdev-add", **(node or {}), node_name=self._disk_node)
        await self.qmp(
            "qom-set", path=f"/machine/peripheral/{DISK_ALIAS}/virtio-backend", property="drive", value=self._disk_node
        )

    async def disk_writes(self) -> int:
        """Ask QEMU's statistics."""
        (disk,) = cast("list[dict[str, dict[str, int]]]", await self.qmp("query-blockstats"))
        return disk["stats"]["wr_operations"] + disk["stats"]["unmap_operations"]

    async def prepare_overlay(self, overlay: Path) -> None:
        """Open the overlay, so that freezing the disk takes less time."""
        self._spare_node = f"agentvm-disk-{overlay.stem}"
        await self.qmp("blockdev-add", **_block_node(overlay, None, read_only=False), node_name=self._spare_node)

    async def freeze_disk(self) -> None:
        """Make the prepared overlay the disk's top: QEMU's external snapshot."""
        await self.qmp("blockdev-snapshot", node=self._disk_node, overlay=self._spare_node)
        self._disk_node = self._spare_node

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
        if self._monitor.runstate is not Runstate.IDLE:
            with suppress(QMPError, OSError, EOFError):  # it reports that QEMU went away without saying goodbye
                await self._monitor.disconnect()

    def on_stopped(self, reason: str) -> None:
        """Take note that libvirt has seen it go; called by the hypervisor in the event loop's thread."""
        if not self.ended.done():
            self.ended.set_result("was ended" if self._is_ending else reason)


async def _migration_end(events: EventListener) -> str:
    async for event in events:
        status = cast("dict[str, str]", event["data"])["status"]
        if status in {"completed", "failed", "cancelled"}:
            return status
    return "the monitor was closed"


def _block_node(layer: Path, below: dict[str, object] | None, *, read_only: bool) -> dict[str, object]:
    """Describe a layer of a disk as blockdev-add wants it; an overlay without one below gets it by its snapshot."""
    # A VM's overlay dies with the VM, so the guest's flushes need not reach the host's disk.
    options: dict[str, object] = {"discard": "unmap", "cache": {"no-flush": True}}
    # A frozen layer soon belongs to a snapshot, and cannot be opened for writing any more.
    file = {"driver": "file", "filename": str(layer), "auto-read-only": True, **options}
    if layer.suffix != ".qcow2":
        return {"driver": "raw", "file": file, "read-only": read_only, **options}
    return {"driver": "qcow2", "file": file, "backing": below, "read-only": read_only, **options}
