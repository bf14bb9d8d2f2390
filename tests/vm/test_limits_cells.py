"""Cells that do not end, and cells that flood: the limit is named, and the notebook can be used again."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from queue import Empty

import psutil
import pytest
from kernel_client import TIMEOUT, Cell, Notebook, notebook
from travel import last_words, ok, refused, saved, told, value

pytestmark = pytest.mark.timeout(300)

DEADLINE = 2
OVERDUE = f"ran longer than {DEADLINE} s, the deadline set by %limits"

ENDLESS = "while True: pass"
DEAF = "while True:\n    try:\n        while True: pass\n    except KeyboardInterrupt: pass"
IN_C = "import itertools\nsum(itertools.repeat(0))"
MIB = 1 << 20


@pytest.fixture(scope="module")
def running(vm_environment: Mapping[str, str]) -> Iterator[Notebook]:
    with notebook(vm_environment) as nb:
        yield nb


@pytest.fixture
def nb(running: Notebook) -> Iterator[Notebook]:
    ok(running, f"%limits timeout={DEADLINE}")
    yield running
    ok(running, "%limits reset")


def vm_of(cell: Cell) -> str:
    return str(cell.metadata["agentvm"]["vm"])


def thrown_away(cell: Cell) -> str:
    """The error of a cell that went with its VM."""
    assert cell.reply.get("ename") == "CellDeadlineError", cell.reply
    assert OVERDUE in cell.text("stderr")
    return str(cell.reply["evalue"])


def test_an_endless_loop_is_interrupted_and_the_vm_stays(nb: Notebook) -> None:
    vm = vm_of(ok(nb, "kept = 1"))
    cell = nb.run(ENDLESS)
    assert cell.reply["ename"] == "KeyboardInterrupt"
    assert OVERDUE in cell.text("stderr")
    assert "%limits timeout=" in cell.text("stderr")
    after = ok(nb, "kept")
    assert (after.result, vm_of(after)) == ("1", vm)


@pytest.mark.parametrize("code", [DEAF, IN_C], ids=["deaf to interrupts", "endless in C"])
def test_what_cannot_be_interrupted_goes_with_its_vm(nb: Notebook, code: str) -> None:
    vm = vm_of(ok(nb, "kept = 1"))
    said = thrown_away(nb.run(code))
    assert "could not be stopped" in said
    assert "There is no snapshot of it" in said
    fresh = ok(nb, "'kept' in globals()")
    assert fresh.result == "False"
    assert vm_of(fresh) != vm
    # What was changed holds in the fresh VM.
    assert OVERDUE in nb.run(ENDLESS).text("stderr")


def test_the_way_back_that_is_named_leads_back(nb: Notebook) -> None:
    ok(nb, "kept = 42")
    snapshot = saved(nb, "before-the-loop")
    ok(nb, "kept = 0")
    said = thrown_away(nb.run(IN_C))
    assert f"%rollback {snapshot} goes back" in said
    ok(nb, f"%rollback {snapshot}")
    assert value(nb, "kept") == 42
    assert OVERDUE in nb.run(ENDLESS).text("stderr")


def test_cells_behind_it_are_aborted(nb: Notebook) -> None:
    ids = [nb.client.execute(code) for code in (DEAF, "print('reached')", "%vm")]
    thrown_away(nb.finish(ids[0]))
    assert [nb.reply(msg_id)["content"]["status"] for msg_id in ids[1:]] == ["aborted", "aborted"]
    assert ok(nb, "6 * 7").result == "42"


def test_a_queued_cell_has_its_time_from_when_it_begins(nb: Notebook) -> None:
    half = f"import time\ntime.sleep({0.6 * DEADLINE})"
    ids = [nb.client.execute(half) for _ in range(3)]
    assert [nb.finish(msg_id).status for msg_id in ids] == ["ok"] * 3


def test_waiting_for_input_is_not_running(nb: Notebook) -> None:
    msg_id = nb.client.execute("answer = input('?')", allow_stdin=True)
    nb.client.get_stdin_msg(timeout=TIMEOUT)
    with pytest.raises(Empty):
        nb.client.get_stdin_msg(timeout=2 * DEADLINE)
    nb.client.input("yes")
    assert nb.finish(msg_id).status == "ok"
    assert value(nb, "answer") == "yes"


def test_with_time_travel_the_cells_before_it_are_not_lost(nb: Notebook) -> None:
    ok(nb, "%timetravel on")
    ok(nb, "kept = 'travelled'")
    way = re.search(r"(%rollback [0-9a-f]{12}) goes back", thrown_away(nb.run(DEAF)))
    assert way
    ok(nb, way[1])
    assert value(nb, "kept") == "travelled"
    ok(nb, "%timetravel off")


def test_forks_have_the_deadline_by_default(nb: Notebook) -> None:
    cell = ok(nb, f"%%fork 1\n{ENDLESS}")
    assert f"It was not done within {DEADLINE} s" in last_words(cell)


def test_the_limits_are_shown_and_refused_in_one_line(nb: Notebook) -> None:
    shown = told(nb, "%limits")
    for words in ("set by %limits", "of profile test", "QEMU's throttling", "the kernel process"):
        assert words in shown
    assert "more than the VM has" in refused(nb, "%limits memory=4GiB")
    assert "that is the profile's" in refused(nb, "%limits disk=40GB")


def test_what_is_too_much_output_is_left_out_and_the_cell_goes_on(nb: Notebook) -> None:
    ok(nb, "%limits timeout=300 output=1MiB")
    cell = ok(nb, "for _ in range(48): print('x' * 65535)\nreached = True\n1 / 1")
    assert len(cell.text()) < MIB
    assert cell.text("stderr").count("more than 1 MiB, the output limit set by %limits") == 1
    assert ok(nb, "print('next', reached)").text() == "next True\n"


def test_a_gigabyte_of_prints_leaves_the_kernel_process_small(nb: Notebook) -> None:
    ok(nb, "%limits timeout=300 output=2GiB output_rate=1GiB")
    process = psutil.Process(nb.pid)
    before = process.memory_info().rss
    most = seen = 0
    msg_id = nb.client.execute("line = 'x' * (4 << 20)\nfor _ in range(256): print(line)")
    for message in nb.said(msg_id):
        seen += len(message["content"].get("text", ""))
        most = max(most, process.memory_info().rss)
    assert nb.reply(msg_id)["content"]["status"] == "ok"
    assert seen > 1 << 29  # a client that does not keep up loses some
    assert most - before < 512 * MIB


def test_a_flood_at_a_low_rate_can_be_interrupted(nb: Notebook) -> None:
    ok(nb, "%limits timeout=300 output_rate=1MiB")
    msg_id = nb.client.execute("while True: print('x' * 10_000)")
    nb.wait_for("stream")
    assert nb.control("interrupt_request", {})["status"] == "ok"
    cell = nb.finish(msg_id)
    assert cell.reply["ename"] == "KeyboardInterrupt"
    assert ok(nb, "6 * 7").result == "42"
