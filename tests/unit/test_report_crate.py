"""The description of a report for machines, by the shapes of the Workflow Run profiles, as roc-validator has them.

It wants an older rich than the tests do, so that it has an environment of its own, which a variable names. `make test`
and `make unit` make one and name it; by hand:

    python3 -m venv crate && crate/bin/pip install roc-validator==0.13.0
    AGENTVM_CRATE_VALIDATOR=crate/bin/python pytest tests/unit/test_report_crate.py
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from packed import files_of
from report_bed import Bed, code, notebook, text

from agentvm_kernel.report.writing import Wanted, write_report

VALIDATOR = os.environ.get("AGENTVM_CRATE_VALIDATOR", "")
SCRIPT = Path(__file__).parents[1] / "support" / "validate_crate.py"

pytestmark = pytest.mark.skipif(not VALIDATOR, reason="AGENTVM_CRATE_VALIDATOR names no Python with roc-validator")

Graph = list[dict[str, Any]]


def crate(folder: Path, author: str = "") -> Path:
    """A report of two sessions, one of which failed, unpacked."""
    bed, path = Bed(folder), folder / "n.ipynb"
    bed.begin(notebook=str(path))
    bed.run("a", text("1"))
    bed.snapshot("s1")
    bed.run("b", error="ValueError")
    bed.back("s1", "vm-2")
    bed.record_release()
    bed.begin("lease-2", notebook=str(path), vm="vm-3")
    bed.run("b", error="ValueError")
    bed.end()
    notebook(path, code("a", text("1")), code("b"))
    (packed,) = write_report(path, None, Wanted(packed=True, author=author), bed.paths).files
    unpacked = folder / "unpacked"
    unpacked.mkdir()
    for name, content in files_of(packed).items():
        (unpacked / name).write_bytes(content)
    return unpacked


def validated(folder: Path) -> tuple[list[str], list[str]]:
    """What was checked, and what is not as it must be."""
    command = [VALIDATOR, str(SCRIPT), str(folder), "workflow-run-crate-0.5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    return said["checked"], said["issues"]


@pytest.mark.parametrize("author", ["", "A. Author"])
def test_a_report_is_what_the_profiles_say_it_must_be(tmp_path: Path, author: str) -> None:
    checked, issues = validated(crate(tmp_path, author))
    assert issues == []
    profiles = {one.rpartition("_")[0] for one in checked}
    assert profiles == {"ro-crate-1.1", "process-run-crate-0.5", "workflow-ro-crate-1.0", "workflow-run-crate-0.5"}


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any] | None], str]] = {
    "no action": (lambda one: None if one["@type"] == "CreateAction" else one, "mainEntity as its instrument"),
    "no license": (lambda one: {key: value for key, value in one.items() if key != "license"}, "license"),
    "no workflow": (
        lambda one: one | {"@type": "File"} if "ComputationalWorkflow" in one["@type"] else one, "must have types"
    ),
    "a term that is none": (lambda one: one | {"madeUp": "1"}, "madeUp"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_not_as_it_must_be_is_found(tmp_path: Path, name: str) -> None:
    change, said = CHANGES[name]
    folder = crate(tmp_path)
    path = folder / "ro-crate-metadata.json"
    values = json.loads(path.read_text())
    values["@graph"] = [one for one in map(change, values["@graph"]) if one]
    path.write_text(json.dumps(values))
    assert any(said in one for one in validated(folder)[1])
