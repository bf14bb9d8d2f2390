"""Memory deltas: the file, and what several of them say together."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentvm_kernel.errors import SnapshotError
from agentvm_kernel.vm.delta import BLOCK, Delta, Layers, delta_size, merge_deltas, merge_runs, write_delta

MEMORY = 64
"""Blocks."""


def make(path: Path, pages: dict[int, int]) -> Delta:
    """Write a delta of pages filled with one byte each."""
    path.unlink(missing_ok=True)
    runs = merge_runs((page, 1) for page in pages)
    write_delta(path, runs, [bytes([pages[page]]) * BLOCK for page in sorted(pages)])
    return Delta.open(path, MEMORY * BLOCK)


def read(layers: Layers, first: int = 0, count: int = MEMORY) -> dict[int, int]:
    found = {}
    for start, length, path, offset in layers.locate(first, count):
        if path is not None:
            data = path.read_bytes()[offset : offset + length * BLOCK]
            found |= {start + i: data[i * BLOCK] for i in range(length)}
    return found


contents = st.dictionaries(st.integers(0, MEMORY - 1), st.integers(0, 255), max_size=30)


@given(st.lists(contents, max_size=5), st.integers(0, MEMORY - 1))
def test_the_newest_content_of_each_page_is_found(tmp_path_factory: pytest.TempPathFactory, many, start) -> None:
    folder = tmp_path_factory.mktemp("deltas")
    layers = Layers(make(folder / str(number), pages) for number, pages in enumerate(many))
    expected: dict[int, int] = {}
    for pages in many:
        expected |= pages
    assert read(layers) == expected
    assert read(layers, start, 5) == {page: value for page, value in expected.items() if start <= page < start + 5}
    assert layers.blocks == len(expected)


@given(st.lists(contents, min_size=1, max_size=4))
def test_merged_deltas_have_the_effect_of_all(tmp_path_factory: pytest.TempPathFactory, many) -> None:
    folder = tmp_path_factory.mktemp("deltas")
    merge_deltas([make(folder / str(number), pages) for number, pages in enumerate(many)], folder / "merged")
    merged = Delta.open(folder / "merged", MEMORY * BLOCK)
    expected: dict[int, int] = {}
    for pages in many:
        expected |= pages
    assert read(Layers([merged])) == expected
    assert delta_size(merged.runs) == merged.path.stat().st_size


def test_long_runs_are_merged_in_pieces(tmp_path: Path) -> None:
    write_delta(tmp_path / "a", [(0, 30000)], [bytes([7]) * BLOCK * 30000])
    write_delta(tmp_path / "b", [(29999, 2)], [bytes([8]) * BLOCK * 2])
    merge_deltas([Delta.open(tmp_path / name, 40000 * BLOCK) for name in "ab"], tmp_path / "c")
    merged = Delta.open(tmp_path / "c", 40000 * BLOCK)
    assert merged.runs == ((0, 30001),)
    assert merged.path.read_bytes()[merged.offset :] == bytes([7]) * BLOCK * 29999 + bytes([8]) * BLOCK * 2


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(1, 9)), max_size=20))
def test_merged_runs_are_apart_and_complete(runs) -> None:
    merged = merge_runs(runs)
    assert {page for first, count in merged for page in range(first, first + count)} == {
        page for first, count in runs for page in range(first, first + count)
    }
    assert all(a[0] + a[1] < b[0] for a, b in itertools.pairwise(merged))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: data[:10], "cut off"),
        (lambda data: b"X" + data[1:], "header"),
        (lambda data: data[:8] + struct.pack("<Q", 1 << 60) + data[16:], "header"),
        (lambda data: data[:16] + struct.pack("<Q", 9) + data[24:], "size"),
        (lambda data: data[:-1], "size"),
        (lambda data: data[:24] + struct.pack("<QQ", 7, 1) + data[40:], "order"),
        (lambda data: data[:24] + struct.pack("<QQ", 1, 0) + data[40:], "order"),
        (lambda data: data[:40] + struct.pack("<QQ", MEMORY, 1) + data[56:], "order"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, damage, says: str) -> None:
    path = make(tmp_path / "good", {1: 1, 6: 2, 7: 3}).path
    (tmp_path / "bad").write_bytes(damage(path.read_bytes()))
    with pytest.raises(SnapshotError, match=says):
        Delta.open(tmp_path / "bad", MEMORY * BLOCK)
