"""What can stand in the audit log: every event has a model, and what guests made up is bounded and marked."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from agentvm_kernel.firewall.reasons import Reason
from agentvm_kernel.observe.chain import MAX_LINE, Record, line_of, read_line
from agentvm_kernel.observe.describe import describe
from agentvm_kernel.observe.events.execution import ExecutionFailed, ExecutionStarted, OutputBlocked
from agentvm_kernel.observe.events.known import EVENTS, MODELS
from agentvm_kernel.observe.events.network import NetworkConnectionBlocked
from agentvm_kernel.observe.events.vm import VMStopped
from agentvm_kernel.observe.fields import Claimed, Event, claimed, hosts

PROMISED = """vm_created, vm_started, vm_stopped, vm_destroyed, snapshot_created, snapshot_restored, execution_started,
execution_completed, execution_failed, execution_timeout, resource_limit_exceeded, network_connection_allowed,
network_connection_blocked, output_blocked, anomaly_detected, image_updated, configuration_changed, lease_acquired,
lease_released"""

GIVEN = {
    "outputs": "e" * 64,
    "vm": "vm-1", "snapshot": "s", "what": "w", "digest": "d" * 64, "limit": "l", "reason": Reason.SCRIPT, "kind": "k",
    "image": "i", "day": "2026-01-01", "file": "f", "line": 1, "offset": 1, "size": 1, "last": 1, "count": 1,
    "verdict": "blocked", "severity": "warning", "value": 2.5, "threshold": 1.5, "response": "note",
    "snapshots": ("s",), "way": "pull",
}  # fmt: skip


def made(model: type[Event]) -> Event:
    """An event with what it must have."""
    needed = {key for key, about in model.model_fields.items() if about.is_required()}
    return model.model_validate({key: GIVEN[key] for key in needed})


def test_every_event_that_is_promised_has_a_model() -> None:
    assert set(PROMISED.replace("\n", " ").split(", ")) <= set(EVENTS)
    assert len(EVENTS) == len(MODELS)


@pytest.mark.parametrize("model", MODELS)
def test_an_event_comes_back_from_its_line_as_it_went_in(model: type[Event]) -> None:
    event = made(model)
    assert read_line(line_of(1, 2.5, event, "0" * 64, 3)) == Record(
        sequence=1, time=2.5, event=event, previous="0" * 64, lost=3
    )


@pytest.mark.parametrize("model", MODELS)
def test_no_event_has_a_field_of_the_records_own(model: type[Event]) -> None:
    assert not {"sequence", "time", "previous", "lost"} & set(model.model_fields)


@pytest.mark.parametrize("model", MODELS)
def test_unknown_fields_are_refused(model: type[Event]) -> None:
    values = json.loads(line_of(1, 2.5, made(model), "0" * 64))
    with pytest.raises(ValueError, match="Extra inputs"):
        read_line(json.dumps(values | {"more": 1}).encode())


@pytest.mark.parametrize(
    "line",
    [
        b"", b"[]", b"null", b"{}", b"\xff", b'{"event":"nothing"}', b"[" * 100_000,
        b'{"sequence":0,"time":1,"event":"supervisor_stopped","previous":"' + b"0" * 64 + b'"}',
        b'{"sequence":1,"time":NaN,"event":"supervisor_stopped","previous":"' + b"0" * 64 + b'"}',
        b'{"sequence":1,"time":1,"event":"supervisor_stopped","previous":"x"}',
        b'{"sequence":1,"time":1,"event":"supervisor_stopped","previous":"' + b"0" * 64 + b'","a":"' + b"x" * MAX_LINE,
    ],
)  # fmt: skip
def test_what_is_no_record_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        read_line(line)


def test_a_record_does_not_grow_with_what_a_guest_says() -> None:
    text = "\N{GRINNING FACE}" * 1_000_000
    event = NetworkConnectionBlocked(vm=text, notebook=text, name=claimed(text), address=text, reason=claimed(text))
    assert event.name == Claimed(claimed=text[:512], cut=1_000_000 - 512)
    assert len(line_of(1, 1.0, event, "0" * 64)) < MAX_LINE
    code = ExecutionStarted(vm="v", digest="d" * 64, code=text, notebook=text, allow=hosts([text] * 256))
    assert len(line_of(1, 1.0, code, "0" * 64)) < MAX_LINE
    assert code.allow[-1] == "and 206 more"


@given(st.text(st.characters(codec=None, categories=None)))
def test_any_text_of_a_guest_can_be_written_and_read(text: str) -> None:
    event = ExecutionFailed(vm=text, digest="d" * 64, reason=text, error=claimed(text))
    line = line_of(1, 1.0, event, "0" * 64)
    assert b"\n" not in line
    assert read_line(line).event == event


def test_what_a_guest_claims_is_called_so_and_cannot_steer_a_terminal() -> None:
    said = describe(ExecutionFailed(vm="v", digest="d" * 64, error=claimed("\x1b[2JE")))
    assert said == 'digest=dddddddddddd  error=claimed "\N{REPLACEMENT CHARACTER}[2JE"'


def test_what_a_guest_claims_cannot_look_like_more_fields() -> None:
    said = describe(NetworkConnectionBlocked(vm="v", name=claimed('a"  rule="mine')))
    assert said == r'name=claimed "a\"  rule=\"mine"'


def test_reasons_are_a_fixed_set() -> None:
    assert OutputBlocked(vm="v", reason=Reason.SCRIPT).fields() == {
        "event": "output_blocked",
        "vm": "v",
        "reason": "script",
    }
    with pytest.raises(ValidationError):
        OutputBlocked.model_validate({"vm": "v", "reason": "whatever"})


def test_times_that_are_none_are_refused() -> None:
    with pytest.raises(ValidationError):
        ExecutionFailed(vm="v", digest="d" * 64, seconds=float("nan"))
    assert VMStopped(vm="v").fields() == {"event": "vm_stopped", "vm": "v"}
