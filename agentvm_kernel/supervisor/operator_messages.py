"""What the supervisor tells its administrator of VMs and of the pool, and what can be asked of it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from agentvm_kernel.observe.claims import Claims
from agentvm_kernel.supervisor.messages import Message

VMState = Literal["leased", "fork", "resting", "warm", "blank"]


class VMInfo(Message):
    """One VM, as the host sees it.

    Attributes:
        id: Its id.
        state: Leased; a fork that runs; a fork that rests, to be adopted; a warm VM or a blank that is kept ready.
        lease: The lease that has it; empty for one that is kept ready.
        owner: What the lease is for.
        notebook: What the lease's snapshots belong to.
        profile: Name of the profile; empty for one that is kept ready.
        vcpus: Virtual CPUs.
        memory_mib: Guest memory, MiB.
        pid: Process id of QEMU.
        age: Seconds since it was made.
        cpu_seconds: CPU time of QEMU.
        cpu_percent: CPU time of late, percent of one core.
        memory: Bytes of memory that it alone takes of the host.
        memory_cost: Bytes of memory that it costs the host; what VMs share is divided among them.
        disk: Bytes that its own files take on the host's disk.
        disk_read: Bytes that the guest has read from its disk.
        disk_written: Bytes that the guest has written.
        network_sent: Bytes that it has sent through the gateway.
        network_received: Bytes that it has received.
        executing: A cell runs in it, as its session says.
        travelling: A snapshot is taken after every cell, as its session says.
        snapshot: Id of the newest snapshot that a leased one descends from; empty for the golden one.
        claimed: What the guest says of itself, for which nobody vouches; ``None`` if it has said nothing. All else is
            measured on the host.
    """

    id: str
    state: VMState
    lease: str = ""
    owner: str = ""
    notebook: str = ""
    profile: str = ""
    vcpus: int
    memory_mib: int
    pid: int
    age: float = 0.0
    cpu_seconds: float = 0.0
    cpu_percent: float = 0.0
    memory: int = 0
    memory_cost: int = 0
    disk: int = 0
    disk_read: int = 0
    disk_written: int = 0
    network_sent: int = 0
    network_received: int = 0
    executing: bool = False
    travelling: bool = False
    snapshot: str = ""
    claimed: Claims | None = None


class VMList(Message):
    """All VMs of a supervisor.

    Attributes:
        vms: The VMs, those that are out first.
    """

    vms: tuple[VMInfo, ...]


class DiskRequest(Message):
    """Copy a VM's disk.

    Attributes:
        file: Absolute path of a file to create.
    """

    file: str = Field(max_length=4096)


class DiskCopied(Message):
    """A VM's disk was copied.

    Attributes:
        size: Bytes of the file.
        unfrozen: Why its file systems were not frozen, as the guest says; empty if they were.
    """

    size: int
    unfrozen: str = ""


class Resumed(Message):
    """What was taken back of a VM.

    Attributes:
        was_paused: It had been stopped.
        was_slowed: It had been slowed down.
    """

    was_paused: bool
    was_slowed: bool


class StockInfo(Message):
    """What is ready of one snapshot.

    Attributes:
        snapshot: Its id.
        image: Digest of the image.
        vcpus: Virtual CPUs.
        memory_mib: Guest memory, MiB.
        warm: Warm VMs that are ready.
        warm_wanted: How many are to be.
        blanks: Blanks that are ready.
        blanks_wanted: How many are to be.
        rate: Acquires a second, lately.
    """

    snapshot: str
    image: str
    vcpus: int
    memory_mib: int
    warm: int
    warm_wanted: int
    blanks: int
    blanks_wanted: int
    rate: float


class WaitingInfo(Message):
    """Somebody who waits for a VM.

    Attributes:
        place: Place in the queue, from 1.
        owner: For what.
        seconds: How long already.
        reason: Why there is none.
    """

    place: int
    owner: str
    seconds: float
    reason: str


class PoolInfo(Message):
    """The pool.

    Attributes:
        stocks: What is ready.
        out: VMs that are out.
        max_vms: How many may be.
        room: For how many more VMs the host has memory.
        waiting: Who waits.
        drained: Nothing is kept ready, because somebody asked for that.
    """

    stocks: tuple[StockInfo, ...]
    out: int
    max_vms: int
    room: int
    waiting: tuple[WaitingInfo, ...]
    drained: bool
