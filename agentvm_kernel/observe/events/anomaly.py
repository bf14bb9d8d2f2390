"""Events of anomalies."""

from __future__ import annotations

from typing import Literal

from agentvm_kernel.observe.events.vm import OfLease
from agentvm_kernel.observe.fields import (
    Claimed,
    Text,
)


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
