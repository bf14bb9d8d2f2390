"""Programs that run notebooks, started as users start them: how they end, what they keep, that no VM outlives them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import nbformat
import psutil
import pytest
from audited import audited
from kernel_client import TIMEOUT, wait_until
from nbformat.v4 import new_code_cell, new_notebook
from travel import named
from vms import qemus

from agentvm_kernel.config import Paths

pytestmark = pytest.mark.timeout(600)
BIN = Path(sys.executable).parent

PARAMETERS = "threshold = 1"
SLOW = "import time\nprint('begun', flush=True)\ntime.sleep(600)"


def papermill(timeout: int) -> list[str]:
    return ["papermill", "in.ipynb", "out.ipynb", "-k", "agentvm", "--execution-timeout", str(timeout)]


def nbclient(timeout: int) -> list[str]:
    return ["jupyter", "execute", "in.ipynb", "--kernel_name=agentvm", "--output=out", f"--timeout={timeout}"]


def nbmake(timeout: int) -> list[str]:
    here = ["--rootdir=.", "-p", "no:cacheprovider", "--overwrite", "in.ipynb"]
    return ["pytest", "--nbmake", "--nbmake-kernel=agentvm", f"--nbmake-timeout={timeout}", *here]


def nbconvert(timeout: int) -> list[str]:
    options = ["--ExecutePreprocessor.kernel_name=agentvm", f"--ExecutePreprocessor.timeout={timeout}"]
    return ["jupyter", "nbconvert", "--to=notebook", "--execute", "in.ipynb", "--output=out", *options]


Runner = Callable[[int], list[str]]
RUNNERS = (papermill, nbclient, nbmake, nbconvert)
KEEPING = (papermill, nbmake)
"""Those that write what has run although a cell failed; the others write nothing then."""


@dataclass
class Run:
    """A runner at work.

    Attributes:
        process: Its process.
        folder: Where it runs.
        notebook: What the lease says that it is for.
        paths: The supervisor's.
    """

    process: subprocess.Popen[str]
    folder: Path
    notebook: str
    paths: Paths

    def end(self) -> tuple[int, str]:
        """Wait for the end; return the exit code and all that was said."""
        said, _ = self.process.communicate(timeout=3 * TIMEOUT)
        return self.process.returncode, said

    @property
    def vm(self) -> str:
        """Its VM, once it has one."""

        def acquired() -> list[str]:
            leases = audited(self.paths.state, "lease_acquired")
            return [one["vm"] for one in leases if one["notebook"] == self.notebook]

        wait_until(lambda: bool(acquired()), "a VM", 3 * TIMEOUT)
        return acquired()[-1]

    def running(self, cells: int) -> int:
        """Wait until so many cells were begun; return the pid of its QEMU, as the command line tells it."""
        vm = self.vm

        def begun() -> int:
            return sum(one["vm"] == vm for one in audited(self.paths.state, "execution_started"))

        wait_until(lambda: begun() >= cells, f"{cells} cells begun", 2 * TIMEOUT)
        command = [BIN / "agentvm", "vm", "list", "--json"]
        environment = os.environ | self.paths.environment
        listed = subprocess.run(command, env=environment, capture_output=True, check=True, timeout=60).stdout
        (pid,) = [one["pid"] for one in json.loads(listed)["vms"] if one["id"] == vm]
        return int(pid)

    def kernel(self) -> int:
        """Return the pid of the kernel process that the runner has started."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        (pid,) = [one.pid for one in below if "agentvm_kernel" in one.cmdline()]
        return int(pid)

    def assert_gone(self) -> None:
        """The VM was given back, and its QEMU is gone."""
        vm = self.vm
        wait_until(
            lambda: any(one["vm"] == vm for one in audited(self.paths.state, "lease_released")), f"{vm} is given back"
        )
        wait_until(lambda: not qemus(f"{self.paths.tag}-{vm}"), f"the QEMU of {vm} is gone")

    def outputs(self) -> list[list[nbformat.NotebookNode]]:
        """What stands under the code cells of the notebook that was written."""
        written = self.folder / "out.ipynb"
        node = nbformat.read(written if written.exists() else self.folder / "in.ipynb", as_version=4)
        return [cell.outputs for cell in node.cells if cell.cell_type == "code"]


Begin = Callable[..., Run]


