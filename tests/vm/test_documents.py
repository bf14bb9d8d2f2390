"""The commands and magics of the documents, run as they stand there: in a folder of their own, one notebook a page."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
from audited import audited
from copies import connection_file
from documents import ROOT, Block, all_blocks
from kernel_client import Notebook, notebook, wait_until
from nbformat.v4 import new_code_cell, new_notebook, new_output
from travel import named, ok
from vms import environment_of, own_supervisor

from agentvm_kernel.config import Paths

pytestmark = pytest.mark.timeout(400)
BIN = Path(sys.executable).parent
RUN = ("run: host", "run: vm")
PAGES = sorted({one.page for kind in RUN for one in all_blocks(kind)})
NAME = "analysis.ipynb"
FILES = {
    "analyse.py": "import sys\nprint(sys.argv)",
    "prices.csv": "day,price\n1,2\n",
    "tests/test_nothing.py": "import unittest\nclass Test(unittest.TestCase):\n    def test(self): pass\n",
    "data/one.txt": "1",
    "list.txt": "b\na\n",
    "count.sh": "cat",
    "elsewhere/empty": "",
}
"""What lies in the folder."""


@pytest.fixture(scope="module")
def paths() -> Iterator[Paths]:
    """A supervisor of the documents' own: some of its commands drain the pool, or end it."""
    with own_supervisor() as paths:
        yield paths


@dataclass(frozen=True)
class Desk:
    """Where a reader sits.

    Attributes:
        folder: The folder that they are in.
        paths: The supervisor's.
        nb: Their notebook, where the page needs one.
    """

    folder: Path
    paths: Paths
    nb: Notebook | None

    def run(self, block: Block) -> None:
        """Do what a block says."""
        if block.is_notebook:
            assert self.nb is not None, f"{block} has magics, and needs a notebook"
            for cell in block.cells():
                ok(self.nb, cell)
        elif block.language == "python":
            self._shell(block, [sys.executable, "-c", block.text])
        else:
            for command in block.commands(self._filled() if self.nb else {}):
                if "--pdf" not in command or shutil.which("chromium"):
                    self._shell(block, ["bash", "-e", "-o", "pipefail", "-c", command])

    def _shell(self, block: Block, command: list[str]) -> None:
        environment = os.environ | environment_of(self.paths)
        environment |= {"PATH": f"{BIN}:{os.environ['PATH']}", "S": str(self.paths.socket)}
        if self.nb is not None:
            environment["LEASE"] = self._own("lease_acquired")["lease"]
        done = subprocess.run(
            command, cwd=self.folder, env=environment, input="a-secret-value\n",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=200, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{block}: {command[-1]}\n{done.stdout}"

    def _filled(self) -> dict[str, str]:
        acquired, kept = self._own("lease_acquired"), self._own("snapshot_created")
        names = {"ID": acquired["vm"], "REF": kept["snapshot"], "DIGEST": kept["previous"], "LABEL": "a-label"}
        return names | {"NOTEBOOK": acquired["notebook"], "NAME": "another", "FILE": "file", "FOLDER": "elsewhere"}

    def _own(self, event: str) -> dict[str, str]:
        """What is on record of the notebook's session."""

        def found() -> list[dict[str, str]]:
            events = audited(self.paths.state, event)
            return [one for one in events if one["notebook"] == str(self.folder / NAME)]

        wait_until(lambda: bool(found()), f"{event} in the audit log")
        return found()[-1]


@contextmanager
def desk(folder: Path, paths: Paths, *, needs_vm: bool) -> Iterator[Desk]:
    cell = new_code_cell("print(6 * 7)")
    if not needs_vm:
        save(folder, cell)
        yield Desk(folder, paths, None)
        return
    environment = named(environment_of(paths), str(folder / NAME))
    with chdir(folder), notebook(environment, connection_file=connection_file()) as nb:
        cell.outputs = [new_output("stream", name="stdout", text=ok(nb, cell.source).text())]
        ok(nb, "%snapshot kept")
        save(folder, cell)
        yield Desk(folder, paths, nb)


def save(folder: Path, cell: nbformat.NotebookNode) -> None:
    """Write the files that the documents speak of."""
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    kernel = {"name": "agentvm", "display_name": "Python (AgentVM)", "language": "python"}
    for name in (NAME, "report.ipynb"):
        nbformat.write(new_notebook(cells=[cell], metadata={"kernelspec": kernel}), folder / name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_says_can_be_done(page: Path, paths: Paths, tmp_path: Path) -> None:
    found = [one for one in all_blocks() if one.page == page and one.kind in RUN]
    with desk(tmp_path, paths, needs_vm=any(one.kind == "run: vm" for one in found)) as sitting:
        for block in found:
            sitting.run(block)


def test_data_lie_where_the_architecture_says(paths: Paths, tmp_path: Path) -> None:
    told = re.findall(
        r"^\| `(CONFIG|CACHE|STATE)(/\S+)?` \|", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE
    )
    assert len(told) > 10
    tops = {"CONFIG": paths.config, "CACHE": paths.cache, "STATE": paths.state}
    with desk(tmp_path, paths, needs_vm=True) as sitting:
        assert sitting.nb is not None
        ok(sitting.nb, "import socket\ntry: socket.create_connection(('nobody.example', 80))\nexcept OSError: pass")
        for top, below in told:
            place = tops[top]
            wait_until(
                lambda place=place, below=below: any(place.glob(below[1:])) if below else place.exists(),
                f"{top}{below} is there",
            )


def test_a_command_that_fails_is_noticed(paths: Paths, tmp_path: Path) -> None:
    wrong = Block(
        Path("page.md"), 7, "text", "agentvm config check\nagentvm config chekc   misspelled\n", "run", "host"
    )
    with pytest.raises(AssertionError, match=r"page\.md:7: agentvm config chekc"):
        Desk(tmp_path, paths, None).run(wrong)
