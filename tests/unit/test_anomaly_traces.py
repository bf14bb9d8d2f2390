"""What the shipped rules find in the traces, and how often they are wrong: the rates are minimums that were reached."""

from __future__ import annotations

import pytest

from agentvm_kernel.bench import anomalies
from agentvm_kernel.bench.anomalies import SIGNS, Score, describe, detect, naive, run, score
from agentvm_kernel.bench.traces import drawn, recorded, traces
from agentvm_kernel.observe.anomaly.trace import Trace

NOT_FOUND = {"miner": 1, "beacon": 1, "disk fill": 1}
"""A miner that takes half of a core, a beacon whose intervals vary by more than a third, a slow disk of a real VM."""


@pytest.fixture(scope="module")
def all_traces() -> list[Trace]:
    return traces()


@pytest.fixture(scope="module")
def ours(all_traces: list[Trace]) -> Score:
    return score(detect, all_traces)


def test_there_are_traces_of_all_kinds_and_real_ones_among_them(all_traces: list[Trace]) -> None:
    assert len(all_traces) >= 30
    assert len({trace.name for trace in all_traces}) == len(all_traces)
    assert {trace.kind for trace in all_traces if trace.begins is not None} == set(SIGNS)
    real = list(recorded())
    assert sum(trace.begins is None for trace in real) >= 4
    assert sum(trace.begins is not None for trace in real) >= 2
    assert all(len(trace.steps) > 50 for trace in real)


def test_drawn_traces_are_the_same_each_time() -> None:
    first, second = (next(iter(drawn())) for _ in range(2))
    assert first.steps == second.steps
    assert next(iter(drawn("other "))).steps != first.steps


@pytest.mark.parametrize("kind", SIGNS)
def test_attacks_of_each_kind_are_found(ours: Score, kind: str) -> None:
    assert len(ours.missed.get(kind, [])) <= NOT_FOUND.get(kind, 0), describe(ours)


def test_rates_are_those_that_were_reached(ours: Score) -> None:
    assert ours.detection_rate >= 0.91, describe(ours)
    assert ours.false_rate() <= 0.33, describe(ours)


def test_real_vms_at_ordinary_work_raise_no_alarm() -> None:
    found = {trace.name: detect(trace) for trace in recorded() if trace.begins is None}
    assert {name: seen for name, seen in found.items() if seen} == {}


def test_fixed_thresholds_find_less(ours: Score, all_traces: list[Trace]) -> None:
    assert score(naive, all_traces).detection_rate < ours.detection_rate


def test_other_draws_are_judged_much_alike() -> None:
    result = score(detect, drawn("other "))
    assert result.detection_rate >= 0.9, describe(result)
    assert result.false_rate() <= 0.5, describe(result)


def test_the_benchmark_has_every_kind_beside_its_baseline(
    all_traces: list[Trace], monkeypatch: pytest.MonkeyPatch
) -> None:
    short = {trace.kind: trace for trace in all_traces if trace.hours < 0.2}
    monkeypatch.setattr(anomalies, "traces", lambda: list(short.values()))
    figures = run(lambda _text, _done: None)
    shown = {figure.measured.name for figure in figures}
    assert {f"{kind}: found" for kind in SIGNS} <= shown
    assert all(figure.baseline for figure in figures if figure.measured.unit == "%")
