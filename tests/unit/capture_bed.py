"""A VM whose memory is a child process's, ready to be saved, for the tests of what saves it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from guest_process import MemoryHypervisor, MemoryMachine

from agentvm_kernel.snapshots.prune import describe
from agentvm_kernel.vm.blank import start_blank
from agentvm_kernel.vm.capture import Capture, Capturer
from agentvm_kernel.vm.clone import VM, become
from agentvm_kernel.vm.golden import Source, make_golden
from agentvm_kernel.vm.snapshot import Manifest, Snapshot
from agentvm_kernel.vm.spec import Hardware, Transport

MEMORY_MIB = 8
HARDWARE = Hardware(1, MEMORY_MIB, 4, "tcg", Transport.SERIAL)


@pytest.fixture
async def hypervisor() -> AsyncIterator[MemoryHypervisor]:
    hypervisor = MemoryHypervisor()
    yield hypervisor
    for machine in hypervisor.running:
        await machine.end()


@pytest.fixture
async def golden(hypervisor: MemoryHypervisor, short_tmp: Path) -> Snapshot:
    for name in ("kernel", "initramfs", "rootfs"):
        (short_tmp / name).write_bytes(b"\0" * 512)
    source = Source("d" * 64, short_tmp / "kernel", short_tmp / "initramfs", short_tmp / "rootfs")
    return await make_golden(hypervisor, source, HARDWARE, short_tmp / "golden", "agentvm-golden", lambda _stage: None)


@pytest.fixture
async def vm(hypervisor: MemoryHypervisor, golden: Snapshot, short_tmp: Path) -> AsyncIterator[VM]:
    vm = await become(await start_blank(hypervisor, golden, short_tmp / "vm-1", "vm-1"), "vm-1")
    yield vm
    await vm.end()
    assert not (short_tmp / "vm-1").exists()


@pytest.fixture
def machine(vm: VM, hypervisor: MemoryHypervisor) -> MemoryMachine:
    machine = hypervisor.of(vm.pid)
    machine.calls.clear()
    return machine


@pytest.fixture
def capturer() -> Capturer:
    return Capturer(None)


def keep(vm: VM, capture: Capture, folder: Path) -> Snapshot:
    """Store a capture as its VM's newest snapshot."""
    folder.mkdir()
    capture.device_state.rename(folder / "device-state")
    capture.delta.rename(folder / "memory.delta")
    for layer in capture.layers:
        os.link(layer, folder / layer.name)
    manifest = Manifest(
        image="d" * 64, hypervisor="fake 1", hardware=vm.snapshot.manifest.hardware, created=1.0,
        is_dump=capture.is_dump, own_layers=tuple(layer.name for layer in capture.layers), over=capture.over,
        files={layer.name: describe(layer) for layer in capture.layers},
    )  # fmt: skip
    snapshot = Snapshot(folder.name, folder, manifest, vm.snapshot)
    vm.descend(snapshot)
    return snapshot
