"""A report finds a notebook's sessions in the audit log, and the run behind what each cell shows."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest
from report_bed import Bed, Output, code, notebook, text

from agentvm_kernel.observe.outputs import digest_of_outputs
from agentvm_kernel.report.document import Document, read_document
from agentvm_kernel.report.matching import Match, match
from agentvm_kernel.report.record import Found, find_sessions
from agentvm_kernel.supervisor.execution_messages import digest_of


@pytest.fixture
def bed(tmp_path: Path) -> Bed:
    return Bed(tmp_path)


def found(bed: Bed, *sources: str, name: str = "/n.ipynb", shown: Collection[str] = ()) -> Found:
    bed.log.close()
    return find_sessions(bed.paths.state / "audit", {name}, {digest_of(source) for source in sources}, shown)


def matched(bed: Bed, document: Document) -> list[Match]:
    return match(document.cells, found(bed, *(cell.source for cell in document.cells)).sessions)


def document(folder: Path, *cells: dict[str, object]) -> Document:
    return read_document(notebook(folder / "n.ipynb", *cells))


def test_sessions_are_found_by_the_notebooks_name_and_no_others_are(bed: Bed) -> None:
    for lease, name in (("one", "/n.ipynb"), ("other", "/other.ipynb"), ("two", "/n.ipynb")):
        bed.begin(lease, name)
        bed.run("x = 1")
    sessions = found(bed, "x = 1").sessions
    assert [session.lease for session in sessions] == ["one", "two"]


def test_where_no_session_has_the_name_that_counts_which_ran_most_of_the_cells_and_of_those_the_newest(
    bed: Bed,
) -> None:
    for lease, cells in (("old", "ab"), ("best", "ab"), ("few", "a"), ("none", "z")):
        bed.begin(lease, f"kernel-{lease}")
        for source in cells:
            bed.run(source)
    result = found(bed, "a", "b", "c")
    assert ([session.lease for session in result.sessions], result.by) == (["best"], "code")


def test_of_several_that_ran_the_same_that_counts_which_showed_what_the_notebook_shows(bed: Bed) -> None:
    for lease, words in (("one", "0.1"), ("two", "0.2"), ("three", "0.3")):
        bed.begin(lease, f"kernel-{lease}")
        bed.run("import random; random.random()", text(words))
        bed.run("a")
    bed.begin("larger", "kernel-larger")
    for source in ("import random; random.random()", "a", "b"):
        bed.run(source)
    shown = {digest_of_outputs([text("0.2")])}
    assert [one.lease for one in found(bed, "import random; random.random()", "a", "b", shown=shown).sessions] == [
        "two"
    ]


def test_a_notebook_that_never_ran_has_no_session(bed: Bed) -> None:
    bed.begin("lease-1", "/other.ipynb")
    bed.run("a")
    assert found(bed, "b").sessions == ()


def test_each_run_has_its_end_its_base_and_what_it_cost(bed: Bed) -> None:
    bed.begin(notebook="/n.ipynb")
    bed.run("a", count=3)
    bed.snapshot("s1", "first")
    bed.run("b", error="ValueError")
    (session,) = found(bed).sessions
    first, second = session.runs
    assert (first.outcome, first.snapshot, first.count) == ("completed", "", 3)
    assert (second.outcome, second.snapshot) == ("failed", "s1")
    assert second.end is not None
    assert (second.end.error.claimed, second.end.memory_grown) == ("ValueError", 2_000_000)
    (saved,) = session.snapshots
    assert (saved.parent, saved.label, saved.run) == ("", "first", 1)


def test_the_way_leaves_out_what_was_gone_back_behind(bed: Bed) -> None:
    bed.begin(notebook="/n.ipynb")
    bed.run("a")
    bed.snapshot("s1")
    bed.run("wrong")
    bed.snapshot("s2")
    bed.run("worse")
    bed.back("s1", "vm-2")
    bed.run("right")
    bed.snapshot("s3")
    (session,) = found(bed).sessions
    assert [run.number for run in session.way] == [1, 4]
    assert session.path == ["s1", "s3"]
    assert [(one.source, one.target) for one in session.returns] == [("s2", "s1")]
    assert {one.id: one.parent for one in session.snapshots} == {"s1": "", "s2": "s1", "s3": "s1"}


def test_the_way_goes_over_several_ways_back_and_a_fork_that_was_adopted(bed: Bed) -> None:
    bed.begin(notebook="/n.ipynb")
    bed.run("a")
    bed.snapshot("s1")
    bed.back("s1", "vm-2")
    bed.run("b")
    bed.snapshot("point")
    bed.run("c", fork=1, vm="vm-f1")
    bed.run("c", fork=2, vm="vm-f2")
    bed.back("point", "vm-f2")
    bed.run("d")
    (session,) = found(bed).sessions
    assert [(run.number, run.fork) for run in session.way] == [(1, 0), (2, 0), (4, 2), (5, 0)]


def test_records_of_an_older_version_have_no_outputs_and_cells_are_matched_all_the_same(
    bed: Bed, tmp_path: Path
) -> None:
    bed.begin(notebook="/n.ipynb")
    bed.run("a", text("1"), tells_outputs=False)
    (one,) = matched(bed, document(tmp_path, code("a", text("1"))))
    assert (one.run is not None, one.standing) == (True, "not recorded")


def test_what_a_cell_shows_is_held_against_what_its_run_showed(bed: Bed, tmp_path: Path) -> None:
    bed.begin(notebook="/n.ipynb")
    for source in ("same", "changed", "emptied"):
        bed.run(source, text("42\n"))
    cells = [
        code("same", text("42\n")), code("changed", text("43\n")), code("emptied"), code("pasted", text("1")),
        code("new"),
    ]  # fmt: skip
    standings = [one.standing for one in matched(bed, document(tmp_path, *cells))]
    assert standings == ["as recorded", "changed", "changed", "no known run", "not run"]


@pytest.mark.parametrize("added", [text("43\r"), text("\b")])
def test_what_is_changed_so_that_it_has_no_digest_is_changed(bed: Bed, tmp_path: Path, added: Output) -> None:
    bed.begin(notebook="/n.ipynb")
    bed.run("x()", text("42\n"))
    (one,) = matched(bed, document(tmp_path, code("x()", text("42\n"), added)))
    assert one.standing == "changed"


def test_of_several_runs_of_the_same_code_the_one_counts_that_the_cell_shows(bed: Bed, tmp_path: Path) -> None:
    bed.begin(notebook="/n.ipynb")
    bed.run("x()", text("1"), count=1)
    bed.run("x()", text("2"), count=2)
    bed.run("x()", text("2"), count=3)
    cells = (
        code("x()", text("1"), name="a"),
        code("x()", text("2"), name="b", count=2),
        code("x()", name="c", count=9),
    )
    runs = [one.run.number if one.run else 0 for one in matched(bed, document(tmp_path, *cells))]
    assert runs == [1, 2, 3]


def test_the_cell_that_the_front_end_named_goes_before_everything_else(bed: Bed, tmp_path: Path) -> None:
    bed.begin(notebook="/n.ipynb")
    bed.run("x()", text("1"), count=1, cell="b")
    bed.run("x()", text("1"), count=2, cell="a")
    cells = (code("x()", text("1"), name="a", count=1), code("x()", text("1"), name="b", count=2))
    assert [one.run.number if one.run else 0 for one in matched(bed, document(tmp_path, *cells))] == [2, 1]


def test_a_forks_run_is_no_cells(bed: Bed, tmp_path: Path) -> None:
    bed.begin(notebook="/n.ipynb")
    bed.run("a", fork=1, vm="vm-f")
    (one,) = matched(bed, document(tmp_path, code("a", text("1"))))
    assert one.standing == "no known run"
