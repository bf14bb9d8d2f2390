"""What the supervisor and its clients say to each other; validated at both ends."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from agentvm_kernel.anomalies import Action, Severity
from agentvm_kernel.egress.record import Connection
from agentvm_kernel.link.endpoint import UnixEndpoint, VsockEndpoint
from agentvm_kernel.observe.claims import Claims
from agentvm_kernel.profiles import Limits
from agentvm_kernel.snapshots.notes import Cell, Kind, Way

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
        vm: The VM's id.
        way: Which runs lay behind the VM when it began; all that ran in it since are its own.
    """

    notebook: str
    current: str
    snapshots: tuple[SnapshotInfo, ...]
    quota: int
    used: int
    vm: str = ""
    way: Way = ()


class LabelRequest(Message):
    """Give a snapshot another label.

    Attributes:
        label: Its label from now on; empty for none.
        text: What the user says of it; ``None`` leaves that.
    """

    label: Label
    text: str | None = Field(default=None, max_length=2000)


class PruneRequest(Message):
    """Remove snapshots that have no label and are not in use, the oldest first.

    Attributes:
        keep: How many of the newest of them stay.
    """

    keep: int = Field(ge=0, le=1_000_000)


class Removed(Message):
    """Snapshots were removed.

    Attributes:
        removed: Their ids, the oldest first.
        freed: Bytes that this gave.
    """

    removed: tuple[str, ...]
    freed: int


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
        connections: What it sent over the network since the target was taken, and cannot be undone; the newest.
        connection_count: How many connections these are in all.
    """

    target: SnapshotInfo
    left: tuple[SnapshotInfo, ...]
    seconds: float
    written: int
    connections: tuple[Connection, ...] = ()
    connection_count: int = 0


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
        seed: From what they are seeded, so that forks can be repeated; empty for something new.
        cell: What was run last.
    """

    count: int = Field(ge=1, le=64)
    randomness: Literal["diverge", "common"] = "diverge"
    seed: str = Field(default="", pattern=r"^([0-9a-f]{32})?$")
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


class LimitsRequest(Message):
    """Change limits of a leased VM.

    Attributes:
        changes: New values by the names in ``Limits``; what is not named stays as it is.
    """

    changes: dict[str, float | None] = Field(max_length=32)


VMState = Literal["leased", "fork", "resting", "warm", "blank"]
Held = Literal["", "slowed", "paused"]


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
        held: It was slowed down or stopped because of an anomaly; empty if it was not.
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
    held: Held = ""
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
