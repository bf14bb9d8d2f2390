"""Snapshots, rollback and time travel with a real ipykernel; what takes its place after a rollback is a fresh one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

import nbformat
import pytest
from kernel_behaviour import SLIDER, debug
from kernel_client import TIMEOUT, Notebook, notebook
from kernel_fixtures import kernel_environment  # noqa: F401
from nbclient import NotebookClient


@pytest.fixture(scope="module")
def nb(kernel_environment: Mapping[str, str]) -> Iterator[Notebook]:  # noqa: F811
    with notebook(kernel_environment) as running:
        yield running


def text(nb: Notebook, magic: str) -> str:
    cell = nb.run(magic)
    assert cell.status == "ok", cell.reply
    return str(cell.of("display_data")[-1]["data"]["text/plain"])


def test_a_rollback_gives_another_guest_and_the_tree_says_where(nb: Notebook) -> None:
    nb.run("kept = 1")
    assert text(nb, "%snapshot base -m the beginning").startswith("Snapshot base (")
    assert "base" in text(nb, "%rollback base --dry-run")
    assert text(nb, "%rollback base").startswith("Back at base (")
    assert nb.run("'kept' in globals()").result == "False"
    tree = nb.run("%snapshots").of("display_data")[-1]["data"]
    assert "● base (" in tree["text/plain"]
    assert "the beginning" in tree["text/html"]
    assert "There is no snapshot" in nb.run("%rollback nowhere").reply["evalue"]


def test_a_thread_that_prints_for_ever_does_not_survive(nb: Notebook) -> None:
    text(nb, "%snapshot base")
    nb.run(
        "import sys, threading\n"
        "def flood():\n    while True:\n        print('flood' * 100)\n        sys.stdout.flush()\n"
        "threading.Thread(target=flood, daemon=True).start()"
    )
    assert text(nb, "%rollback base").startswith("Back at base (")
    cell = nb.run("print('quiet')")
    assert [message["msg_type"] for message in cell.messages] == ["execute_input", "stream"]
    assert cell.text() == "quiet\n"


def test_a_widget_made_since_is_closed(nb: Notebook) -> None:
    text(nb, "%snapshot base")
    comm_id = nb.run(SLIDER).result.strip("'")
    nb.client.execute("%rollback base")
    nb.wait_for("comm_close", lambda content: content["comm_id"] == comm_id)
    assert nb.run("1").result == "1"


def test_a_debugger_that_is_attached_does_not_matter(nb: Notebook) -> None:
    text(nb, "%snapshot base")
    arguments = {"clientID": "test", "adapterID": "", "pathFormat": "path", "linesStartAt1": True}
    debug(nb, 1, "initialize", arguments)
    debug(nb, 2, "attach")
    assert text(nb, "%rollback base").startswith("Back at base (")
    assert nb.control("debug_request", {"type": "request", "seq": 1, "command": "debugInfo"})["success"]
    assert nb.run("1").result == "1"


def test_a_running_cell_is_frozen_from_another_client_and_runs_on(nb: Notebook) -> None:
    with nb.second_client() as other:
        busy = nb.client.execute("print('in', flush=True)\nname = input()\nprint(name)", allow_stdin=True)
        nb.client.get_stdin_msg(timeout=TIMEOUT)
        assert "it froze a running cell" in text(other, "%snapshot middle --now")
        nb.client.input("out")
        assert nb.finish(busy).text() == "in\nout\n"


def test_cells_are_undone(nb: Notebook) -> None:
    text(nb, "%timetravel on")
    assert nb.run("a = 1").status == "ok"
    assert nb.run("b = 1/0").reply["ename"] == "ZeroDivisionError"
    assert text(nb, "%undo").startswith("Back at ")
    assert nb.run("'a' in globals()").result == "False"
    assert text(nb, "%timetravel off").startswith("Time travel is off")


def test_forks_run_a_cell_and_one_is_adopted(nb: Notebook) -> None:
    shown = text(nb, "%%fork 2\nfruit = 'pear'\nprint('picked')\nfruit * 2")
    lines = shown.splitlines()
    assert [line.split()[:2] for line in lines[1:3]] == [["1", "ok"], ["2", "ok"]]
    assert lines[1].endswith("'pearpear'")
    assert shown.count("picked") == 2
    assert nb.run("'fruit' in globals()").result == "False"
    assert text(nb, "%adopt 2").startswith("Fork 2 is the notebook's VM now (")
    assert nb.run("fruit").result == "'pear'"


def test_nbclient_runs_a_notebook_that_travels_in_time(kernel_environment: Mapping[str, str]) -> None:  # noqa: F811
    sources = [
        "%timetravel on",
        "x = 1",
        "%snapshot s",
        "print('x' in globals())",
        "%rollback s",
        "%snapshots",
        "1 + 1",
    ]
    book = nbformat.v4.new_notebook()
    book.cells = [nbformat.v4.new_code_cell(source) for source in sources]
    NotebookClient(book, kernel_name="agentvm", timeout=int(TIMEOUT)).execute(env={**os.environ, **kernel_environment})
    assert book.cells[3].outputs[0]["text"] == "True\n"
    assert "Back at s (" in book.cells[4].outputs[-1]["data"]["text/plain"]
    assert "auto" in book.cells[5].outputs[-1]["data"]["text/plain"]
    assert book.cells[6].outputs[-1]["data"]["text/plain"] == "2"
