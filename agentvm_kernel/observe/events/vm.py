"""Events of VMs, and of the leases that have them."""

from __future__ import annotations

from typing import Literal

from agentvm_kernel.observe.fields import (
    Accelerator,
    Count,
    Event,
    Long,
    Seconds,
    Text,
)


class OfVM(Event):
    """What happened to, or in, a VM.

    Attributes:
        vm: The VM.
    """

    vm: Text


class OfLease(OfVM):
    """What happened to a VM that a session has.

    Attributes:
        lease: The lease.
        notebook: Whose it is: the notebook's path or the session's name.
    """

    lease: Text = ""
    notebook: Long = ""


class VMCreated(OfVM):
    """A QEMU was started for a VM, paused and empty, or about to boot an image.

    Attributes:
        accelerator: Under ``tcg`` QEMU promises no isolation.
        vcpus: Virtual CPUs.
        memory_mib: Guest memory, MiB.
        pid: Process id of QEMU.
    """

    event: Literal["vm_created"] = "vm_created"
    accelerator: Accelerator = ""
    vcpus: Count = 0
    memory_mib: Count = 0
    pid: Count = 0


class VMStarted(OfVM):
    """A VM became a clone of a snapshot; it runs, and its identity is confirmed.

    Attributes:
        snapshot: The snapshot.
        image: Digest of the image that it descends from.
        epoch: Number of this clone.
    """

    event: Literal["vm_started"] = "vm_started"
    snapshot: Text = ""
    image: Text = ""
    epoch: Count = 0


class VMStopped(OfVM):
    """A VM's QEMU is gone.

    Attributes:
        reason: Why.
    """

    event: Literal["vm_stopped"] = "vm_stopped"
    reason: Text = ""


class VMDestroyed(OfVM):
    """A VM was ended for good: its files are removed, or are about to be.

    Attributes:
        reason: Why, where it was not simply given back.
    """

    event: Literal["vm_destroyed"] = "vm_destroyed"
    reason: Text = ""


class LeaseAcquired(OfLease):
    """A session got a VM.

    Attributes:
        owner: What the lease is for.
        image: Digest of the image.
        profile: Name of the profile.
        accelerator: Under ``tcg`` QEMU promises no isolation.
        acquire_ms: Milliseconds from the request to the VM.
        version: This project's version.
        hypervisor: Versions of QEMU and libvirt.
        vcpus: Virtual CPUs.
        memory_mib: Guest memory, MiB.
        disk_gb: Guest disk, GB.
        limits: What holds for what runs in the VM, as JSON.
        network: What it may reach, in words.
    """

    event: Literal["lease_acquired"] = "lease_acquired"
    owner: Text = ""
    image: Text = ""
    profile: Text = ""
    accelerator: Accelerator = ""
    acquire_ms: Seconds = 0.0
    version: Text = ""
    hypervisor: Text = ""
    vcpus: Count = 0
    memory_mib: Count = 0
    disk_gb: Count = 0
    limits: Long = ""
    network: Long = ""


class LeaseReleased(OfLease):
    """A session gave its VM back, or its process is gone.

    Attributes:
        owner: What the lease was for.
    """

    event: Literal["lease_released"] = "lease_released"
    owner: Text = ""
