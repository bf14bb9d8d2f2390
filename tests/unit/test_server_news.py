"""How often pages are told what has changed."""

from __future__ import annotations

from typing import Any

import pytest
from jsonschema import ValidationError
from jupyter_events import EventLogger
from kernel_harness import within

from agentvm_kernel.server.news import EVENT_SCHEMA, SCHEMA, Herald


async def test_of_a_flood_the_first_is_told_at_once_and_the_rest_together() -> None:
    told: list[dict[str, Any]] = []
    herald = Herald(told.append)
    for number in range(1000):
        herald.tell("k", "snapshots", **({"restored": f"{number}"} if number % 2 else {}))
    assert told == [{"kernel_id": "k", "what": "snapshots"}]
    await within(lambda: len(told) == 2)
    assert told[1] == {"kernel_id": "k", "what": "snapshots", "restored": "999"}


async def test_what_comes_right_after_something_told_late_waits_again() -> None:
    told: list[str] = []
    waits: list[int] = []

    def say(data: dict[str, object]) -> None:
        told.append(str(data["what"]))
        if len(told) == 2:
            herald.tell("k", "machine")
            waits.append(len(told))

    herald = Herald(say)
    herald.tell("k", "machine")
    herald.tell("k", "machine")
    await within(lambda: len(told) == 3)
    assert waits == [2]


async def test_kernels_and_kinds_do_not_wait_for_each_other() -> None:
    told: list[dict[str, Any]] = []
    herald = Herald(told.append)
    for kernel in ("a", "b"):
        herald.tell(kernel, "machine")
        herald.tell(kernel, "stats", stats={})
    assert [(one["kernel_id"], one["what"]) for one in told] == [
        ("a", "machine"), ("a", "stats"), ("b", "machine"), ("b", "stats")
    ]  # fmt: skip


async def test_nothing_is_told_after_the_end() -> None:
    told: list[dict[str, Any]] = []
    herald = Herald(told.append)
    herald.tell("k", "machine")
    herald.tell("k", "machine")
    timer, _ = herald._waiting["k", "machine"]
    herald.close()
    assert timer.cancelled()
    assert len(told) == 1


async def test_jupyter_takes_the_schema_and_refuses_what_is_not_in_it() -> None:
    events = EventLogger()
    events.register_event_schema(SCHEMA)
    heard: list[dict[str, Any]] = []

    async def listen(logger: EventLogger, schema_id: str, data: dict[str, Any]) -> None:
        heard.append(data)

    events.add_listener(schema_id=EVENT_SCHEMA, listener=listen)
    events.emit(schema_id=EVENT_SCHEMA, data={"kernel_id": "k", "what": "gone", "restored": ""})
    await within(lambda: heard)
    for wrong in ({"kernel_id": "k"}, {"kernel_id": "k", "what": "hello"}, {"kernel_id": "k", "what": "gone", "x": 1}):
        with pytest.raises(ValidationError):
            events.emit(schema_id=EVENT_SCHEMA, data=wrong)
