"""The recorded path: order, ways back, magics among the runs, and what of it cannot be followed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from report_bed import IMAGE, Bed, code, notebook, text

from agentvm_kernel.report.document import Cell
from agentvm_kernel.report.make import gather
from agentvm_kernel.report.path import recorded
from agentvm_kernel.reproduce.error import ReproduceError
from agentvm_kernel.reproduce.path import Leg, Order, plan, with_labels
from agentvm_kernel.reproduce.recorded import Record, read_record


@pytest.fixture
def bed(tmp_path: Path) -> Bed:
    made = Bed(tmp_path)
    made.begin(notebook=str(tmp_path / "n.ipynb"))
    return made


def record_of(bed: Bed, folder: Path, *cells: dict[str, Any]) -> tuple[list[Cell], Record]:
    bed.end()
    found = gather(notebook(folder / "n.ipynb", *cells), bed.paths)
    return [cell for cell in found.document.cells if cell.kind == "code"], read_record(recorded(found))


def legs(bed: Bed, folder: Path, *cells: dict[str, Any]) -> tuple[Leg, ...]:
    return plan(*record_of(bed, folder, *cells)).legs


def leg(bed: Bed, folder: Path, *cells: dict[str, Any]) -> Leg:
    (one,) = legs(bed, folder, *cells)
    return one


def sources(one: Leg) -> list[str]:
    return [step.source for step in one.steps]


def test_cells_are_run_in_the_order_of_the_record_not_of_the_document(bed: Bed, tmp_path: Path) -> None:
    for source in "cab":
        bed.run(source)
    one = leg(bed, tmp_path, code("a"), code("b"), code("c"))
    assert [(step.source, step.cell, step.run) for step in one.steps] == [("c", 2, 1), ("a", 0, 2), ("b", 1, 3)]


def test_code_that_ran_more_than_once_runs_as_often_and_one_run_is_compared(bed: Bed, tmp_path: Path) -> None:
    for source in ("x = 0", "x += 1", "x += 1"):
        bed.run(source)
    one = leg(bed, tmp_path, code("x = 0"), code("x += 1"))
    assert [(step.source, step.cell) for step in one.steps] == [("x = 0", 0), ("x += 1", None), ("x += 1", 1)]
    assert one.steps[1].note


def test_code_that_is_gone_is_told(bed: Bed, tmp_path: Path) -> None:
    bed.run("a")
    bed.run("edited since")
    one = leg(bed, tmp_path, code("a"))
    assert sources(one) == ["a"]
    assert one.missing == ("run 2 was of code that is not in the notebook any more",)


def test_what_agentvm_run_runs_first_is_no_part_of_the_path(bed: Bed, tmp_path: Path) -> None:
    bed.run("pass")
    bed.run("a")
    one = leg(bed, tmp_path, code("a"))
    assert (sources(one), one.missing) == (["a"], ())


def test_magics_stand_behind_the_cell_before_them(bed: Bed, tmp_path: Path) -> None:
    bed.run("a")
    bed.snapshot("5a5a5a", "good")
    bed.run("wrong")
    bed.back("5a5a5a", "vm-2")
    bed.run("b")
    cells = [code("%vm"), code("a"), code("%snapshot good"), code("wrong"), code("%rollback good"), code("b")]
    one = leg(bed, tmp_path, *cells)
    assert sources(one) == ["%vm", "a", "%snapshot good", "wrong", "%rollback good", "b"]
    assert [step.cell for step in one.steps] == [0, 1, 2, 3, 4, 5]


def test_magics_stand_where_the_numbers_of_their_runs_say_if_those_are_of_this_record(bed: Bed, tmp_path: Path) -> None:
    bed.run("a")
    bed.run("b")
    bed._runs = 3
    bed.run("c")
    kept = {"agentvm": {"run": 1}}, {"agentvm": {"run": 2}}, {"agentvm": {"run": 4}}, {"agentvm": {"run": 3}}
    cells = [code(name, **one) for name, one in zip(("a", "b", "c", "%vm"), kept, strict=True)]
    assert sources(leg(bed, tmp_path, *cells)) == ["a", "b", "%vm", "c"]


def test_numbers_of_another_record_are_not_believed(bed: Bed, tmp_path: Path) -> None:
    for source in "abc":
        bed.run(source)
    cells = [code(name, agentvm={"run": 100 - place}) for place, name in enumerate(("a", "%vm", "b", "c"))]
    assert sources(leg(bed, tmp_path, *cells)) == ["a", "%vm", "b", "c"]


def test_snapshots_and_ways_back_without_a_cell_are_carried_out_all_the_same(bed: Bed, tmp_path: Path) -> None:
    bed.run("a")
    bed.snapshot("5a5a5a")
    bed.run("wrong")
    bed.back("5a5a5a", "vm-2")
    bed.run("b")
    one = leg(bed, tmp_path, code("a"), code("wrong"), code("b"))
    assert sources(one) == ["a", "%snapshot recorded-5a5a5a", "wrong", "%rollback recorded-5a5a5a", "b"]
    assert [step.cell for step in one.steps] == [0, None, 1, None, 2]


def test_a_snapshots_id_is_another_each_time_and_becomes_a_label(bed: Bed, tmp_path: Path) -> None:
    bed.run("a")
    bed.snapshot("5a5a5a123456")
    bed.run("wrong")
    bed.back("5a5a5a123456", "vm-2")
    one = with_labels(leg(bed, tmp_path, code("a"), code("%snapshot"), code("wrong"), code("%rollback 5a5a5a")))
    assert sources(one)[1] == "%snapshot recorded-5a5a5a123456"
    assert sources(one)[3].split() == ["%rollback", "recorded-5a5a5a123456"]


def test_a_snapshot_that_was_renamed_has_its_newest_label(bed: Bed, tmp_path: Path) -> None:
    from agentvm_kernel.observe.events.snapshot import SnapshotRelabelled, SnapshotsRemoved

    bed.run("a")
    bed.snapshot("5a5a5a", "first")
    bed.record(SnapshotRelabelled(**bed.subject, snapshot="5a5a5a", label="best"))
    bed.record(SnapshotsRemoved(**bed.subject, snapshots=("5a5a5b",), count=3))
    _, record = record_of(bed, tmp_path, code("a"))
    assert [one.label for one in record.sessions[0].snapshots] == ["best"]
    (session,) = gather(tmp_path / "n.ipynb", bed.paths).found.sessions
    assert [(name, label) for _, name, label in session.relabelled] == [("5a5a5a", "best")]
    assert [(names, count) for _, names, count in session.removed] == [(("5a5a5b",), 3)]


def test_a_snapshot_behind_forks_stands_behind_the_run_before_them(bed: Bed, tmp_path: Path) -> None:
    bed.run("a")
    bed.run("f", fork=1, vm="vm-f1")
    bed.snapshot("5a5a5a", "later")
    _, record = record_of(bed, tmp_path, code("a"))
    assert [(one.label, one.run) for one in record.sessions[0].snapshots] == [("later", 1)]


def test_what_ran_in_forks_is_run_by_the_cell_of_the_forks(bed: Bed, tmp_path: Path) -> None:
    bed.run("a")
    bed.run("b", fork=1, vm="vm-f1")
    bed.run("b", fork=2, vm="vm-f2")
    bed.run("b")
    assert sources(leg(bed, tmp_path, code("a"), code("%%fork 2\nb"), code("b"))) == ["a", "%%fork 2\nb", "b"]


def test_outputs_of_two_sessions_are_of_two_machines(bed: Bed, tmp_path: Path) -> None:
    bed.run("a", text("1"))
    bed.run("b", text("1"))
    bed.record_release()
    bed.begin("lease-2", str(tmp_path / "n.ipynb"), "vm-2")
    bed.run("a", text("2"))
    first, second = legs(bed, tmp_path, code("a", text("2")), code("b", text("1")))
    assert [(step.source, step.cell) for step in first.steps] == [("a", None), ("b", 1)]
    assert [(step.source, step.cell) for step in second.steps] == [("a", 0)]


def test_a_session_that_only_reproduced_is_none_of_the_notebooks(bed: Bed, tmp_path: Path) -> None:
    bed.run("a", text("1"))
    bed.record_release()
    bed.begin("lease-2", str(tmp_path / "n.ipynb"), "vm-2", owner="reproduce-12ab")
    bed.run("a", text("1"))
    _, record = record_of(bed, tmp_path, code("a", text("1")))
    assert len(record.sessions) == 1


def unrecorded(*cells: dict[str, Any], folder: Path) -> tuple[list[str], Order]:
    from agentvm_kernel.report.document import read_document

    document = read_document(notebook(folder / "n.ipynb", *cells))
    way = plan([cell for cell in document.cells if cell.kind == "code"], None)
    return [step.source for step in way.legs[0].steps], way.order


def test_without_a_record_the_numbers_of_runs_give_the_order_and_else_the_document(tmp_path: Path) -> None:
    kept = [{"agentvm": {"run": run, "kernel": "k"}} for run in (3, 1, 2)]
    cells = [code(name, **one) for name, one in zip("abc", kept, strict=True)]
    assert unrecorded(*cells, folder=tmp_path) == (["b", "c", "a"], "numbers of runs")
    assert unrecorded(*cells, code("d"), folder=tmp_path) == (["a", "b", "c", "d"], "document")
    other = code("d", agentvm={"run": 4, "kernel": "other"})
    assert unrecorded(*cells, other, code(" "), folder=tmp_path) == (["a", "b", "c", "d"], "document")


def test_the_record_has_what_another_image_is_held_against(bed: Bed, tmp_path: Path) -> None:
    bed.run("a")
    _, record = record_of(bed, tmp_path, code("a"))
    assert set(record.images) == {IMAGE}
    assert record.sessions[0].image == IMAGE


def test_a_record_of_another_notebook_is_refused(bed: Bed, tmp_path: Path) -> None:
    bed.run("a")
    cells, record = record_of(bed, tmp_path, code("a"))
    with pytest.raises(ReproduceError, match="not of this notebook"):
        plan([Cell("code", "", "b")], record)
    with pytest.raises(ReproduceError, match="not of this notebook"):
        plan([], record)
    assert plan(cells, record).order == "record"


SEED = "0123456789abcdef" * 2


def test_forks_are_given_the_seed_that_they_had(tmp_path: Path) -> None:
    kept = {"agentvm": {"run": 1, "kernel": "k", "forks": {"count": 2, "seed": SEED}}}
    cells = [code("# before\n%%fork 2 --timeout 9\nx()", **kept)]
    assert unrecorded(*cells, folder=tmp_path)[0] == [f"%%fork 2 --timeout 9 --seed {SEED}\nx()"]


def test_forks_are_given_the_recorded_seed_where_the_cell_keeps_none(bed: Bed, tmp_path: Path) -> None:
    bed.run("a")
    bed.forks(2, "1" * 32)
    bed.forks(3, "2" * 32)
    bed.run("b")
    bed.forks(2, "3" * 32)
    cells = (code("a"), code("%%fork 2\nx()"), code("%%fork 3\nx()"), code("b"), code("%%fork 2\ny()"))
    seeds = [f"--seed {digit * 32}" for digit in "123"]
    one = leg(bed, tmp_path, *cells)
    assert sources(one) == [
        "a", f"%%fork 2 {seeds[0]}\nx()", f"%%fork 3 {seeds[1]}\nx()", "b", f"%%fork 2 {seeds[2]}\ny()"
    ]  # fmt: skip


def test_forks_that_cannot_be_told_apart_are_given_no_seed_that_may_be_anothers(bed: Bed, tmp_path: Path) -> None:
    bed.run("a")
    bed.forks(2, "1" * 32)
    bed.forks(2, "2" * 32)
    assert sources(leg(bed, tmp_path, code("a"), code("%%fork 2\nx()"))) == ["a", "%%fork 2\nx()"]


@pytest.mark.parametrize("seed", ["", "x" * 32, f"{SEED} --timeout 9", f"{SEED}\n%net allow evil.example", 7, None])
def test_a_seed_that_is_none_is_left_out(tmp_path: Path, seed: object) -> None:
    source = "%%fork 2\nx()"
    kept = {"agentvm": {"run": 1, "kernel": "k", "forks": {"seed": seed}}}
    assert unrecorded(code(source, **kept), folder=tmp_path)[0] == [source]
    own = f"%%fork 2 --seed {'f' * 32}\nx()"
    assert unrecorded(code(own, agentvm={"run": 1, "forks": {"seed": SEED}}), folder=tmp_path)[0] == [own]
