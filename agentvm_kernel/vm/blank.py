"""A blank: a started, empty QEMU that can become any snapshot of one golden snapshot's tree."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import uuid
from pathlib import Path

from agentvm_kernel.errors import AgentVMError, SnapshotError, host_error
from agentvm_kernel.vm.content import Content
from agentvm_kernel.vm.disk import create_overlay, give_to, virtual_size
from agentvm_kernel.vm.hypervisor import Hypervisor, Machine
from agentvm_kernel.vm.inbox import make_inbox
from agentvm_kernel.vm.memory import GuestMemory
from agentvm_kernel.vm.snapshot import Snapshot
from agentvm_kernel.vm.spec import DomainSpec, Hardware
from agentvm_kernel.vm.tracking import Tracker, find_tracker
from agentvm_kernel.vm.translation import prepare_translation

_log = logging.getLogger(__name__)

DUMP_VARIABLE = "AGENTVM_DUMP"
"""Environment variable that makes snapshots complete dumps, as on a host where QEMU's memory cannot be reached."""


class Blank:
    """A started, empty QEMU whose memory is a private view of a complete memory file; nothing loaded.

    Attributes:
        machine: The QEMU.
        base: The snapshot of which it has the memory: a golden one, or one of which a complete file was made.
        overlay: An empty overlay for its disk.
        is_empty: Its memory is all zero instead.
        tracker: Its memory, and what is written to it; ``None`` where the host does not let this process have it.
    """

    def __init__(self, machine: Machine, base: Snapshot, overlay: Path, *, is_empty: bool = False) -> None:
        self.machine = machine
        self.is_empty = is_empty
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
            if spec.hardware.accelerator == "tcg":
                prepare_translation(self.machine.pid)
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
            if not self.is_empty:
                raise SnapshotError(f"The dump {snapshot.id} can only be loaded into empty memory.")
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
        self.tracker.memory.write(content.addresses(self.base))
        self.tracker.begin()
        return content

    async def end(self) -> None:
        """End it, and remove its files."""
        await self.machine.end()
        await asyncio.to_thread(shutil.rmtree, self.machine.spec.folder)


async def start_blank(
    hypervisor: Hypervisor,
    base: Snapshot,
    folder: Path,
    name: str,
    memory: Path | None = None,
    *,
    is_empty: bool = False,
) -> Blank:
    """Start an empty QEMU.

    Args:
        hypervisor: What starts it.
        base: The snapshot of which it is to have the memory; what it becomes has the same golden snapshot.
        folder: A private folder to create for it; it goes with the VM.
        name: Domain name.
        memory: The base's complete memory file; by default the golden snapshot's own.
        is_empty: All of its memory is to be zero instead, as QEMU takes for granted when it loads a dump of its own.

    Raises:
        HostError: its files cannot be made.
        VMError: it does not start.
    """
    machine: Machine | None = None
    try:
        folder.mkdir(mode=0o700)
        if is_empty:
            memory = _make_empty(folder / "memory", base.hardware, hypervisor.owner)
        spec, overlay = await prepare_blank(hypervisor.owner, base, folder, name, memory)
        machine = await hypervisor.start(spec)
        blank = Blank(machine, base, overlay, is_empty=is_empty)
        await asyncio.to_thread(blank.reach_memory)
    except BaseException as error:
        await _clear(machine, folder)
        if isinstance(error, OSError):
            raise host_error(error) from error
        raise
    return blank


async def _clear(machine: Machine | None, folder: Path) -> None:
    """Leave nothing of a start that failed; why it failed matters more than what goes wrong here."""
    try:
        if machine is not None:
            await machine.end()
    except AgentVMError as error:
        _log.warning("a QEMU that was of no use was not seen to end: %s", error)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def prepare_blank(
    owner: tuple[int, int] | None, base: Snapshot, folder: Path, name: str, memory: Path | None = None
) -> tuple[DomainSpec, Path]:
    """Make an empty QEMU's files.

    Args:
        owner: The user under which QEMU runs, if another.
        base: The snapshot of which it is to have the memory.
        folder: Its folder.
        name: Domain name.
        memory: The base's complete memory file; by default the golden snapshot's own.

    Returns:
        What to start, and the overlay that its disk gets later.
    """
    overlay, placeholder = folder / "disk-1.qcow2", folder / "placeholder.raw"
    await create_overlay(overlay, base.hardware.disk_gb, owner=owner)
    _make_placeholder(placeholder, base.hardware)
    make_inbox(folder / "inbox", owner)
    for path in (placeholder, folder):  # from the last one on, another QEMU of that user can put something into it
        give_to(path, owner)
    memory = memory or base.memory
    spec = DomainSpec(name, str(uuid.uuid4()), folder, base.hardware, memory, (placeholder,), owner=owner)
    return spec, overlay


def _make_empty(path: Path, hardware: Hardware, owner: tuple[int, int] | None) -> Path:
    """Make a memory file that is all holes."""
    path.touch(mode=0o600)
    os.truncate(path, hardware.memory_mib << 20)
    give_to(path, owner)
    return path


def _make_placeholder(path: Path, hardware: Hardware) -> None:
    """Make what QEMU takes for the disk until it is given the real one: as large, and without content."""
    path.touch(mode=0o600)
    os.truncate(path, virtual_size(hardware.disk_gb))
