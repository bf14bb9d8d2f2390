"""Events of what runs in VMs: its beginning, its end, what it shows, and what is copied."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from agentvm_kernel.firewall.reasons import Reason
from agentvm_kernel.observe.events.vm import OfLease
from agentvm_kernel.observe.fields import (
    Claimed,
    Code,
    Count,
    Digest,
    Hosts,
    Long,
    Seconds,
    Text,
)


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
