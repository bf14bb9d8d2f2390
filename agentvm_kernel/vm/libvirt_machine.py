"""One QEMU process under libvirt."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast
from xml.etree import ElementTree as ET  # nosec B405 - parses only what libvirt itself wrote

import libvirt
from qemu.qmp import EventListener, ExecuteError, Message, QMPClient, QMPError, Runstate

from agentvm_kernel.errors import HypervisorError
from agentvm_kernel.link.endpoint import VsockEndpoint
from agentvm_kernel.vm.cgroup import CPU_PERIOD, WEIGHT, Subtree, limit, set_weight
from agentvm_kernel.vm.domain import DISK_ALIAS
from agentvm_kernel.vm.folder_device import FolderDevice
from agentvm_kernel.vm.full_disk import REASON, outlast_full_disk
from agentvm_kernel.vm.hypervisor import DiskTraffic, Machine
from agentvm_kernel.vm.libvirt_connection import DomainGoneError, LibvirtConnection
from agentvm_kernel.vm.libvirt_nat import LibvirtNat
from agentvm_kernel.vm.nat import CARD_ALIAS, Card
from agentvm_kernel.vm.nice import NICE, NICE_BEHIND, set_nice
from agentvm_kernel.vm.spec import VSOCK_PORT, DomainSpec, Transport

_log = logging.getLogger(__name__)

_MIGRATION_SECONDS = 120.0
_END_SECONDS = 15.0
_UNPLUG_SECONDS = 20.0
_DISK_DEVICE = f"/machine/peripheral/{DISK_ALIAS}/virtio-backend"
_BURST = 2
_BEHIND = 32  # times less weight
_MERGE_JOB = "agentvm-merge"
_COPY_JOB = _COPY_NODE = "agentvm-copy"
_TOP_NODE = "agentvm-disk"
_NESTED = "agentvm-below-"


class _Monitor(QMPClient):
    """QEMU's monitor without the library's log, for which each message would be laid out even if nobody reads it."""

    def _cb_outbound(self, msg: Message) -> Message:
        return msg

    def _cb_inbound(self, msg: Message) -> Message:
        return msg


class LibvirtMachine(Machine):
    """A domain that libvirt has started.

    Args:
        connection: The connection that owns it.
        domain: Libvirt's handle.
        spec: What it was made from.
        pid: QEMU's process id.
        subtree: Where control groups of ours can be made; ``None`` where they cannot, or libvirt makes some.
        nat: The network for its card; ``None`` where there is none.
    """

    def __init__(
        self,
        connection: LibvirtConnection,
        domain: libvirt.virDomain,
        spec: DomainSpec,
        pid: int,
        subtree: Subtree | None = None,
        nat: LibvirtNat | None = None,
    ) -> None:
        self.spec = spec
        self.pid = pid
        self.vsock = None
        self.ended = asyncio.get_running_loop().create_future()
        self.reaped_as = ""
        self._connection = connection
        self._domain = domain
        self._monitor = _Monitor()  # with a name it would leave a logger behind for each VM there ever was
        self._is_ending = False
        self._disk_nodes: list[str] = []  # lowest first
        self._spare_node = ""
        self._subtree = subtree
        self._nat = nat
        self._sharing = FolderDevice(self, self._monitor)
        self._card: Card | None = None
        self._unplugged: asyncio.Future[bool] | None = None
        self._shares = 0  # as libvirt has set them
        self._failure = ""
        self._watching: asyncio.Task[None] | None = None
        self.paused = True

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

        self._watching = asyncio.create_task(self._watch_disk())

    async def _watch_disk(self) -> None:
        with self._monitor.listener("BLOCK_IO_ERROR") as events:
            await outlast_full_disk(self, events, self._give_up)

    async def _give_up(self) -> None:
        self._failure = REASON
        os.kill(self.pid, signal.SIGKILL)

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
        return await self.execute(command, {key.replace("_", "-"): value for key, value in arguments.items()})

    async def execute(self, command: str, arguments: dict[str, object]) -> object:
        """Ask QEMU's monitor as `qmp` does, with arguments' names as they are."""
        try:
            return await self._monitor.execute(command, arguments)
        except ExecuteError as error:
            raise HypervisorError(f"QEMU: {command}: {error}") from error
        except QMPError as error:
            raise HypervisorError(f"QEMU is gone ({command}): {error}") from error

    async def resume(self) -> None:
        """Let the guest run; libvirt hears of it from QEMU."""
        self.paused = False
        await self.qmp("cont")

    async def pause(self) -> None:
        """Stop the guest's CPUs."""
        self.paused = True
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
        async with asyncio.timeout(_MIGRATION_SECONDS):
            # It says that it has completed a moment before it lets the guest run on.
            while cast("dict[str, str]", await self.qmp("query-status"))["status"] == "finish-migrate":
                pass

    async def _use_mapped_ram(self) -> None:
        """Let a file hold each page at a place of its own, so that what is zero is a hole; QEMU 9.0 or newer."""
        with suppress(HypervisorError):  # an older one writes a stream, which takes longer to load
            await self.qmp("migrate-set-capabilities", capabilities=[{"capability": "mapped-ram", "state": True}])

    async def _migrate(self, command: str, file: Path) -> None:
        with self._monitor.listener("MIGRATION") as events:
            await self.qmp(command, uri=f"file:{file}")
            async with asyncio.timeout(_MIGRATION_SECONDS):
                status = await self._outcome(command, _migration_end(events))
        if status != "completed":
            raise HypervisorError(f"QEMU: {command} of {file}: {status}.")

    async def _outcome(self, command: str, end: Coroutine[object, None, str]) -> str:
        """Wait until a command that goes on in the background has ended; say so if QEMU ends before."""
        waiting = asyncio.ensure_future(end)
        try:
            await asyncio.wait({waiting, self.ended}, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                raise HypervisorError(f"QEMU ended during {command}: {self.ended.result()}.")
            return waiting.result()
        finally:
            waiting.cancel()

    async def save(self, device_state: Path) -> None:
        """Write the device state, without memory."""
        await self.qmp("xen-save-devices-state", filename=str(device_state), live=False)

    async def attach_disk(self, chain: tuple[Path, ...]) -> None:
        """Build the chain of block nodes and let the disk, which holds a placeholder, use it instead."""
        # In one command: while memory is written, each answer may take a while to be noticed.
        node: dict[str, object] | None = None
        for number, layer in enumerate(reversed(chain)):
            name = _TOP_NODE if layer is chain[0] else f"{_NESTED}{number}"
            node = {**_block_node(layer, node, read_only=layer is not chain[0]), "node-name": name}
            self._disk_nodes.append(name)
        await self.qmp("blockdev-add", **(node or {}))
        await self.qmp("qom-set", path=_DISK_DEVICE, property="drive", value=_TOP_NODE)

    async def prepare_overlay(self, overlay: Path) -> None:
        """Open the overlay, so that freezing the disk takes less time."""
        self._spare_node = f"agentvm-disk-{overlay.stem}"
        await self.qmp("blockdev-add", **_block_node(overlay, None, read_only=False), node_name=self._spare_node)

    async def freeze_disk(self) -> None:
        """Make the prepared overlay the disk's top: QEMU's external snapshot."""
        await self.qmp("blockdev-snapshot", node=self._disk_nodes[-1], overlay=self._spare_node)
        self._disk_nodes.append(self._spare_node)

    async def merge_layers(self, count: int) -> None:
        """Let QEMU stream the layers into the top; it changes where the top's backing file is at the very end."""
        kept, merged, top = self._disk_nodes[: -1 - count], self._disk_nodes[-1 - count : -1], self._disk_nodes[-1]
        # Without a name of the backing file in the layer: it would be a path of this host, and nobody needs it.
        async with self._job("block-stream", _MERGE_JOB, device=top, base_node=kept[-1], backing_file=""):
            pass
        self._disk_nodes = [*kept, top]
        try:
            for node in reversed(merged):
                if not node.startswith(_NESTED):  # it goes with what was over it
                    await self.qmp("blockdev-del", node_name=node)
        except HypervisorError as error:  # they are only held open
            _log.warning("merged disk layers of %s stay open: %s", self.spec.name, error)

    async def copy_disk(self, target: Path, begun: Callable[[], Awaitable[None]]) -> None:
        """Let QEMU copy what the disk holds; what the guest writes over meanwhile it copies first."""
        node = _block_node(target, None, read_only=False)
        await self.qmp("blockdev-add", **node, node_name=_COPY_NODE)
        try:
            top = self._disk_nodes[-1]
            async with self._job("blockdev-backup", _COPY_JOB, device=top, target=_COPY_NODE, sync="full"):
                await begun()
        finally:
            if not self.ended.done():
                await self.qmp("blockdev-del", node_name=_COPY_NODE)

    @asynccontextmanager
    async def _job(self, command: str, name: str, **arguments: object) -> AsyncIterator[None]:
        """Begin a job; leaving the context waits for its end.

        Raises:
            HypervisorError: it failed.
        """
        with self._monitor.listener("JOB_STATUS_CHANGE") as events:
            await self.qmp(command, job_id=name, auto_dismiss=False, **arguments)
            yield
            await self._outcome(command, _job_end(events, name))
        jobs = cast("list[dict[str, str]]", await self.qmp("query-jobs"))
        await self.qmp("job-dismiss", id=name)
        if error := next((job.get("error") for job in jobs if job["id"] == name), None):
            raise HypervisorError(f"QEMU: {command}: {error}.")

    async def throttle_disk(self, megabytes: int | None, operations: int | None) -> None:
        """Throttle QEMU's end of the device; for a second, twice as much may pass after a rest."""
        limits: dict[str, int] = {"bps_rd": 0, "bps_wr": 0, "iops_rd": 0, "iops_wr": 0}
        for name, value in (("bps", (megabytes or 0) * 10**6), ("iops", operations or 0)):
            limits[name] = value
            if value:
                limits |= {f"{name}_max": _BURST * value, f"{name}_max_length": 1}
        await self.execute("block_set_io_throttle", {"id": _DISK_DEVICE, **limits})

    async def disk_traffic(self) -> DiskTraffic:
        """By what QEMU counts at the guest's device, which attaching disks and freezing them leave as it is."""
        for device in cast("list[dict[str, Any]]", await self.qmp("query-blockstats")):
            if device.get("qdev") == _DISK_DEVICE:
                return DiskTraffic(int(device["stats"]["rd_bytes"]), int(device["stats"]["wr_bytes"]))
        raise HypervisorError(f"QEMU does not tell of the disk of {self.spec.name}.")

    async def limit_process(self, cores: float | None, memory: int) -> None:
        """By libvirt's control groups where it has made some, else by our own."""
        set_nice(self.pid, NICE)
        try:
            if self._subtree is not None:
                limit(self._subtree.place(self.spec.name, self.pid), cores=cores, memory=memory)
            elif self._connection.has_cgroups:
                await self._limit_by_libvirt(cores, memory)
        except (OSError, HypervisorError) as error:
            _log.warning("%s is not limited by cgroup: %s", self.spec.name, error)

    async def _limit_by_libvirt(self, cores: float | None, memory: int) -> None:
        live = libvirt.VIR_DOMAIN_AFFECT_LIVE
        quota = {"global_period": CPU_PERIOD, "global_quota": -1 if cores is None else int(cores * CPU_PERIOD)}
        await self._connection.call(self._domain.setSchedulerParametersFlags, quota, live)
        await self._connection.call(self._domain.setMemoryParameters, {"hard_limit": memory >> 10}, live)

    async def give_way(self, gives_way: bool) -> None:
        """By control groups likewise, and by niceness where there are none."""
        set_nice(self.pid, NICE_BEHIND if gives_way else NICE)
        divisor = _BEHIND if gives_way else 1
        if self._subtree is not None:
            try:
                set_weight(self._subtree.folder / self.spec.name, WEIGHT // divisor)
            except OSError as error:
                raise HypervisorError(f"The weight of {self.spec.name} cannot be set: {error.strerror}.") from error
        elif self._connection.has_cgroups:
            await self._set_shares(divisor)

    async def _set_shares(self, divisor: int) -> None:
        if not self._shares:  # 1024 or 100, by the version of the control groups
            self._shares = (await self._connection.call(self._domain.schedulerParameters))["cpu_shares"]
        shares = {"cpu_shares": self._shares // divisor}
        live = libvirt.VIR_DOMAIN_AFFECT_LIVE
        await self._connection.call(self._domain.setSchedulerParametersFlags, shares, live)

    async def plug(self) -> Card:
        """Plug in a card that QEMU itself serves, not the host's kernel."""
        nat = self._nat
        if nat is None:
            return await super().plug()
        await nat.renew_filter()
        if self._card is None:
            self._card = nat.cards.take()
        live = libvirt.VIR_DOMAIN_AFFECT_LIVE
        await self._connection.call(self._domain.attachDeviceFlags, nat.network.card_xml(self._card), live)
        return self._card

    async def cut(self) -> None:
        """Take the card's link down, as if a cable was pulled."""
        await self.qmp("set_link", name=CARD_ALIAS, up=False)

    async def unplug(self) -> None:
        """Cut the card's link, then ask the guest for it, which it need not give; libvirt reports when it has."""
        if self._nat is None or self._card is None:
            return
        await self.cut()
        xml, live = self._nat.network.card_xml(self._card), libvirt.VIR_DOMAIN_AFFECT_LIVE
        self._unplugged = asyncio.get_running_loop().create_future()
        await self._connection.call(self._domain.detachDeviceFlags, xml, live)
        tasks: list[asyncio.Future[Any]] = [self._unplugged, self.ended]
        await asyncio.wait(tasks, timeout=_UNPLUG_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if not self.ended.done() and not (self._unplugged.done() and self._unplugged.result()):
            raise HypervisorError(
                f"The guest of {self.spec.name} does not let go of its network card; its link is cut.",
                "%vm restart brings a fresh VM.",
            )

    def on_unplugged(self, alias: str, *, is_gone: bool) -> None:
        """Take note of what became of the request to let go of a device; called in the event loop's thread."""
        if alias == CARD_ALIAS and self._unplugged is not None and not self._unplugged.done():
            self._unplugged.set_result(is_gone)

    async def plug_folder(self, folder: Path, *, writable: bool) -> str:
        """Plug in a virtio-9p device."""
        return await self._sharing.plug(folder, writable=writable)

    async def unplug_folder(self) -> None:
        """Ask the guest for the device, which it need not give; QEMU reports when it has."""
        await self._sharing.unplug()

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
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])
        if self._monitor.runstate is not Runstate.IDLE:
            with suppress(QMPError, OSError, EOFError):  # it reports that QEMU went away without saying goodbye
                await self._monitor.disconnect()

    @property
    def was_ended(self) -> bool:
        """Whether it has ended because ``end`` was called."""
        return self._is_ending

    def on_stopped(self, reason: str) -> None:
        """Take note that libvirt has seen it go; called by the hypervisor in the event loop's thread."""
        if self._subtree is not None:
            self._subtree.remove(self.spec.name)
        if self._nat is not None and self._card is not None:
            self._nat.cards.give_back(self._card)
            self._card = None
        if not self.ended.done():
            self.ended.set_result("was ended" if self._is_ending else self._failure or reason)


async def _migration_end(events: EventListener) -> str:
    async for event in events:
        status = cast("dict[str, str]", event["data"])["status"]
        if status in {"completed", "failed", "cancelled"}:
            return status
    return "the monitor was closed"


async def _job_end(events: EventListener, job: str) -> str:
    async for event in events:
        data = cast("dict[str, str]", event["data"])
        if (data["id"], data["status"]) == (job, "concluded"):
            break
    return "concluded"


def _block_node(layer: Path, below: dict[str, object] | None, *, read_only: bool) -> dict[str, object]:
    """Describe a layer of a disk as blockdev-add wants it; an overlay without one below gets it by its snapshot."""
    # A VM's overlay dies with the VM, so the guest's flushes need not reach the host's disk.
    options: dict[str, object] = {"discard": "unmap", "cache": {"no-flush": True}}
    # A frozen layer soon belongs to a snapshot, and cannot be opened for writing any more.
    file = {"driver": "file", "filename": str(layer), "auto-read-only": True, **options}
    if layer.suffix != ".qcow2":
        return {"driver": "raw", "file": file, "read-only": read_only, **options}
    return {"driver": "qcow2", "file": file, "backing": below, "read-only": read_only, **options}