@pytest.fixture
def begin(
    vm_environment: Mapping[str, str], vm_paths: Paths, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Begin]:
    """Starts a runner's command on a notebook of the cells; what still runs ends with the test."""
    with ExitStack() as stack:

        def started(command: list[str], *sources: str) -> Run:
            folder = Path(tempfile.mkdtemp(dir=tmp_path))
            environment = os.environ | named(vm_environment, f"/tests/{request.node.name}-{folder.name}.ipynb")
            for name in ("PYTEST_ADDOPTS", "COLUMNS"):  # of these tests
                environment.pop(name, None)
            write(folder / "in.ipynb", sources)
            process = subprocess.Popen(
                [str(BIN / command[0]), *command[1:]], cwd=folder, env=environment,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip
            stack.callback(end, process)
            return Run(process, folder, environment["JPY_SESSION_NAME"], vm_paths)

        yield started


def end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.kill()
        process.communicate()


def write(path: Path, sources: Sequence[str]) -> None:
    node = new_notebook(metadata={"kernelspec": {"name": "agentvm", "display_name": "", "language": "python"}})
    node.cells = [new_code_cell(source) for source in sources]
    node.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(node, path)


def text(outputs: list[nbformat.NotebookNode]) -> str:
    return "".join(one.get("text", "") for one in outputs)


def errors(cells: list[list[nbformat.NotebookNode]]) -> list[str]:
    return [one.ename for outputs in cells for one in outputs if one.output_type == "error"]


def test_a_notebook_runs_in_a_vm_that_is_given_back(begin: Begin) -> None:
    given = ["-p", "threshold", "7", "-p", "name", 'a "quoted" one', "-r", "version", "1.10"]
    prints = "import getpass\nprint(getpass.getuser(), threshold, name, version)"
    own = f"{PARAMETERS}\nname, version = 'own', 2"
    runs = {runner: begin([*runner(200), *(given if runner is papermill else [])], own, prints) for runner in RUNNERS}
    for runner, run in runs.items():
        code, said = run.end()
        assert code == 0, said
        # papermill alone takes parameters.
        expected = 'agent 7 a "quoted" one 1.10\n' if runner is papermill else "agent 1 own 2\n"
        assert text(run.outputs()[-1]) == expected
        run.assert_gone()


def test_an_error_stops_the_run_and_is_told(begin: Begin) -> None:
    runs = {runner: begin(runner(200), PARAMETERS, "print(threshold)", "1 / 0", "print('never')") for runner in RUNNERS}
    for runner, run in runs.items():
        code, said = run.end()
        assert code == 1, said
        assert "ZeroDivisionError" in said
        if runner in KEEPING:
            cells = run.outputs()
            assert text(cells[1]) == "1\n"
            assert errors(cells) == ["ZeroDivisionError"]
            assert cells[3] == []
        else:
            assert not (run.folder / "out.ipynb").exists()
        run.assert_gone()


def test_a_cell_that_takes_too_long_ends_the_run(begin: Begin) -> None:
    for run in [begin(runner(10), SLOW, "print('never')") for runner in RUNNERS]:
        code, said = run.end()
        assert code == 1, said
        assert "timed out" in said.lower()
        run.assert_gone()


def test_a_timeout_can_interrupt_the_cell_and_go_on_in_the_same_vm(begin: Begin) -> None:
    going_on = ["--allow-errors", "--ExecutePreprocessor.interrupt_on_timeout=True"]
    run = begin([*nbconvert(20), *going_on], f"state = 7\n{SLOW}", "print(state)")
    code, said = run.end()
    assert code == 0, said
    cells = run.outputs()
    assert (text(cells[0]), text(cells[1])) == ("begun\n", "7\n")
    assert errors(cells) == ["KeyboardInterrupt"]
    run.assert_gone()


def test_a_vm_that_dies_ends_the_run_with_one_error_that_says_so(begin: Begin) -> None:
    runs = {runner: begin(runner(200), "print('before')", SLOW, "print('never')") for runner in RUNNERS}
    for run in runs.values():
        os.kill(run.running(2), signal.SIGKILL)
    for runner, run in runs.items():
        code, said = run.end()
        assert code == 1, said
        assert "VMEndedError" in said
        assert "%vm restart" in said
        if runner in KEEPING:
            cells = run.outputs()
            assert [text(one) for one in cells] == ["before\n", "begun\n", ""]
            assert errors(cells) == ["VMEndedError"]
        run.assert_gone()


def test_a_kernel_process_that_dies_ends_the_run_and_takes_its_vm_along(begin: Begin) -> None:
    runs = {runner: begin(runner(200), "print('before')", SLOW, "print('never')") for runner in RUNNERS}
    for run in runs.values():
        run.running(2)
        os.kill(run.kernel(), signal.SIGKILL)
    for runner, run in runs.items():
        code, said = run.end()
        assert code == (138 if runner is papermill else 1), said
        assert "kernel died" in said.lower()
        if runner is papermill:
            assert text(run.outputs()[0]) == "before\n"
        run.assert_gone()
