"""What the audit log says of anomalies, each with what came of it."""

from __future__ import annotations

from collections.abc import Iterable

from agentvm_kernel.observe.chain import Record
from agentvm_kernel.observe.events.anomaly import AnomalyDetected, AnomalyResponse
from agentvm_kernel.server.views import Anomalies, Anomaly

_HELD = frozenset({"slow", "pause"})
"""Responses that can be taken back."""


def read_anomalies(records: Iterable[Record], lease: str) -> Anomalies:
    """Return the anomalies of a lease's machines, oldest first.

    Args:
        records: Of the audit log, oldest first; of other leases and other kinds, too.
        lease: The lease's id.
    """
    found: list[Anomaly] = []
    for record in records:
        event = record.event
        if isinstance(event, AnomalyDetected) and event.lease == lease:
            found.append(_of(record.time, event))
        elif isinstance(event, AnomalyResponse) and event.lease == lease:
            found = [_with(event, one) for one in found]
    return Anomalies(anomalies=tuple(found))


def _of(time: float, event: AnomalyDetected) -> Anomaly:
    return Anomaly(
        time=time, vm=event.vm, rule=event.kind, severity=event.severity, text=event.detail,
        about=event.about.claimed, claimed=event.is_claimed, value=event.value, threshold=event.threshold,
        response=event.response,
    )  # fmt: skip


def _with(event: AnomalyResponse, one: Anomaly) -> Anomaly:
    """Return an anomaly with what came of the response to it, or of what took that back."""
    if event.vm != one.vm:
        return one
    if event.kind:
        is_told = event.kind == one.rule and event.response == one.response and not one.outcome
        return one.model_copy(update={"outcome": event.detail}) if is_told else one
    if one.response not in _HELD or not one.outcome or one.is_over:
        return one
    return one.model_copy(update={"outcome": f"{one.outcome}; {event.detail}", "is_over": True})
