"""What `agentvm run` keeps in a notebook of its runs: what the host says, small, and nothing where it says nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agentvm_kernel.run.provenance import of_cell

FACTS = {"seconds": 0.1, "snapshot_before": "aaaaaaaaaaaa", "snapshot_after": "bbbbbbbbbbbb"}


def reply(**said: Any) -> dict[str, Any]:
    return {"metadata": {"agentvm": {"run": 3, "vm": "vm-1", "snapshot": "bbbbbbbbbbbb", **said}}}


def test_a_cells_record_has_the_names_that_jupyterlab_gives_them() -> None:
    assert of_cell(reply(facts=FACTS), "k") == {
        "run": 3, "vm": "vm-1", "base": "aaaaaaaaaaaa", "after": "bbbbbbbbbbbb", "kernel": "k",
        "facts": {"seconds": 0.1},
    }  # fmt: skip


def test_without_facts_the_snapshot_is_where_the_machine_stands() -> None:
    record = of_cell(reply(), "k")
    assert record is not None
    assert (record["base"], record["after"], record["facts"]) == ("bbbbbbbbbbbb", "bbbbbbbbbbbb", {})


def test_a_record_is_never_larger_than_2_kb() -> None:
    record = of_cell(reply(facts=FACTS | {"hosts": ["h" * 100] * 30}), "k")
    assert record is not None
    assert "facts" not in record
    assert len(json.dumps(record)) < 2048


@pytest.mark.parametrize("other", [{}, {"metadata": {}}, {"metadata": {"agentvm": 3}}, {"metadata": {"agentvm": {}}}])
def test_where_the_host_says_nothing_nothing_is_kept(other: dict[str, Any]) -> None:
    assert of_cell(other, "k") is None
