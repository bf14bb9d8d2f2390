"""Programs that run notebooks go back in time as people do: nbclient and papermill."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import nbformat
import papermill
import pytest
from kernel_client import TIMEOUT
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from travel import named

pytestmark = pytest.mark.timeout(200)

CELLS = [
    "%timetravel on",
    "import random\nrandom.seed(1)\nopen('log', 'w').write('one')",
    "%snapshot base -m before the draw",
    "draw = random.random()\nopen('log', 'a').write(' two')\nprint(draw, open('log').read())",
    "%rollback base",
    "print('draw' in globals(), random.random(), open('log').read())",
    "%undo",
    "%timetravel off",
    "%snapshots",
    "print(threshold)",
]


def book(parameter: str = "threshold = 1") -> nbformat.NotebookNode:
    made = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "agentvm", "display_name": "", "language": "python"}}
    )
    first = nbformat.v4.new_code_cell(parameter, metadata={"tags": ["parameters"]})
    made.cells = [first, *(nbformat.v4.new_code_cell(source) for source in CELLS)]
    return made


def check(made: nbformat.NotebookNode, threshold: int) -> None:
    """Every cell shows what it should, the same number drawn twice among it."""
    cells = {cell.source: cell for cell in made.cells if cell.cell_type == "code"}
    texts = {source: "".join(one.get("text", "") for one in cell.outputs) for source, cell in cells.items()}
    drawn, _, seen = texts[CELLS[3]].partition(" ")
    assert seen == "one two\n"
    assert texts[CELLS[5]] == f"False {drawn} one\n"
    for place, words in ((4, "Back at base ("), (6, "Back at "), (8, "before the draw"), (8, "auto")):
        assert words in cells[CELLS[place]].outputs[-1]["data"]["text/plain"]
    assert texts[CELLS[9]] == f"{threshold}\n"
    assert not [one for cell in cells.values() for one in cell.outputs if one.output_type == "error"]


def test_nbclient(vm_environment: Mapping[str, str]) -> None:
    made = book()
    environment = {**os.environ, **named(vm_environment, "/tests/nbclient.ipynb")}
    NotebookClient(made, timeout=int(TIMEOUT)).execute(env=environment)
    check(made, 1)


def test_nbclient_stops_at_a_rollback_that_fails(vm_environment: Mapping[str, str]) -> None:
    made = book()
    made.cells[5].source = "%rollback nowhere"
    environment = {**os.environ, **named(vm_environment, "/tests/nbclient-fails.ipynb")}
    with pytest.raises(CellExecutionError, match="There is no snapshot"):
        NotebookClient(made, timeout=int(TIMEOUT)).execute(env=environment)
    assert made.cells[6].outputs == []


def test_papermill(vm_environment: Mapping[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in named(vm_environment, "/tests/papermill.ipynb").items():
        monkeypatch.setenv(name, text)
    nbformat.write(book(), tmp_path / "in.ipynb")
    papermill.execute_notebook(
        tmp_path / "in.ipynb", tmp_path / "out.ipynb", {"threshold": 7}, kernel_name="agentvm", progress_bar=False
    )
    check(nbformat.read(tmp_path / "out.ipynb", as_version=4), 7)
