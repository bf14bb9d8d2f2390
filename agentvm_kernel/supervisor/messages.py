"""What the supervisor and its clients say to each other; validated at both ends."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from agentvm_kernel.link.endpoint import UnixEndpoint, VsockEndpoint
from agentvm_kernel.snapshots.notes import Cell, Kind

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
        notebook: What the snapshots belong to: a path, or another name that stays the same when the kernel restarts;
            empty for the owner.
    """

    image: str = Field(default="", max_length=64, pattern=r"^[a-z0-9-]*$")
    profile: str = Field(default="", max_length=64, pattern=r"^[a-z0-9-]*$")
    owner: str = Field(default="", max_length=200)
    notebook: str = Field(default="", max_length=4096)


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


Label = Annotated[str, Field(max_length=64)]
SnapshotKind = Kind
Randomness = Literal["keep", "diverge", "common"]


class SnapshotRequest(Message):
    """Take a snapshot of a leased VM.

    Attributes:
        label: Its name within the notebook's tree; empty for none.
        text: What the user says of it.
        kind: Asked for by hand, by time travel, or as the common ancestor of forks.
        cell: What was run last.
        busy: A cell is running: the snapshot freezes it.
        wait_stored: Answer once it is safe on disk; otherwise once the VM runs on.
    """

    label: Label = ""
    text: str = Field(default="", max_length=2000)
    kind: SnapshotKind = "manual"
    cell: Cell = Cell()
    busy: bool = False
    wait_stored: bool = True


class SnapshotInfo(Message):
    """One snapshot of a notebook's tree.

    Attributes:
        id: Twelve hexadecimal digits.
        parent: Id of the snapshot it descends from; empty for the machine's first state.
        label: Its name, if it has one.
        text: What the user says of it.
        kind: See ``SnapshotRequest``.
        created: Seconds since the epoch.
        size: Bytes that it alone takes on disk.
        written: Bytes of memory written since its parent.
        cell: The cell that led there.
        busy: It froze a running cell.
        pause_ms: How long the VM stood still for it, milliseconds.
        stored: It is safe on disk.
    """

    id: str
    parent: str
    label: str
    text: str
    kind: SnapshotKind
    created: float
    size: int
    written: int
    cell: Cell
    busy: bool
    pause_ms: float
    stored: bool = True


class SnapshotTree(Message):
    """A notebook's snapshots, oldest first.

    Attributes:
        notebook: The tree's id.
        current: Id of the snapshot that the VM descends from; empty for the machine's first state.
        snapshots: All of the tree.
        quota: Bytes that a user's snapshots may take together.
        used: Bytes that they take now.
    """

    notebook: str
    current: str
    snapshots: tuple[SnapshotInfo, ...]
    quota: int
    used: int


class RollbackRequest(Message):
    """Go back.

    Attributes:
        to: Label, id, unique beginning of an id, or ``~N`` (N snapshots before the current one); empty for the current
            one, which is the newest on the VM's branch.
    """

    to: str = Field(default="", max_length=300)


class RollbackPlan(Message):
    """What a rollback would do.

    Attributes:
        target: Where it would lead.
        left: Snapshots between the target and the VM, newest first: they stay in the tree, on a branch that is left.
        seconds: Age of the target.
        written: Bytes of memory that the VM has written since the current snapshot, and that would be lost.
    """

    target: SnapshotInfo
    left: tuple[SnapshotInfo, ...]
    seconds: float
    written: int


class Replaced(Message):
    """The lease has another VM: after a rollback or when a fork was adopted. The old one is gone.

    Attributes:
        granted: The new VM.
        snapshot: What it is a clone of.
        seconds: How long it took, from the request to the confirmed identity.
    """

    granted: Granted
    snapshot: SnapshotInfo
    seconds: float


class ForkRequest(Message):
    """Clone the leased VM several times. The forks of an earlier request end.

    Attributes:
        count: How many.
        randomness: ``diverge``: the generators of each fork are seeded differently; ``common``: all alike (but the
            kernel's, which always differs).
        cell: What was run last.
    """

    count: int = Field(ge=1, le=64)
    randomness: Literal["diverge", "common"] = "diverge"
    cell: Cell = Cell()


class ForkGranted(Message):
    """One fork is there, running.

    Attributes:
        fork: Its number, from 1.
        granted: Its VM.
    """

    event: Literal["fork"] = "fork"
    fork: int
    granted: Granted


class ForkEnded(Message):
    """One fork's VM is gone, or could not be had.

    Attributes:
        fork: Its number, from 1.
        code: Code of the error.
        reason: What happened.
        hint: The remedy.
    """

    event: Literal["fork_ended"] = "fork_ended"
    fork: int
    code: str
    reason: str
    hint: str = ""


ForkEvent = Annotated[Progress | ForkGranted | ForkEnded, Field(discriminator="event")]
fork_event_adapter: TypeAdapter[Progress | ForkGranted | ForkEnded] = TypeAdapter(ForkEvent)
