"""The worked examples run from top to bottom in real VMs, and show what they say."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"

pytestmark = pytest.mark.timeout(400)


def run(name: str, environment: Mapping[str, str]) -> list[str]:
    """Run a notebook; return what its code cells show as text."""
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    client = NotebookClient(notebook, kernel_name="agentvm", timeout=120)
    client.execute(env={**os.environ, **environment})
    return [
        "".join(
            output.text if output.output_type == "stream" else output.data.get("text/plain", "")
            for output in cell.outputs
        )
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def test_time_travel(vm_environment: Mapping[str, str]) -> None:
    shown = run("time_travel.ipynb", vm_environment)
    assert shown[2] == "False", "the damage is done"
    assert "Lost:" in shown[3]
    assert "Back at clean" in shown[4]
    assert shown[5].startswith("(['before'], [0, 1, 4], 9, 'do not lose this")
    assert shown[-3] == "[1, 2]", "one cell was undone"
    assert "clean" in shown[-1]
    assert "(here)" in shown[-1]


def test_search_by_forks(vm_environment: Mapping[str, str]) -> None:
    shown = run("fork.ipynb", vm_environment)
    lengths = [float(length) for length in shown[7].split(" -> ")]
    assert len(lengths) == 4
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[-1] < lengths[0] / 2
    results = {line.split()[-1] for line in shown[8].splitlines() if " ok " in line}
    assert len(results) == 1, "common random numbers"
    assert shown[10].strip() == f"{lengths[-1]:.2f}"
