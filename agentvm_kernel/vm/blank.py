"""A blank: a started, empty QEMU that can become any snapshot of one golden snapshot's tree."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import uuid
from pathlib import Path

from agentvm_kernel.errors import SnapshotError
from agentvm_kernel.vm.content import Content
from agentvm_kernel.vm.disk import create_overlay, give_to, virtual_size
from agentvm_kernel.vm.hypervisor import Hypervisor, Machine
from agentvm_kernel.vm.memory import GuestMemory
from agentvm_kernel.vm.snapshot import Snapshot
from agentvm_kernel.vm.spec import DomainSpec, Hardware
from agentvm_kernel.vm.tracking import Tracker, find_tracker

_log = logging.getLogger(__name__)

DUMP_VARIABLE = "AGENTVM_DUMP"
"""Environment variable that makes snapshots complete dumps, as on a host where QEMU's memory cannot be reached."""


class Blank:
    """A started, empty QEMU whose memory is a private view of a complete memory file; nothing loaded.

    Attributes:
        machine: The QEMU.
        base: The snapshot of which it has the memory: a golden one, or one of which a complete file was made.
        overlay: An empty overlay for its disk.
        tracker: Its memory, and what is written to it; ``None`` where the host does not let this process have it.
    """

    def __init__(self, machine: Machine, base: Snapshot, overlay: Path) -> None:
        self.machine = machine
        self.base = base
        self.overlay = overlay
        self.tracker: Tracker | None = None

    def reach_memory(self) -> None:
        """Get hold of its memory, if the host allows it."""
        spec = self.machine.spec
        if os.environ.get(DUMP_VARIABLE):
            return
        try:
            self.tracker = find_tracker(GuestMemory(self.machine.pid, spec.memory, spec.hardware.memory_mib << 20))
        except SnapshotError as error:
            _log.warning("snapshots will be complete dumps: %s", error)

    async def fill(self, snapshot: Snapshot) -> Content | None:
        """Make it a snapshot: the memory that differs, the disk, the device state. It stays paused.

        Args:
            snapshot: Of the same golden snapshot as its own.

        Returns:
            The snapshot's memory; ``None`` for a dump, whose memory only QEMU reads.

        Raises:
            SnapshotError: it is of another golden snapshot, or damaged.
            HypervisorError: QEMU refused.
        """
        if snapshot.golden.id != self.base.golden.id:
            raise SnapshotError(f"The snapshot {snapshot.id} descends from another golden snapshot.")
        if snapshot.manifest.is_dump:
            await self.machine.attach_disk((self.overlay, *snapshot.disks))
            await self.machine.load(snapshot.device_state, is_dump=True)
            return None
        content, _ = await asyncio.gather(
            asyncio.to_thread(self._write_memory, snapshot),
            self.machine.attach_disk((self.overlay, *snapshot.disks)),
        )
        await self.machine.load(snapshot.device_state)
        return content

    def _write_memory(self, snapshot: Snapshot) -> Content:
        content = Content(snapshot)
        if snapshot.id == self.base.id:
            return content
        if self.tracker is None:
            raise SnapshotError(f"The memory of QEMU {self.machine.pid} is not accessible.", "See `agentvm doctor`.")
        self.tracker.memory.write(content.pieces(self.base))
        self.tracker.collect()
        return content

    async def end(self) -> None:
        """End it, and remove its files."""
        await self.machine.end()
        await asyncio.to_thread(shutil.rmtree, self.machine.spec.folder)


async def start_blank(
    hypervisor: Hypervisor, base: Snapshot, folder: Path, name: str, memory: Path | None = None
) -> Blank:
    """Start an empty QEMU.

    Args:
        hypervisor: What starts it.
        base: The snapshot of which it is to have the memory; what it becomes has the same golden snapshot.
        folder: A private folder to create for it; it goes with the VM.
        name: Domain name.
        memory: The base's complete memory file; by default the golden snapshot's own.
    """
    folder.mkdir(mode=0o700)
    try:
        give_to(folder, hypervisor.owner)
        overlay, placeholder = folder / "disk-1.qcow2", folder / "placeholder.raw"
        await create_overlay(overlay, base.hardware.disk_gb)
        _make_placeholder(placeholder, base.hardware)
        for path in (overlay, placeholder):
            give_to(path, hypervisor.owner)
        spec = DomainSpec(
            name,
            str(uuid.uuid4()),
            folder,
            base.hardware,
            memory or base.memory,
            (placeholder,),
            owner=hypervisor.owner,
        )
        blank = Blank(await hypervisor.start(spec), base, overlay)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    await asyncio.to_thread(blank.reach_memory)
    return blank


def _make_placeholder(path: Path, hardware: Hardware) -> None:
    """Make what QEMU takes for the disk until it is given the real one: as large, and without content."""
    path.touch(mode=0o600)
    os.truncate(path, virtual_size(hardware.disk_gb))
