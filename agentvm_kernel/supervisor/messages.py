"""What the supervisor and its clients say to each other, validated at both ends: what all messages are, and leases."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from agentvm_kernel.anomalies import Action, Severity
from agentvm_kernel.link.endpoint import UnixEndpoint, VsockEndpoint
from agentvm_kernel.profiles import Limits

API_VERSION = 1


class Message(BaseModel):
    """Base: immutable, and unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


HostPattern = Annotated[str, Field(max_length=300)]
Hosts = Annotated[tuple[HostPattern, ...], Field(max_length=256)]
NetworkMode = Literal["filtered", "isolated", "record-only"]


class LeaseRequest(Message):
    """Ask for a VM.

    Attributes:
        image: Flavour of the image (``minimal`` or ``standard``); empty for the configured default.
        profile: Name of the profile; empty for the configured default.
        owner: What the lease is for, shown in listings (a kernel id, a script's name).
        notebook: What the snapshots belong to: a path, or another name that stays the same when the kernel restarts;
            empty for the owner.
        mode: What the session does with the network; ``None`` for what is configured.
        allow: Hosts that the session may reach besides those that the configuration allows.
        deny: Hosts that it may not.
        inspect: Hosts, of those that are allowed, whose TLS the gateway ends itself.
    """

    image: str = Field(default="", max_length=64, pattern=r"^[a-z0-9-]*$")
    profile: str = Field(default="", max_length=64)
    owner: str = Field(default="", max_length=200)
    notebook: str = Field(default="", max_length=4096)
    mode: NetworkMode | None = None
    allow: Hosts = ()
    deny: Hosts = ()
    inspect: Hosts = ()


class Progress(Message):
    """How far the way to a VM is.

    Attributes:
        stage: What is going on, in a few words ("building the image: installing packages").
        done: Share of the stage that is done, 0 to 1, where it is known.
    """

    event: Literal["progress"] = "progress"
    stage: str
    done: float | None = None


class Granted(Message):
    """A VM is leased; its identity is confirmed.

    Attributes:
        lease: The lease's id; stays the same when a rollback changes the VM.
        snapshot: Id of the snapshot that it is a clone of; empty for the golden one.
        vm: The VM's id.
        epoch: Number of this clone; both ends of the link drop frames of another.
        key: The link's shared key, 32 bytes in hexadecimal.
        link: Where to dial the guest agent.
        image: Digest of the image.
        flavour: Flavour of the image.
        profile: Name of the profile.
        vcpus: Virtual CPUs.
        memory_mib: Guest memory, MiB.
        disk_gb: Guest disk, GB.
        accelerator: ``kvm`` or ``tcg``.
        pid: Process id of QEMU on the host, for measuring.
        acquire_ms: Milliseconds from the request's arrival to the confirmed identity.
        limits: What holds for what runs in it.
        record_code: The audit log has the code of cells, too.
        tally: File in which what it moves is counted; see ``tally.py``. Empty where that is not done.
    """

    event: Literal["granted"] = "granted"
    lease: str = ""
    snapshot: str = ""
    vm: str
    epoch: int
    key: str = Field(min_length=64, max_length=64, repr=False)
    link: Annotated[UnixEndpoint | VsockEndpoint, Field(discriminator="kind")]
    image: str
    flavour: str
    profile: str
    vcpus: int
    memory_mib: int
    disk_gb: int
    accelerator: Literal["kvm", "tcg"]
    pid: int
    acquire_ms: float
    limits: Limits = Limits()
    record_code: bool = False
    tally: str = ""


class Ended(Message):
    """The leased VM is gone, or could not be had.

    Attributes:
        code: Code of the error (see ``agentvm_kernel.errors``) or ``vm_ended``.
        reason: What happened, one line a user understands.
        hint: The remedy.
    """

    event: Literal["ended"] = "ended"
    code: str
    reason: str
    hint: str = ""


class Leaving(Message):
    """The supervisor is about to leave, and lets its VMs be kept.

    Who snapshots the lease's VM and closes the lease now can go back to that snapshot with the next supervisor. What is
    not closed in time is ended.

    Attributes:
        seconds: How much time there is.
    """

    event: Literal["leaving"] = "leaving"
    seconds: float


class Blocked(Message):
    """A connection of the lease's VM was refused; told once for each host and port of a cell.

    Attributes:
        run: Number of the cell's run; 0 if none is known.
        name: The host, as the guest named it, or an address.
        port: The port.
        reason: Why, in a few words.
        hint: The remedy; empty if there is none.
    """

    event: Literal["blocked"] = "blocked"
    run: int = 0
    name: str
    port: int
    reason: str
    hint: str = ""


class Noticed(Message):
    """Something unusual goes on in the lease's VM, or in one of its forks.

    Attributes:
        vm: The VM.
        run: Number of the cell's run that runs, or ran last; 0 if none is known.
        rule: By which rule.
        severity: How bad that is.
        text: What it means, in a few words.
        about: Which host it is about, as the guest named it; empty if it is about none.
        value: What was compared with the threshold.
        threshold: The rule's.
        claimed: It rests on what the guest says of itself.
        response: What is done.
    """

    event: Literal["noticed"] = "noticed"
    vm: str
    run: int = 0
    rule: str
    severity: Severity
    text: str
    about: str = ""
    value: float
    threshold: float
    claimed: bool = False
    response: Action


LeaseEvent = Progress | Granted | Blocked | Noticed | Leaving | Ended
lease_event_adapter: TypeAdapter[LeaseEvent] = TypeAdapter(Annotated[LeaseEvent, Field(discriminator="event")])


class LimitsRequest(Message):
    """Change limits of a leased VM.

    Attributes:
        changes: New values by the names in ``Limits``; what is not named stays as it is.
    """

    changes: dict[str, float | None] = Field(max_length=32)
