"""The golden snapshot of an image on some hardware: booted, guest agent up, ipykernel up and idle."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agentvm_kernel.errors import LinkError, VMError
from agentvm_kernel.link.control import ControlChannel
from agentvm_kernel.vm.disk import create_overlay, give_to
from agentvm_kernel.vm.domain import layout
from agentvm_kernel.vm.hypervisor import Hypervisor, Machine
from agentvm_kernel.vm.inbox import make_inbox
from agentvm_kernel.vm.snapshot import Manifest, Snapshot, hardware_values, new_snapshot_folder, write_manifest
from agentvm_kernel.vm.spec import VSOCK_PORT, Boot, DomainSpec, Hardware

_BOOT_SECONDS = 300.0
_REQUEST_SECONDS = 60.0
_CONSOLE_LINES = 12


@dataclass(frozen=True)
class Source:
    """The files of an image that a VM boots from.

    Attributes:
        digest: The image's digest.
        kernel: Guest kernel.
        initramfs: Its initramfs.
        rootfs: Raw root file system.
    """

    digest: str
    kernel: Path
    initramfs: Path
    rootfs: Path


async def golden_id(hypervisor: Hypervisor, source: Source, hardware: Hardware) -> str:
    """Return the name of the golden snapshot: a digest over all that it depends on."""
    return hardware.fingerprint(source.digest, await hypervisor.version(), _cmdline(hardware), layout(hardware))


async def make_golden(
    hypervisor: Hypervisor, source: Source, hardware: Hardware, folder: Path, name: str, progress: Callable[[str], None]
) -> Snapshot:
    """Boot an image once and keep the result.

    Args:
        hypervisor: What starts the VM.
        source: The image.
        hardware: The machine to boot it on.
        folder: Where the snapshot is to lie; its name is the snapshot's id.
        name: Domain name for the boot.
        progress: Called with what is going on.

    Raises:
        VMError: the guest did not come up; the message has the console's last lines.
    """
    version = await hypervisor.version()
    with new_snapshot_folder(folder, hypervisor.owner) as partial:
        progress("booting the image for the first time")
        spec = await _prepare(hypervisor, source, hardware, partial, name)
        machine = await hypervisor.start(spec)
        try:
            began = time.monotonic()
            await _boot(machine)
            boot_seconds = time.monotonic() - began
            progress("saving the booted state")
            await machine.pause()
            await machine.save(partial / "device-state")
        finally:
            await machine.end()
        sockets = (spec.control_socket, spec.link_socket, spec.egress_socket, spec.monitor_socket)
        for leftover in (*sockets, spec.console, spec.inbox):
            leftover.unlink(missing_ok=True)
        manifest = Manifest(
            image=source.digest, hypervisor=version, hardware=hardware_values(hardware), layers=(str(source.rootfs),),
            created=time.time(), boot_seconds=boot_seconds,
        )  # fmt: skip
        write_manifest(partial, manifest)
    return Snapshot(folder.name, folder, manifest)


async def _prepare(hypervisor: Hypervisor, source: Source, hardware: Hardware, folder: Path, name: str) -> DomainSpec:
    memory, disk = folder / "memory", folder / "disk.qcow2"
    memory.touch(mode=0o600)
    os.truncate(memory, hardware.memory_mib * 1024 * 1024)
    await create_overlay(disk, hardware.disk_gb, source.rootfs, hypervisor.owner)
    give_to(memory, hypervisor.owner)
    make_inbox(folder / "inbox", hypervisor.owner)
    boot = Boot(source.kernel, source.initramfs, _cmdline(hardware))
    return DomainSpec(name, str(uuid.uuid4()), folder, hardware, memory, (disk, source.rootfs), boot, hypervisor.owner)


def _cmdline(hardware: Hardware) -> str:
    # A guest that panics must end at once (panic=-1), and nobody reads a running VM's console.
    cmdline = f"console=ttyS0 quiet panic=-1 agentvm.transport={hardware.transport} agentvm.port={VSOCK_PORT}"
    if hardware.accelerator != "tcg":
        return cmdline
    # An emulated CPU has none of the flaws, and page-table isolation takes half of its speed. On a busy host it can get
    # so little time that the guest's kernel would take its timer for broken, and panic; under KVM it does not look.
    return f"{cmdline} mitigations=off no_timer_check"


async def _boot(machine: Machine) -> None:
    await machine.resume()
    task = asyncio.ensure_future(_reach_ready(machine.spec.control_socket))
    try:
        await asyncio.wait((task, machine.ended), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise VMError(f"The VM ended while it booted: {machine.ended.result()}.{_console_tail(machine.spec.console)}")
    except LinkError as error:
        raise VMError(f"The guest did not come up: {error.message}{_console_tail(machine.spec.console)}") from error
    finally:
        task.cancel()
        await asyncio.wait((task,))


async def _reach_ready(socket: Path) -> None:
    control = await ControlChannel.connect(socket, lambda _event: None)
    try:
        await control.request("ready", timeout=_BOOT_SECONDS)
        await control.request("quiesce", timeout=_REQUEST_SECONDS)
    finally:
        await control.close()


def _console_tail(console: Path) -> str:
    if not console.exists():
        return ""
    lines = console.read_text(errors="replace").splitlines()[-_CONSOLE_LINES:]
    return "\nThe last lines of its console:\n" + "\n".join(lines) if lines else ""
