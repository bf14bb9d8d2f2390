"""What can stand in the audit log: a model for each event."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Final, Literal, get_args

from pydantic import Field, TypeAdapter

from agentvm_kernel.firewall.reasons import Reason
from agentvm_kernel.observe.fields import (
    Accelerator,
    Claimed,
    Code,
    Count,
    Digest,
    Event,
    Hosts,
    Long,
    Seconds,
    Some,
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


# VMs


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


# Leases and snapshots


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


# Executions


class Execution(OfLease):
    """Something ran in a VM.

    Attributes:
        kind: A cell, or a program.
        run: Number of the run within its session.
        fork: Number of the fork that it ran in; 0 for the session's own VM.
        digest: SHA-256 of the cell's code (UTF-8), of a program's file or else of its arguments (as JSON).
    """

    kind: Literal["cell", "program"] = "cell"
    run: Count = 0
    fork: Count = 0
    digest: Digest


class ExecutionStarted(Execution):
    """It began.

    Attributes:
        code: Its code, only if the configuration says so.
        allow: Hosts that only it may reach.
        cell: Id of the notebook's cell, as the front end says.
    """

    event: Literal["execution_started"] = "execution_started"
    code: Code = ""
    cell: Text = ""
    allow: Hosts = ()


class ExecutionEnded(Execution):
    """It ended.

    Attributes:
        seconds: How long it took, by the host's clock.
        cpu_seconds: CPU time that it took, as measured on the host; ``None`` where it was not.
        memory_grown: By how many bytes the VM's memory has grown, likewise.
        network_sent: Bytes that were sent, likewise.
        network_received: Bytes that were received, likewise.
        count: The execution count that the guest gave.
        reason: Why, as the host knows it.
        error: The exception's name, as the guest says.
    """

    seconds: Seconds = 0.0
    cpu_seconds: Seconds | None = None
    memory_grown: Count | None = None
    network_sent: Count | None = None
    network_received: Count | None = None
    count: Count | None = None
    reason: Text = ""
    error: Claimed = Claimed()


class ExecutionCompleted(ExecutionEnded):
    """It ended without an error, as the guest says."""

    event: Literal["execution_completed"] = "execution_completed"


class ExecutionFailed(ExecutionEnded):
    """It raised an exception, was interrupted or cut off, or its VM is gone."""

    event: Literal["execution_failed"] = "execution_failed"


class ExecutionTimeout(ExecutionEnded):
    """It ran longer than it may."""

    event: Literal["execution_timeout"] = "execution_timeout"


class OutputShown(Execution):
    """All that a cell has shown until it was idle.

    Attributes:
        outputs: Its digest, see `agentvm_kernel.observe.outputs`.
    """

    event: Literal["output_shown"] = "output_shown"
    outputs: Digest


class FilesCopied(OfLease):
    """A file or a folder was copied into a VM, or out of it; the session says so.

    Attributes:
        way: Into the VM, or out of it.
        path: What was copied, as it was named: on the host, or in the VM.
        digest: SHA-256 of the file; of a folder see `agentvm_kernel.run.carrier`.
        size: Bytes of content.
        run: Number of the run that did it; 0 where it was none.
    """

    event: Literal["files_copied"] = "files_copied"
    way: Literal["push", "pull"]
    path: Long = ""
    digest: Digest
    size: Count = 0
    run: Count = 0


class ReportsMissing(OfLease):
    """A session had more to tell of its executions than it could.

    Attributes:
        count: How many reports are missing.
    """

    event: Literal["reports_missing"] = "reports_missing"
    count: Count


class ResourceLimitExceeded(OfLease):
    """Something was more than a limit.

    Attributes:
        limit: Name of the limit.
        run: Number of the run, if one was to blame.
    """

    event: Literal["resource_limit_exceeded"] = "resource_limit_exceeded"
    limit: Text
    run: Count = 0


class OutputBlocked(OfLease):
    """Output of a run was not let through to the browser.

    Attributes:
        reason: Why.
        count: How often.
        run: Number of the run; 0 if it is not known.
    """

    event: Literal["output_blocked"] = "output_blocked"
    reason: Reason
    count: Annotated[int, Field(ge=1)] = 1
    run: Count = 0


# Network


class NetworkConnection(OfLease):
    """A program in a VM wanted to connect to a host.

    Attributes:
        run: Number of the run in which it did; 0 between runs.
        name: The host, as the guest named it.
        address: The address that was connected to; of a refused connection, the one that the guest named.
        port: The port.
        rule: The rule that decided.
        reason: Why.
        count: How many alike it stands for.
    """

    run: Count = 0
    name: Claimed = Claimed()
    address: Text = ""
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    rule: Text = ""
    reason: Claimed = Claimed()
    count: Annotated[int, Field(ge=1)] = 1


class NetworkConnectionAllowed(NetworkConnection):
    """It was let through."""

    event: Literal["network_connection_allowed"] = "network_connection_allowed"


class NetworkConnectionBlocked(NetworkConnection):
    """It was refused."""

    event: Literal["network_connection_blocked"] = "network_connection_blocked"


class ConnectionsLeftOut(OfLease):
    """A session had so many connections that not all of them are written down here.

    Attributes:
        verdict: What became of them.
        count: How many are left out.
    """

    event: Literal["connections_left_out"] = "connections_left_out"
    verdict: Literal["allowed", "blocked"]
    count: Annotated[int, Field(ge=1)] = 1


class LinkRefused(OfLease):
    """Somebody without the key wanted to talk to a VM's guest agent.

    Attributes:
        reason: Why it was refused, as the guest says.
        count: How often it has happened in this VM.
    """

    event: Literal["link_refused"] = "link_refused"
    reason: Claimed = Claimed()
    count: Annotated[int, Field(ge=1)] = 1


# The host


class AnomalyDetected(OfLease):
    """Something unusual was seen.

    Attributes:
        kind: Name of the rule.
        severity: How bad that is, as the rule says.
        value: What was seen.
        threshold: From what on it is unusual.
        is_claimed: Whether the guest itself said so.
        about: What it is about, such as a host, as the guest named it.
        response: What is done.
        detail: What the rule is for.
    """

    event: Literal["anomaly_detected"] = "anomaly_detected"
    kind: Text
    severity: Text
    value: float
    threshold: float
    is_claimed: bool = False
    about: Claimed = Claimed()
    response: Text
    detail: Text = ""


class AnomalyResponse(OfLease):
    """Something was done about it, or taken back.

    Attributes:
        kind: Name of the rule; empty where it was taken back.
        response: What was done.
        detail: What came of it.
    """

    event: Literal["anomaly_response"] = "anomaly_response"
    kind: Text = ""
    response: Text
    detail: Text = ""


class ImageUpdated(Event):
    """An image was booted for the first time on some hardware, and its golden snapshot made.

    Attributes:
        flavour: The image's flavour.
        image: The image's digest.
        snapshot: The golden snapshot.
    """

    event: Literal["image_updated"] = "image_updated"
    flavour: Text = ""
    image: Text
    snapshot: Text = ""


class ConfigurationChanged(Event):
    """Limits, network or shared folder of a session were changed, or the supervisor read its configuration again.

    Attributes:
        what: What was changed.
        vm: The session's VM; empty for the supervisor.
        lease: The lease.
        notebook: Whose it is.
    """

    event: Literal["configuration_changed"] = "configuration_changed"
    what: Long
    vm: Text = ""
    lease: Text = ""
    notebook: Long = ""


class SupervisorStarted(Event):
    """A supervisor began.

    Attributes:
        version: Its version.
        pid: Its process id.
        accelerator: Under ``tcg`` QEMU promises no isolation.
        reason: Why that one.
    """

    event: Literal["supervisor_started"] = "supervisor_started"
    version: Text = ""
    pid: Count = 0
    accelerator: Accelerator = ""
    reason: Text = ""


class SupervisorStopped(Event):
    """It left in good order; where this is missing before the next start, it was killed."""

    event: Literal["supervisor_stopped"] = "supervisor_stopped"


# The log itself


class DayBegan(Event):
    """The first record of each file.

    Attributes:
        day: The file's day (UTC).
    """

    event: Literal["day_began"] = "day_began"
    day: Annotated[str, Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$")]


class LogRepaired(Event):
    """Half a record stood at the end, as a crash in the middle of writing leaves it, and was cut off.

    Attributes:
        file: In which file.
        line: The number of the line that it was.
        offset: Where it began, bytes.
        size: Its length, bytes.
        digest: Its SHA-256.
        kept: Name of the file beside the log that has it; empty if it could not be kept.
    """

    event: Literal["log_repaired"] = "log_repaired"
    file: Text
    line: Count
    offset: Count
    size: Count
    digest: Digest
    kept: Text = ""


class LogDamaged(Event):
    """The log did not end, when a supervisor started, as the last one had left it.

    Attributes:
        what: What is wrong.
        last: Number of the last record that was written, by the head file.
        digest: Its digest.
    """

    event: Literal["log_damaged"] = "log_damaged"
    what: Text
    last: Count = 0
    digest: Digest = "0" * 64


class LogPruned(Event):
    """A file is about to be removed because it is old; the chain can be followed to its end all the same.

    Attributes:
        day: The file's day.
        last: Number of its last record.
        digest: The digest of that record.
    """

    event: Literal["log_pruned"] = "log_pruned"
    day: Text
    last: Count
    digest: Digest


AnyEvent = Annotated[
    VMCreated
    | VMStarted
    | VMStopped
    | VMDestroyed
    | LeaseAcquired
    | LeaseReleased
    | SnapshotCreated
    | SnapshotRestored
    | ForksMade
    | SnapshotRelabelled
    | SnapshotsRemoved
    | SnapshotsRepaired
    | ExecutionStarted
    | ExecutionCompleted
    | ExecutionFailed
    | ExecutionTimeout
    | OutputShown
    | FilesCopied
    | ReportsMissing
    | ResourceLimitExceeded
    | OutputBlocked
    | NetworkConnectionAllowed
    | NetworkConnectionBlocked
    | ConnectionsLeftOut
    | LinkRefused
    | AnomalyDetected
    | AnomalyResponse
    | ImageUpdated
    | ConfigurationChanged
    | SupervisorStarted
    | SupervisorStopped
    | DayBegan
    | LogRepaired
    | LogDamaged
    | LogPruned,
    Field(discriminator="event"),
]
MODELS: Final[tuple[type[Event], ...]] = get_args(get_args(AnyEvent)[0])
EVENTS: Final = tuple(sorted(model.model_fields["event"].default for model in MODELS))
"""The names of all events."""


@cache
def event_adapter() -> TypeAdapter[AnyEvent]:
    """Return what reads an event; made when it is needed, because that takes a while."""
    return TypeAdapter(AnyEvent)
