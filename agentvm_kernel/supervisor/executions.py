"""What ran in a lease's VMs, as its session tells, into the audit log."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from agentvm_kernel.observe.events.execution import (
    ExecutionCompleted,
    ExecutionFailed,
    ExecutionStarted,
    ExecutionTimeout,
    FilesCopied,
    OutputBlocked,
    OutputShown,
    ReportsMissing,
    ResourceLimitExceeded,
)
from agentvm_kernel.observe.fields import Event, Subject, claimed, hosts
from agentvm_kernel.observe.metrics import Metrics
from agentvm_kernel.supervisor.execution_messages import MEASURED, Copied, Execution, Report
from agentvm_kernel.supervisor.network_messages import CellRequest

_End = type[ExecutionCompleted | ExecutionFailed | ExecutionTimeout]
_ENDS: Final[dict[str, _End]] = {
    "completed": ExecutionCompleted,
    "failed": ExecutionFailed,
    "timeout": ExecutionTimeout,
}
_OPEN: Final = 1024
"""Executions that are remembered until their end is told."""


class Executions:
    """Takes what a session tells of its executions.

    Args:
        subject: Returns which VM, lease and notebook events are about, as long as reports name no other VM.
        record: Takes an event into the audit log.
        metrics: Count.
    """

    def __init__(self, subject: Callable[[], Subject], record: Callable[[Event], None], metrics: Metrics) -> None:
        self._about = subject
        self._record = record
        self._metrics = metrics
        self._open: OrderedDict[tuple[str, int, int, str], Execution] = OrderedDict()

    @property
    def are_running(self) -> bool:
        """Whether the lease's own VM runs one, as its session says."""
        return any(one.fork == 0 for one in self._open.values())

    def take(self, request: CellRequest) -> None:
        """Take what has happened since the last request."""
        for one in request.executions:
            if isinstance(one, Copied):
                about = {"way": one.way, "path": one.path, "digest": one.digest, "size": one.size, "run": one.run}
                self._record(FilesCopied.model_validate({**self._subject(one), **about}))
            else:
                self._take(one)
        if request.unsaid:
            self._record(ReportsMissing(**self._about(), count=request.unsaid))

    def close(self) -> None:
        """Note that of what runs no end will be told: the session is over."""
        for one in self._open.values():
            self._end(ExecutionFailed, one, "its session was over before it was")
            self._metrics.execution("failed", None)
        self._open.clear()

    def _take(self, one: Execution) -> None:
        subject, key = self._subject(one), (one.kind, one.run, one.fork, one.digest)
        for reason, count in one.blocked.items():
            self._record(OutputBlocked(**subject, reason=reason, count=count, run=one.run))
            self._metrics.output_blocked(reason, count)
        for limit in one.limits:
            self._record(ResourceLimitExceeded(**subject, limit=limit, run=one.run))
            self._metrics.limit_violation(limit)
        if one.happened == "started":
            self._open[key] = one
            if len(self._open) > _OPEN:
                self._open.popitem(last=False)
            self._record(
                ExecutionStarted(
                    **subject, kind=one.kind, run=one.run, fork=one.fork, digest=one.digest,
                    code=one.code, allow=hosts(one.allow), cell=one.cell,
                )
            )  # fmt: skip
        elif one.happened == "shown":
            self._record(
                OutputShown(
                    **subject, kind=one.kind, run=one.run, fork=one.fork, digest=one.digest, outputs=one.outputs
                )
            )
        elif one.happened != "going on":
            self._open.pop(key, None)
            self._end(_ENDS[one.happened], one, one.reason)
            self._metrics.execution(one.happened, one.seconds)

    def _end(self, made: _End, one: Execution, reason: str) -> None:
        self._record(
            made(
                **self._subject(one), kind=one.kind, run=one.run, fork=one.fork, digest=one.digest,
                seconds=one.seconds, count=one.count, reason=reason, error=claimed(one.error),
                **{name: getattr(one, name) for name in MEASURED},
            )
        )  # fmt: skip

    def _subject(self, one: Report) -> Subject:
        subject = self._about()
        if one.vm:
            subject["vm"] = one.vm
        return subject
