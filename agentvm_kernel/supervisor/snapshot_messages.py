"""What the supervisor and its clients say to each other about snapshots."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from agentvm_kernel.egress.record import Connection
from agentvm_kernel.snapshots.notes import Cell, Kind, Way
from agentvm_kernel.supervisor.messages import Granted, Message

Label = Annotated[str, Field(max_length=64)]

SnapshotKind = Kind


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
