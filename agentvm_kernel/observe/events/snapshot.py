"""Events of snapshots and forks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from agentvm_kernel.observe.events.vm import OfLease
from agentvm_kernel.observe.fields import (
    Count,
    Event,
    Some,
    Text,
)


class SnapshotCreated(OfLease):
    """A VM was saved.

    Attributes:
        snapshot: The snapshot.
        tree: The notebook's tree of snapshots.
        label: The snapshot's label.
        kind: Asked for by hand, by time travel, or as the common ancestor of forks.
    """

    event: Literal["snapshot_created"] = "snapshot_created"
    snapshot: Text
    tree: Text = ""
    label: Text = ""
    kind: Literal["manual", "auto", "fork"] = "manual"


class ForksMade(OfLease):
    """Clones of a VM were asked for.

    Attributes:
        snapshot: What they are clones of.
        count: How many.
        randomness: Whether their generators are seeded differently or alike.
        seed: From what; empty where each has something new from the host's generator.
        run: The last run before.
    """

    event: Literal["forks_made"] = "forks_made"
    snapshot: Text = ""
    count: Annotated[int, Field(ge=1)]
    randomness: Literal["diverge", "common"] = "diverge"
    seed: Annotated[str, Field(pattern=r"^([0-9a-f]{32})?$")] = ""
    run: Count = 0


class SnapshotRestored(OfLease):
    """A clone of a snapshot took the place of a session's VM: a rollback, or a fork that was adopted.

    Attributes:
        snapshot: The snapshot.
        before: The VM whose place it took.
        tree: The notebook's tree of snapshots.
    """

    event: Literal["snapshot_restored"] = "snapshot_restored"
    snapshot: Text
    before: Text = ""
    tree: Text = ""


class SnapshotRelabelled(OfLease):
    """A snapshot got another label or text.

    Attributes:
        snapshot: The snapshot.
        tree: The notebook's tree of snapshots.
        label: Its label from now on; empty for none.
    """

    event: Literal["snapshot_relabelled"] = "snapshot_relabelled"
    snapshot: Text
    tree: Text = ""
    label: Text = ""


class SnapshotsRemoved(OfLease):
    """Snapshots were removed because a session asked for that.

    Attributes:
        snapshots: The first of them.
        tree: The notebook's tree of snapshots.
        count: How many there were.
    """

    event: Literal["snapshots_removed"] = "snapshots_removed"
    snapshots: Some
    tree: Text = ""
    count: Count


class SnapshotsRepaired(Event):
    """The store of snapshots was cleaned up after a crash.

    Attributes:
        what: What was done.
    """

    event: Literal["snapshots_repaired"] = "snapshots_repaired"
    what: Text
