"""The report of a notebook that nbclient ran in a real VM says what happened, and a browser loads nothing for it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from html import unescape
from pathlib import Path

import nbformat
import pytest
from kernel_client import wait_until
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from vms import environment_of, own_supervisor

from agentvm_kernel.config import Paths
from agentvm_kernel.observe.curves import FOLDER
from agentvm_kernel.observe.events.vm import LeaseReleased
from agentvm_kernel.observe.reading import Wanted, records
from agentvm_kernel.report.make import make_report

pytestmark = pytest.mark.timeout(500)
CHROMIUM = shutil.which("chromium")

WORK = """\
import time
x, began = 6 * 7, time.process_time()
while time.process_time() < began + 2:
    pass
print(x)"""
REFUSED = """\
import socket
try:
    socket.create_connection(("refused.example", 443), 60).recv(1)
except OSError:
    pass"""
SCRIPTED = """\
from IPython.display import HTML, display
display(HTML('<b>bold</b><img src="https://evil.example/pixel.png">'))"""
CELLS = (
    new_markdown_cell("# An experiment\n\nWith a *way back*. <script>alert(1)</script>"),  # type: ignore[no-untyped-call]
    new_code_cell(WORK),  # type: ignore[no-untyped-call]
    new_code_cell("%snapshot good"),  # type: ignore[no-untyped-call]
    new_code_cell("wrong = x + 1\nwrong"),  # type: ignore[no-untyped-call]
    new_code_cell("1 / 0", metadata={"tags": ["raises-exception"]}),  # type: ignore[no-untyped-call]
    new_code_cell(SCRIPTED),  # type: ignore[no-untyped-call]
    new_code_cell(REFUSED),  # type: ignore[no-untyped-call]
    new_code_cell("%rollback good"),  # type: ignore[no-untyped-call]
    new_code_cell("print('wrong' in globals(), x)"),  # type: ignore[no-untyped-call]
)


@dataclass(frozen=True)
class Experiment:
    """A notebook that was run."""

    notebook: Path
    paths: Paths

    def agentvm(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from agentvm_kernel.cli import main; main()", "report", *words]
        environment = os.environ | environment_of(self.paths)
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Experiment]:
    folder = tmp_path_factory.mktemp("report")
    node = new_notebook(cells=[cell.copy() for cell in CELLS])  # type: ignore[no-untyped-call]
    with own_supervisor() as paths:
        measured = paths.state / FOLDER

        def wait_until_measured(cell_index: int, times: int) -> None:
            if cell_index == 1:
                wait_until(lambda: lines_in(measured) >= times, f"the VM is measured {times} times")

        client = NotebookClient(node, kernel_name="agentvm", timeout=200)
        client.on_cell_execute = lambda cell_index, **_: wait_until_measured(cell_index, 1)
        client.on_cell_executed = lambda cell_index, **_: wait_until_measured(cell_index, 2)
        client.execute(env={**os.environ, **environment_of(paths)})
        nbformat.write(node, folder / "experiment.ipynb")  # type: ignore[no-untyped-call]

        def is_over() -> bool:
            found = records(paths.state / "audit", Wanted(events=frozenset({"lease_released"})))
            return any(one.record and isinstance(one.record.event, LeaseReleased) for one in found)

        wait_until(is_over, "the lease is released")
        yield Experiment(folder / "experiment.ipynb", paths)


def lines_in(folder: Path) -> int:
    return sum(len(file.read_text().splitlines()) for file in folder.glob("*.jsonl"))


def words(page: str) -> str:
    return re.sub(r"\s+", " ", unescape(re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL)))


def test_the_report_says_what_happened(experiment: Experiment) -> None:
    report = make_report(experiment.notebook, experiment.paths)
    (session,) = report.found.sessions
    assert report.found.by == "code"
    standings = [match.standing for match in report.matches]
    magics = {1, 6}
    assert [one for place, one in enumerate(standings) if place not in magics] == ["as recorded"] * 6
    assert [standings[place] for place in magics] == ["no known run"] * 2
    runs = [match.run for match in report.matches]
    assert [run.outcome for run in runs if run] == [
        "completed", "completed", "failed", "completed", "completed", "completed"
    ]  # fmt: skip
    (saved,) = [one for one in session.snapshots if one.label == "good"]
    assert [(one.target, one.source) for one in session.returns] == [(saved.id, saved.id)]
    on_the_way = [run in session.way for run in runs if run]
    assert on_the_way == [True, False, False, False, False, True]
    assert session.acquired.hypervisor.startswith("qemu ")
    assert "isolated" not in session.acquired.network
    said = words(report.page)
    for wanted in (
        "is whole", session.acquired.hypervisor, session.acquired.image, "ZeroDivisionError",
        "on a branch that was left", f"good ({saved.id})", "connection to refused.example:443", "output: remote",
        "outputs as recorded", "Debian packages", "False 42",
    ):  # fmt: skip
        assert wanted in said, wanted
    (curves,) = re.findall(r'<svg [^>]*class="curves".*?</svg>', report.page)
    assert curves.count("<title>run ") == 6, "a band for each run"
    assert len(re.findall(r'<path d="M[0-9. ]+L[^"]*" fill="none" stroke="#1f77b4"', curves)) >= 2, "CPU and memory"
    assert "evil.example/pixel" not in re.sub(r'<div class="source">.*?</div>', "", report.page, flags=re.DOTALL)


def test_a_digit_that_was_changed_in_the_file_is_told(experiment: Experiment, tmp_path: Path) -> None:
    changed = tmp_path / "experiment.ipynb"
    node = nbformat.read(experiment.notebook, as_version=4)  # type: ignore[no-untyped-call]
    assert node.cells[1].outputs[0].text == "42\n"
    node.cells[1].outputs[0].text = "43\n"
    nbformat.write(node, changed)  # type: ignore[no-untyped-call]
    report = make_report(changed, experiment.paths)
    assert [match.standing for match in report.matches].count("changed") == 1
    assert report.matches[0].standing == "changed"


def test_the_archive_is_verified_until_it_is_changed(experiment: Experiment, tmp_path: Path) -> None:
    made = experiment.agentvm(str(experiment.notebook), "--zip", "-o", str(tmp_path))
    assert (made.returncode, made.stderr) == (0, "")
    packed = tmp_path / "experiment.report.zip"
    verified = experiment.agentvm("verify", str(packed))
    assert (verified.returncode, "your own key" in verified.stdout) == (0, True)
    content = bytearray(packed.read_bytes())
    content[len(content) // 2] ^= 1
    packed.write_bytes(bytes(content))
    refused = experiment.agentvm("verify", str(packed))
    assert refused.returncode == 1
    assert "report: " in refused.stderr


@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")
def test_a_browser_asks_for_nothing_runs_nothing_and_prints_it(experiment: Experiment, tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    made = experiment.agentvm(str(experiment.notebook), "--pdf", "-o", str(tmp_path))
    assert (made.returncode, made.stderr) == (0, "")
    assert (tmp_path / "experiment.report.pdf").read_bytes().startswith(b"%PDF-")
    address = (tmp_path / "experiment.report.html").as_uri()
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_context(offline=True, viewport={"width": 1000, "height": 900}).new_page()
        asked: list[str] = []
        said: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.goto(address)
        boxes = page.evaluate(
            "[...document.querySelectorAll('.output')].map(one => [one.scrollWidth, one.clientWidth])"
        )
        headings = page.locator("h2").all_inner_texts()
        page.screenshot(path=tmp_path / "light.png", full_page=True)
        page.emulate_media(media="print")
        page.screenshot(path=tmp_path / "print.png", full_page=True)
        browser.close()
    assert [one for one in asked if not one.startswith("data:")] == [address]
    assert said == []
    assert headings[:2] == ["Summary", "Notebook"]
    assert headings[-4:] == ["Hosts", "Blocked", "Environment", "How to run it again"]
    assert len(boxes) >= 7
    if keep := os.environ.get("AGENTVM_TEST_PICTURES"):
        for name in ("light.png", "print.png", "experiment.report.html", "experiment.report.pdf"):
            shutil.copy(tmp_path / name, keep)


def test_what_agentvm_run_keeps_in_the_notebook(experiment: Experiment, tmp_path: Path) -> None:
    source = tmp_path / "n.ipynb"
    cells = [new_code_cell("y = 2"), new_code_cell("print(y)")]  # type: ignore[no-untyped-call]
    nbformat.write(new_notebook(cells=cells), source)  # type: ignore[no-untyped-call]
    command = [sys.executable, "-c", "from agentvm_kernel.cli import main; main()", "run", str(source), "--out", "out"]
    environment = os.environ | environment_of(experiment.paths)
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    kept = json.loads((tmp_path / "out" / "n.ipynb").read_text())
    first, second = (cell["metadata"]["agentvm"] for cell in kept["cells"])
    assert second["run"] == first["run"] + 1
    assert first["vm"] == second["vm"] != ""
    assert (first["base"], first["after"]) == ("", "")
    assert first["facts"]["seconds"] > 0
    assert all(len(json.dumps(cell["metadata"])) < 2048 for cell in kept["cells"])
    machine = kept["metadata"]["agentvm"]
    assert re.fullmatch(r"[0-9a-f]{64}", machine["image"])
    assert (machine["profile"], machine["memory_mib"]) == ("test", 512)
    assert re.fullmatch(r"qemu [\d.]+, libvirt [\d.]+", machine["hypervisor"])
    assert re.match(r"filtered; \d+ rules, SHA-256 [0-9a-f]{64}", machine["network"])
    assert second["code"] == hashlib.sha256(b"print(y)").hexdigest()
    report = make_report(tmp_path / "out" / "n.ipynb", experiment.paths)
    assert [match.standing for match in report.matches] == ["as recorded"] * 2
