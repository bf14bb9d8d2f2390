"""What benchmarks say about samples."""

from __future__ import annotations

import io
import json
import math
import re
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from agentvm_kernel.bench.bed import Wanted
from agentvm_kernel.bench.figures import Figure, Series, differences, percentile
from agentvm_kernel.bench.memory import parse_rollup
from agentvm_kernel.bench.run import Result
from agentvm_kernel.bench.show import as_json, as_table

samples = st.lists(st.floats(0, 1e6), min_size=1, max_size=200)


@given(samples)
def test_p95_is_the_least_sample_that_95_percent_do_not_exceed(values: list[float]) -> None:
    found = percentile(values)
    assert found in values
    assert sum(value <= found for value in values) >= 0.95 * len(values)
    below = [value for value in values if value < found]
    assert len(below) < 0.95 * len(values)


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (19, 19), (20, 19), (100, 95)])
def test_percentile_of_counted_samples(count: int, expected: int) -> None:
    assert percentile([float(n) for n in range(count, 0, -1)]) == expected


@pytest.mark.parametrize(
    ("limit", "limit_on", "verdict"),
    [
        (None, "median", None),
        (30, "median", "met"),
        (29.9, "median", "missed"),
        (1.5, "ratio", "met"),
        (1.4, "ratio", "missed"),
    ],
)
def test_verdict_follows_the_limit(limit: float | None, limit_on: str, verdict: str | None) -> None:
    figure = Figure(Series("a", "ms", [30.0]), Series("b", "ms", [20.0]), limit=limit, limit_on=limit_on)  # type: ignore[arg-type]
    assert figure.ratio == 1.5
    assert figure.verdict == verdict


def test_without_a_baseline_there_is_no_ratio_and_nothing_said_about_it() -> None:
    figure = Figure(Series("a", "ms", [30.0]), limit=2, limit_on="ratio")
    assert figure.ratio is None
    assert figure.verdict is None
    assert Figure(Series("a", "ms", [1.0]), Series("b", "ms", [0.0])).ratio is None


def test_differences_compare_neighbouring_blocks() -> None:
    # A host that is slow during the second round must not show in the difference.
    series = differences("more", "ms", [([10, 11, 90], [8, 9, 10]), ([110, 111, 112], [108, 109, 110])])
    assert series.samples == [2, 2]
    assert series.median == 2


def test_json_has_every_figure_with_its_baseline() -> None:
    series = Series("quantity", "ms")
    series.add(1.0, 2.0, 4.0)
    figures = [Figure(series, Series("other", "ms", [1.0]), limit=3), Figure(series)]
    shown = json.loads(as_json(Result(figures, Wanted(), (0.5, 1.5))))
    assert shown[0] == {
        "name": "quantity", "unit": "ms", "median": 2.0, "p95": 4.0, "n": 3, "limit": 3, "limit_on": "median",
        "baseline": {"name": "other", "unit": "ms", "median": 1.0, "p95": 1.0, "n": 1},
        "ratio": 2.0, "verdict": "met", "load_average": [0.5, 1.5],
    }  # fmt: skip
    assert (shown[1]["baseline"], shown[1]["ratio"], shown[1]["verdict"]) == (None, None, None)


def test_table_shows_figures_limits_and_load() -> None:
    figures = [
        Figure(Series("quantity", "ms", [2.0]), Series("other", "ms", [1.0]), limit=3),
        Figure(Series("size", "MB", [5.0]), Series("other", "MB", [1.0]), limit=1.5, limit_on="ratio"),
        Figure(Series("lonely", "MB", [5.0])),
    ]
    console = Console(width=200, file=io.StringIO())
    with console.capture() as shown:
        console.print(as_table(Result(figures, Wanted(image="standard"), (0.5, 1.5))))
    title, _, *rows = shown.get().splitlines()
    assert "image standard" in title
    assert "load average 0.5 to 1.5" in title
    assert [row.split() for row in rows] == [
        ["quantity", "2.0", "ms", "2.0", "1", "2.00", "3", "ms", "met"],
        ["other", "1.0", "ms", "1.0", "1"],
        ["size", "5.0", "MB", "5.0", "1", "5.00", "1.5", "x", "missed"],
        ["other", "1.0", "MB", "1.0", "1"],
        ["lonely", "5.0", "MB", "5.0", "1"],
    ]


def test_in_a_narrow_terminal_the_table_breaks_no_word() -> None:
    measured = "rollback to the confirmed identity, 2 GiB guest, 1 GiB resident, no blank at hand"
    other = "round trip of a cell through the notebook kernel: [a] picture"
    figure = Figure(Series(measured, "ms", [9876.5] * 300), Series(other, "MB/s", [123456.7] * 300), limit=2000)
    console = Console(width=80, file=io.StringIO())
    with console.capture() as shown:
        console.print(as_table(Result([figure], Wanted(image="standard"), (10.5, 11.5))))
    lines = shown.get().splitlines()
    assert max(map(len, lines)) <= 80
    cells = [re.split(r" {2,}", line.strip()) for line in lines[2:]]
    assert " ".join(name for name, *_ in cells) == f"{measured} {other}"
    numbers = [cell for _, *others in cells for cell in others]
    assert numbers == [
        "9876.5 ms", "9876.5", "300", "0.08", "2000 ms", "missed", "123456.7 MB/s", "123456.7", "300",
    ]  # fmt: skip


def test_memory_is_read_from_the_rollup() -> None:
    text = "55d-7ff ---p 00000000 00:00 0 [rollup]\nRss: 9000 kB\nPss: 3000 kB\nPss_Dirty: 5 kB\n"
    text += "Private_Clean:      1000 kB\nPrivate_Dirty:      2000 kB\nSwap: 0 kB\n"
    memory = parse_rollup(text)
    assert (memory.private_clean, memory.private_dirty, memory.proportional) == (1.024, 2.048, 3.072)
    assert math.isclose(memory.private, 3.072)


def test_median_is_the_statistician_s() -> None:
    assert Series("a", "ms", [3.0, 1.0, 2.0, 10.0]).median == statistics.median([1, 2, 3, 10])
