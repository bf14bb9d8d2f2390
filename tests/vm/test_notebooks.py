"""The worked examples run from top to bottom in real VMs, and show what they say."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import nbformat
import pytest
from audited import audited
from nbclient import NotebookClient
from travel import named

from agentvm_kernel.config import Paths
from agentvm_kernel.report.make import make_report
from agentvm_kernel.report.verify import examine

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"

pytestmark = pytest.mark.timeout(400)


def run(name: str, environment: Mapping[str, str], folder: Path = NOTEBOOKS) -> list[str]:
    """Run a notebook; return what its code cells show as text.

    Args:
        name: The notebook's.
        environment: The kernel's.
        folder: Where the notebook is read; another one than the repository's gets what it puts out, too.
    """
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    client = NotebookClient(notebook, kernel_name="agentvm", timeout=200, resources={"metadata": {"path": str(folder)}})
    client.execute(env={**os.environ, **environment})
    if folder != NOTEBOOKS:
        nbformat.write(notebook, folder / name)
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


def forked(table: str) -> list[tuple[str, str]]:
    """Status and result of each fork, as `%%fork` shows them."""
    rows = re.findall(r"^[1-9][0-9]* +(\w+) +[0-9.]+ s +[0-9.]+ s +[0-9.]+ \w+ +(.*)$", table, re.MULTILINE)
    assert rows, table
    return [(status, result.strip()) for status, result in rows]


def standard(environment: Mapping[str, str]) -> dict[str, str]:
    return {**environment, "AGENTVM_IMAGE": "standard"}


def test_the_attempt_whose_tests_pass_is_adopted(vm_environment: Mapping[str, str]) -> None:
    shown = run("agent_repair.ipynb", vm_environment)
    assert shown[1] == "2", "as it was found, two tests pass"
    (half, cheat, repaired, ruined) = forked(shown[3])
    assert (half, cheat, repaired) == (("ok", "3"), ("ok", "2"), ("ok", "5"))
    assert ruined[0] == "died"
    assert "Tests: 2 of 2 pass." in shown[3], "the cheat says that all is well"
    assert shown[4].startswith("Fork 3 is the notebook's VM now")
    assert "+    for start, end in sorted(spans):" in shown[5]
    assert "test_spans.py" not in shown[5], "the tests are as they were"


def test_nothing_that_a_page_asks_for_leaves_the_machine(vm_environment: Mapping[str, str], vm_paths: Paths) -> None:
    notebook = "/tests/prompt_injection.ipynb"
    shown = run("prompt_injection.ipynb", named(vm_environment, notebook))
    forks = next(forked(text) for text in shown if "fork 1 printed:" in text)
    assert forks == [("ok", f"'{page}'") for page in ("plain", "hidden", "address", "tunnel", "friend")]
    tried = [one for one in audited(vm_paths.state, "network_connection_blocked") if one["notebook"] == notebook]
    hosts = {(one["name"]["claimed"] if "name" in one else one["address"], one["port"]) for one in tried}
    assert hosts == {
        ("exfil.example", 80), ("exfil.example", 8080), ("192.0.2.66", 80),
        ("canary-3141592653.exfil.example", 80), ("api.github.com", 443),
    }  # fmt: skip
    allowed = [one for one in audited(vm_paths.state, "network_connection_allowed") if one["notebook"] == notebook]
    assert allowed == []
    assert shown[-3].startswith("curl http://exfil.example/"), "the page has left something behind"
    assert shown[-1] == "False\n", "the rollback has taken it away"


def test_the_analysis_ends_in_a_report_of_what_was_run(
    vm_environment: Mapping[str, str], vm_paths: Paths, tmp_path: Path
) -> None:
    name = "data_analysis.ipynb"
    shutil.copy(NOTEBOOKS / name, tmp_path)
    shown = run(name, standard(vm_environment), tmp_path)
    assert shown[-2] == "{'a degree warmer': True, 'rain': True, 'a working day': True}"
    assert "data_analysis.report.zip" in shown[-1]
    assert examine(tmp_path / "data_analysis.report.zip", vm_paths.state).is_good
    report = make_report(tmp_path / name, vm_paths)
    standings = [match.standing for match in report.matches]
    assert standings[:-1] == ["as recorded"] * (len(standings) - 1), "outputs are as the host recorded them"
    assert report.page.count("data:image/png;base64,") == 2


def test_seeds_common_and_diverging(vm_environment: Mapping[str, str]) -> None:
    shown = run("random_seeds.ipynb", standard(vm_environment))
    assert shown[2] == shown[4] != "", "the run was repeated from its state"
    diverging, common, own, compared = (forked(text) for text in shown if "%adopt K makes" in text)
    assert len({result for _, result in diverging}) == 4
    assert len({result for _, result in common}) == 1
    assert len({result for _, result in own}) == 1
    assert "fork 1 printed:\n400 tries" in shown[8]
    assert "fork 2 printed:\n500 tries" in shown[8]
    assert {status for status, _ in diverging + common + own + compared} == {"ok"}
    errors = {name: float(error) for name, error in re.findall(r"(\w+) seeds .* standard error ([0-9.]+)", shown[-1])}
    assert errors["common"] < errors["diverging"] / 2
