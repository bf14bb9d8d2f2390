"""What the supervisor and its clients say to each other; validated at both ends."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from agentvm_kernel.link.endpoint import UnixEndpoint, VsockEndpoint

API_VERSION = 1


class Message(BaseModel):
    """Base: immutable, and unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class LeaseRequest(Message):
    """Ask for a VM.

    Attributes:
        image: Flavour of the image (``minimal`` or ``standard``); empty for the configured default.
        profile: Name of the profile; empty for the configured default.
        owner: What the lease is for, shown in listings (a kernel id, a script's name).
    """

    image: str = Field(default="", max_length=64, pattern=r"^[a-z0-9-]*$")
    profile: str = Field(default="", max_length=64, pattern=r"^[a-z0-9-]*$")
    owner: str = Field(default="", max_length=200)


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
    """

    event: Literal["granted"] = "granted"
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


LeaseEvent = Annotated[Progress | Granted | Ended, Field(discriminator="event")]
lease_event_adapter: TypeAdapter[Progress | Granted | Ended] = TypeAdapter(LeaseEvent)
