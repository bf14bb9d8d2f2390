"""How the tree of snapshots is drawn."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from agentvm_kernel.magics import show
from agentvm_kernel.magics.tree import draw, rows
from agentvm_kernel.snapshots.notes import Cell
from agentvm_kernel.supervisor.snapshot_messages import SnapshotInfo, SnapshotTree


def info(name: str, parent: str, created: float, **changes: object) -> SnapshotInfo:
    values = {
        "id": name,
        "parent": parent,
        "label": "",
        "text": "",
        "kind": "manual",
        "created": created,
        "size": 3 << 20,
        "written": 0,
        "cell": Cell(),
        "busy": False,
        "pause_ms": 1.0,
    }
    return SnapshotInfo.model_validate(values | changes)


def tree(*snapshots: SnapshotInfo, current: str = "") -> SnapshotTree:
    return SnapshotTree(notebook="n", current=current, snapshots=snapshots, quota=10 << 30, used=5 << 20)


def names(drawn: SnapshotTree) -> list[str]:
    return [f"{row.before}{row.snapshot.id if row.snapshot else 'start'}" for row in rows(drawn)]


def test_the_present_branch_goes_straight_on_and_the_others_aside() -> None:
    drawn = tree(
        info("a", "", 1),
        info("b", "a", 2),
        info("c", "b", 3),
        info("d", "a", 4),
        info("e", "b", 5),
        info("f", "a", 6),
        current="c",
    )
    assert names(drawn) == ["start", "a", "├─d", "├─f", "b", "├─e", "c"]


def test_without_a_present_the_youngest_branch_goes_straight_on() -> None:
    drawn = tree(info("a", "", 1), info("b", "a", 2), info("c", "b", 3), info("d", "a", 4), info("e", "d", 5))
    assert names(drawn) == ["start", "a", "├─b", "│ c", "d", "e"]


def test_branches_of_branches_are_nested() -> None:
    drawn = tree(
        info("a", "", 1), info("b", "a", 2), info("c", "b", 3), info("d", "b", 4), info("e", "a", 5), current="e"
    )
    assert names(drawn) == ["start", "a", "├─b", "│ ├─c", "│ d", "e"]


def test_a_chain_is_not_indented_however_long_it_is() -> None:
    chain = [info(f"{n:012x}", f"{n - 1:012x}" if n else "", float(n), kind="auto") for n in range(5000)]
    drawn = draw(tree(*chain, current=chain[-1].id), 5000.0)
    lines = drawn["text/plain"].splitlines()
    assert len(lines) == 5003
    assert all(re.match(r"[○●] \S", line) for line in lines[1:-1])
    assert lines[-2].startswith("● 000000001387 (here)")


def test_what_has_lost_its_parent_hangs_below_the_start_and_a_circle_does_not_hang_the_kernel() -> None:
    drawn = tree(info("a", "pruned", 1), info("x", "y", 2), info("y", "x", 3), current="x")
    assert names(drawn) == ["start", "a"]


def test_a_line_says_name_age_size_cell_and_remarks() -> None:
    one = info(
        "a" * 12,
        "",
        100.0,
        label="base",
        text="all is well\nindeed",
        busy=True,
        stored=False,
        kind="auto",
        cell=Cell(run=3, count=2, code="x = 1"),
    )
    line = draw(tree(one, current=one.id), 165.0)["text/plain"].splitlines()[2]
    remarks = "auto, mid-cell, being stored, all is well…"
    assert line.split("  ") == ["● base (aaaaaaaaaaaa) (here)", "1 min 5 s", "3.0 MiB", "[2] x = 1", remarks]


def test_the_start_is_marked_when_the_vm_descends_from_no_snapshot() -> None:
    lines = draw(tree(info("a", "", 1)), 2.0)["text/plain"].splitlines()
    assert lines[1] == "● start (here)"
    assert lines[2].startswith("○ a")
    assert lines[3] == "5.0 MiB of 10.0 GiB are taken by all your snapshots together."


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        assert all(name == "style" for name, _ in attrs)


@pytest.mark.parametrize("evil", ["<script>alert(1)</script>", '"><img src=x onerror=y>', "\x1b]0;x\x07\u202e\u2066"])
def test_whatever_a_snapshot_is_called_is_shown_as_text(evil: str) -> None:
    one = info(evil, "", 1.0, label=evil[:64], text=evil, cell=Cell(run=1, code=evil))
    drawn = draw(tree(one), 2.0)
    tags = Tags()
    tags.feed(drawn["text/html"])
    assert tags.seen == {"table", "thead", "tbody", "tr", "th", "td", "p"}
    for text in drawn.values():
        assert all(character.isprintable() or character == "\n" for character in text)


def test_durations_and_sizes() -> None:
    assert [show.duration(s) for s in (-1, 5, 65, 3700, 90_000)] == ["0 s", "5 s", "1 min 5 s", "1 h 1 min", "1 d 1 h"]
    assert [show.size(s) for s in (0, 2048, 1 << 20, 3 << 30)] == ["0 KiB", "2 KiB", "1.0 MiB", "3.0 GiB"]


def test_a_text_is_cut_to_its_first_line() -> None:
    assert [show.plain(t, 5) for t in ("", "abcde", "abcdef", "a\nb", "\n a ")] == ["", "abcde", "abcde…", "a…", "a"]
