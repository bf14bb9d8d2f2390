"""Which response belongs to which anomaly, and what was taken back."""

from __future__ import annotations

from collections.abc import Iterable

from agentvm_kernel.observe.chain import Record
from agentvm_kernel.observe.events.anomaly import AnomalyDetected, AnomalyResponse
from agentvm_kernel.observe.fields import Event, claimed
from agentvm_kernel.server.anomalies import read_anomalies
from agentvm_kernel.server.views import Anomaly


def seen(rule: str = "own", response: str = "pause", vm: str = "vm-1", lease: str = "l", **more: object) -> Event:
    return AnomalyDetected.model_validate(
        {"vm": vm, "lease": lease, "kind": rule, "severity": "critical", "value": 2.5, "threshold": 1}
        | {"response": response} | more
    )  # fmt: skip


def done(rule: str = "own", response: str = "pause", vm: str = "vm-1", lease: str = "l", detail: str = "did") -> Event:
    return AnomalyResponse(vm=vm, lease=lease, kind=rule, response=response, detail=detail)


def read(*events: Event) -> tuple[Anomaly, ...]:
    return read_anomalies(
        (Record(sequence=number, time=float(number), event=event, previous="0" * 64)
         for number, event in enumerate(events, 1)), "l",
    ).anomalies  # fmt: skip


def outcomes(found: Iterable[Anomaly]) -> list[tuple[str, bool]]:
    return [(one.outcome, one.is_over) for one in found]


def test_an_anomaly_is_told_with_its_figures_and_what_it_is_about() -> None:
    (one,) = read(seen(detail="tried much", about=claimed("<b>"), is_claimed=True, severity="warning"))
    assert (one.time, one.vm, one.rule, one.severity) == (1, "vm-1", "own", "warning")
    assert (one.value, one.threshold, one.text, one.about, one.claimed) == (2.5, 1, "tried much", "<b>", True)
    assert (one.response, one.outcome) == ("pause", "")


def test_a_response_is_that_to_its_own_rule_in_its_own_machine() -> None:
    found = read(seen(), seen("other"), seen(vm="vm-2"), done())
    assert outcomes(found) == [("did", False), ("", False), ("", False)]


def test_a_later_episode_has_an_outcome_of_its_own() -> None:
    assert outcomes(read(seen(), done(detail="first"), seen(), done(detail="second"))) == [
        ("first", False), ("second", False)
    ]  # fmt: skip


def test_what_was_taken_back_is_over_and_what_comes_later_is_not() -> None:
    back = done("", "resume", detail="runs on")
    assert outcomes(read(seen(), done(), seen("note", "note"), back, seen("later"), done("later"))) == [
        ("did; runs on", True), ("", False), ("did", False)
    ]  # fmt: skip
    assert outcomes(read(seen(), done(), back, back)) == [("did; runs on", True)]


def test_other_leases_are_left_out() -> None:
    assert read(seen(lease="m"), done(lease="m")) == ()
    assert outcomes(read(seen(), done(lease="m"))) == [("", False)]


def test_what_is_only_of_note_is_not_counted() -> None:
    records = [Record(sequence=1, time=1.0, event=seen(severity=one), previous="0" * 64)
               for one in ("info", "warning", "critical")]  # fmt: skip
    assert read_anomalies(records, "l").count == 2
