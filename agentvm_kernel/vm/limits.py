"""What the host holds a VM to: disk rate by QEMU, CPU and memory by control groups, niceness.

Disk: QEMU throttles the guest's device, not a layer of its disk, so that this outlives `attach_disk` and snapshots;
while it drains the disk for one it lets requests through. CPU and memory: where libvirt gives QEMU control groups (the
system daemon; the embedded driver as root) it is asked to set them; elsewhere we make our own where we may
(`cgroup.py`). Where there are none, a VM has its vCPUs' share, and a lease is given all the same. All of it goes with
the QEMU: nothing has to be taken back.
"""

from __future__ import annotations

from typing import Final
from weakref import WeakKeyDictionary

from agentvm_kernel.profiles import Limits
from agentvm_kernel.vm.cgroup import find_subtree
from agentvm_kernel.vm.hypervisor import Machine
from agentvm_kernel.vm.libvirt_connection import EMBED, has_cgroups
from agentvm_kernel.vm.nice import NICE
from agentvm_kernel.vm.spec import Hardware

NOBODY: Final = "nobody"
"""How it begins where a limit is not enforced."""

_MIB: Final = 1 << 20
_TCG_CACHE_MIB: Final = 1024  # QEMU's largest default for translated code
_GUEST: Final = "the guest's kernel (its root can lift it)"
_KERNEL: Final = "the kernel process"

_enforced: WeakKeyDictionary[Machine, Limits] = WeakKeyDictionary()


async def enforce(machine: Machine, limits: Limits) -> None:
    """Hold a VM to limits from now on; what it is held to already costs nothing.

    Args:
        machine: Its QEMU.
        limits: The limits.

    Raises:
        HypervisorError: QEMU is gone, or cannot throttle its disk.
    """
    before = _enforced.get(machine)
    if before is None or _disk(before) != _disk(limits):
        await machine.throttle_disk(*_disk(limits))
    if before is None or before.cpu != limits.cpu:
        await machine.limit_process(limits.cpu, memory_bound(machine.spec.hardware))
    _enforced[machine] = limits


def memory_bound(hardware: Hardware) -> int:
    """Return what a QEMU may use in bytes: a fence against one that leaks or was taken over, not a tight fit."""
    cache = _TCG_CACHE_MIB if hardware.accelerator == "tcg" else 0
    return (hardware.memory_mib * 5 // 4 + 512 + cache) * _MIB


def enforced_by(uri: str = EMBED) -> dict[str, str]:
    """Say who enforces which limit on this host; in the supervisor what is, elsewhere what would be.

    Args:
        uri: Libvirt connection.

    Returns:
        For each field of `Limits`, and for ``memory``, ``disk`` (the sizes), ``qemu_memory`` and ``nice``, who does it.
    """
    group, obstacle = _group(uri)
    return {
        "cell_deadline": _KERNEL,
        "lifetime": "the supervisor",
        "cpu": f"{group}, CPU quota" if group else f"number of vCPUs only: {obstacle}",
        "user_memory_mib": _GUEST,
        "memory": "size of the virtual machine",
        "qemu_memory": group or f"{NOBODY}: {obstacle}",
        "disk": "size of the virtual disk",
        "disk_mb_per_second": "QEMU's throttling",
        "disk_iops": "QEMU's throttling",
        "processes": _GUEST,
        "open_files": _GUEST,
        "output_mib": _KERNEL,
        "output_mib_per_second": _KERNEL,
        "nice": f"the host's scheduler: QEMU is at nice {NICE}",
    }


def _group(uri: str) -> tuple[str, str]:
    """Return which control groups there are, or why there are none."""
    if has_cgroups(uri):
        return "cgroup of libvirt's", ""
    try:
        find_subtree().check()
    except OSError as error:
        return "", str(error)
    return "cgroup v2 of ours", ""


def _disk(limits: Limits) -> tuple[int | None, int | None]:
    return limits.disk_mb_per_second, limits.disk_iops
