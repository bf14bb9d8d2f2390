"""What the supervisor says of itself, and of what it refuses."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from agentvm_kernel.profiles import Limits
from agentvm_kernel.supervisor.messages import Granted, LeaseRequest, Message


class _Lenient(Message):
    """Of a supervisor of another version, too: what is not known is left out."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class LeaseInfo(_Lenient):
    """A lease, without what would give access to its VM.

    Attributes:
        lease: Its id.
        owner: What it is for.
        notebook: What its snapshots belong to.
        vm: Id of the VM that it has.
        snapshot: Id of the snapshot that the VM is a clone of; empty for the golden one.
        image: Digest of the image.
        flavour: Flavour of the image.
        profile: Name of the profile.
        vcpus: Virtual CPUs.
        memory_mib: Guest memory, MiB.
        disk_gb: Guest disk, GB.
        pid: Process id of QEMU.
        limits: What holds for what runs in it.
        network: What it may reach, in words: mode, a digest of all rules, and those that are not this package's own.
        hypervisor: Versions of QEMU and libvirt.
    """

    lease: str
    owner: str = ""
    notebook: str = ""
    vm: str
    snapshot: str = ""
    image: str
    flavour: str
    profile: str
    vcpus: int
    memory_mib: int
    disk_gb: int
    pid: int
    limits: Limits = Limits()
    network: str = ""
    hypervisor: str = ""

    @classmethod
    def of(cls, granted: Granted, request: LeaseRequest, *, network: str, hypervisor: str) -> LeaseInfo:
        """Return what may be told of a lease.

        Args:
            granted: What its session was told.
            request: What that had asked for.
            network: What it may reach.
            hypervisor: Versions of QEMU and libvirt.
        """
        asked = request.model_dump(include={"owner", "notebook"})
        told = {"network": network, "hypervisor": hypervisor}
        return cls.model_validate(granted.model_dump(exclude={"key"}) | asked | told)


class Status(_Lenient):
    """The supervisor.

    Attributes:
        version: Version of the package that it runs.
        pid: Its process id.
        uptime: Seconds since it was started.
        libvirt: Its libvirt connection.
        accelerator: ``kvm`` or ``tcg``.
        accelerator_reason: Why that.
        ready: How many warm VMs and blanks are ready, by snapshot.
        leases: What is leased.
        enforced_by: Who enforces which limit on this host.
    """

    version: str
    pid: int
    uptime: float
    libvirt: str
    accelerator: Literal["kvm", "tcg"]
    accelerator_reason: str = ""
    ready: dict[str, dict[str, int]] = Field(default_factory=dict)
    leases: tuple[LeaseInfo, ...] = ()
    enforced_by: dict[str, str] = Field(default_factory=dict)


class Reloaded(Message):
    """The configuration was read again.

    Attributes:
        changed: Names of what is different now; some only from the supervisor's next start on, and say so.
    """

    changed: tuple[str, ...]


class Refusal(Message):
    """What was asked for has not been done.

    Attributes:
        code: Which error it is, for programs.
        message: What happened, one line.
        hint: What can be done about it, one line; empty if there is nothing.
    """

    code: str = Field(max_length=64)
    message: str
    hint: str = ""
