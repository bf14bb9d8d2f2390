"""The notebook that a new user meets first, run by the command that they type."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import nbformat
import pytest
from audited import audited_soon

from agentvm_kernel.config import Paths

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "quickstart.ipynb"

pytestmark = pytest.mark.timeout(900)


def agentvm(environment: Mapping[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("agentvm")), *words]
    environment = {**os.environ, **environment, "AGENTVM_IMAGE": "standard"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=800, check=False)


def test_quickstart_runs_every_cell_in_a_vm(vm_environment: Mapping[str, str], vm_paths: Paths) -> None:
    result = agentvm(vm_environment, "quickstart", str(NOTEBOOK))
    assert result.returncode == 0, result.stdout + result.stderr
    executed = vm_paths.state / "notebooks" / NOTEBOOK.name
    assert str(executed) in result.stdout
    node = nbformat.read(executed, as_version=4)
    outputs = [output for cell in node.cells for output in cell.get("outputs", [])]
    data = [kind for output in outputs for kind in output.get("data", {})]
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "image/png" in data
    assert "application/vnd.jupyter.widget-view+json" in data
    assert "kernel:  6.12" in text
    assert "user:    agent" in text
    assert "\nroot\n" in text, "sudo works inside the VM"
    assert "http://example.org/ 403" in text
    assert "http://192.0.2.1/ 403" in text
    assert "%net allow example.org" in text
    assert "written inside the VM" in text
    assert text.endswith("done\n")
    assert [output.ename for output in outputs if output.output_type == "error"] == ["ZeroDivisionError"]


def test_quickstart_shows_the_same_again(vm_environment: Mapping[str, str], vm_paths: Paths, tmp_path: Path) -> None:
    """Its plot to the pixel; what is of the moment is marked, or taken out by rules that the verdict names."""
    executed = vm_paths.state / "notebooks" / NOTEBOOK.name
    assert executed.is_file(), "the test before has run it"
    audited_soon(vm_paths.state, 1, "lease_released")
    again = agentvm(vm_environment, "reproduce", str(executed), "--out", str(tmp_path / "out"), "--json")
    assert again.returncode == 0, again.stdout + again.stderr
    verdict = json.loads(again.stdout)
    assert verdict["order"] == "by the record"
    assert verdict["image"]["flavour"] == "standard"
    by = [one["by"] for one in verdict["cells"]]
    assert by[0] == ["machine-names"]
    assert [place for place, rules in enumerate(by) if "marker" in rules] == [7]
    assert [rules for rules in by[3:7] if rules and rules != ["memory-addresses"]] == []
