"""All events that can stand in the audit log."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Final, get_args

from pydantic import Field, TypeAdapter

from agentvm_kernel.observe.events.anomaly import AnomalyDetected, AnomalyResponse
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
from agentvm_kernel.observe.events.log import DayBegan, LogDamaged, LogPruned, LogRepaired
from agentvm_kernel.observe.events.network import (
    ConnectionsLeftOut,
    LinkRefused,
    NetworkConnectionAllowed,
    NetworkConnectionBlocked,
)
from agentvm_kernel.observe.events.snapshot import (
    ForksMade,
    SnapshotCreated,
    SnapshotRelabelled,
    SnapshotRestored,
    SnapshotsRemoved,
    SnapshotsRepaired,
)
from agentvm_kernel.observe.events.supervisor import (
    ConfigurationChanged,
    ImageUpdated,
    SupervisorStarted,
    SupervisorStopped,
)
from agentvm_kernel.observe.events.vm import (
    LeaseAcquired,
    LeaseReleased,
    VMCreated,
    VMDestroyed,
    VMStarted,
    VMStopped,
)
from agentvm_kernel.observe.fields import Event

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
