"""What the supervisor tells its clients of what VMs use."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field, TypeAdapter

from agentvm_kernel.observe.sample import Sample
from agentvm_kernel.supervisor.messages import Message
from agentvm_kernel.supervisor.operator_messages import VMState

MOST_HOSTS: Final = 20

_WHOLE: Final = frozenset(Sample._fields) - {"time", "age", "cpu_seconds", "cpu_percent"}


class VMStats(Message):
    """What a VM used at one moment, as measured on the host; nothing here is what the guest says of itself.

    Attributes:
        vm: Its id.
        lease: The lease that has it; empty for one that is kept ready.
        state: See ``VMInfo``.
        time: Seconds since 1970.
        age: Seconds since its QEMU was started.
        cpu_seconds: CPU time of QEMU so far.
        cpu_percent: CPU time since the sample before, percent of one core.
        memory: Bytes of memory that it costs the host; what VMs share is divided among them.
        memory_private: Bytes that it alone takes.
        memory_guest: Bytes of the guest's memory that it has touched.
        disk_read: Bytes that the guest has read from its disk so far.
        disk_written: Bytes that the guest has written so far.
        disk_space: Bytes that its own files take on the host's disk.
        network_sent: Bytes that it has sent through the gateway so far.
        network_received: Bytes that it has received so far.
        connections: Connections open now.
        allowed: Connections that were let through so far.
        refused: Connections that were refused so far.
        snapshots: Bytes that the snapshots of its notebook take.
        executing: A cell runs in it, as its session says.
        stale: QEMU did not answer in time: what is told of its disk is older.
    """

    vm: str
    lease: str = ""
    state: VMState
    time: float
    age: float
    cpu_seconds: float
    cpu_percent: float
    memory: int
    memory_private: int
    memory_guest: int
    disk_read: int
    disk_written: int
    disk_space: int
    network_sent: int
    network_received: int
    connections: int
    allowed: int
    refused: int
    snapshots: int
    executing: bool
    stale: bool

    @classmethod
    def of(cls, sample: Sample, vm: str, lease: str, state: VMState) -> VMStats:
        """Return a sample as clients are told of it.

        Args:
            sample: What was measured.
            vm: The VM's id.
            lease: The lease that has it.
            state: Its state now.
        """
        values = {name: int(value) if name in _WHOLE else value for name, value in sample._asdict().items()}
        return cls.model_validate({"vm": vm, "lease": lease, "state": state, **values})


class Moved(Message):
    """What a VM has moved, as counted on the host, as far as its tally does not tell it.

    Attributes:
        vm: Its id.
        disk_read: Bytes that the guest has read from its disk so far.
        disk_written: Bytes that the guest has written so far.
        stale: QEMU did not answer in time: what is told of its disk is older.
        hosts: Names of the hosts that it has spoken with since the time that was asked for; the latest.
        host_count: How many hosts these are in all, up to 256.
    """

    vm: str
    disk_read: int = Field(ge=0)
    disk_written: int = Field(ge=0)
    stale: bool = False
    hosts: Annotated[tuple[Annotated[str, Field(max_length=300)], ...], Field(max_length=MOST_HOSTS)] = ()
    host_count: int = Field(default=0, ge=0)


stats_adapter: TypeAdapter[VMStats] = TypeAdapter(VMStats)
