"""A notebook that writes to its disk goes on for long: its disks stay short chains, and each holds its own files."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from kernel_client import Notebook, notebook
from travel import back, named, ok, saved, value

from agentvm_kernel.config import Paths
from agentvm_kernel.vm.chain import LONG, LONGEST

pytestmark = pytest.mark.timeout(500)

SNAPSHOTS = 40
PREPARE = """
import hashlib, os, pathlib, random, subprocess
folder = pathlib.Path('/home/agent/data')
folder.mkdir()
def hashes():
    # What was written since lies in the page cache, which is memory: it is the disk that is to be looked at.
    subprocess.run('sync; echo 3 | sudo tee /proc/sys/vm/drop_caches', shell=True, check=True, capture_output=True)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}
"""

Files = dict[str, str]


def content(number: int) -> bytes:
    """What a step writes; of another size each time, and at times more than all others together."""
    return random.Random(number).randbytes(20_000 + 7919 * number + (6_000_000 if number % 17 == 8 else 0))


def step(nb: Notebook, number: int, files: Files) -> Files:
    """Write a file, and one time in three each another version of an older one, or none of an older one any more."""
    chosen = random.Random(number)
    write = f"folder.joinpath(name).write_bytes(random.Random({number}).randbytes({len(content(number))}))"
    names, gone = [f"file-{number}"], []
    if files and number % 3 == 1:
        names.append(chosen.choice(sorted(files)))
    if files and number % 3 == 2:
        gone.append(chosen.choice(sorted(files)))
    ok(nb, f"for name in {names}:\n    {write}\nfor name in {gone}:\n    folder.joinpath(name).unlink()\nos.sync()")
    digest = hashlib.sha256(content(number)).hexdigest()
    return {name: old for name, old in files.items() if name not in gone} | dict.fromkeys(names, digest)


class History:
    """What a notebook has taken snapshots of: the files by the snapshots' labels."""

    def __init__(self, nb: Notebook, environment: Mapping[str, str]) -> None:
        self.nb = nb
        self.files: dict[str, Files] = {}
        self._environment = environment

    def grow(self, first: int, count: int, files: Files) -> None:
        for number in range(first, first + count):
            files = step(self.nb, number, files)
            saved(self.nb, f"step-{number}")
            self.files[f"step-{number}"] = files

    def check(self, label: str) -> None:
        back(self.nb, label)
        assert value(self.nb, "hashes()") == self.files[label]

    def command(self, *arguments: str) -> str:
        code = "from agentvm_kernel.cli import main; main()"
        command = [sys.executable, "-c", code, "snapshot", *arguments]
        return subprocess.run(
            command, env={**os.environ, **self._environment}, check=True, capture_output=True, text=True
        ).stdout

    def layers(self, label: str) -> int:
        return int(json.loads(self.command("show", label, "--json"))["disk_layers"])


@pytest.fixture(scope="module")
def history(vm_environment: Mapping[str, str]) -> Iterator[History]:
    environment = named(vm_environment, "/tests/chain.ipynb")
    with notebook(environment) as nb:
        ok(nb, PREPARE)
        history = History(nb, environment)
        history.grow(0, SNAPSHOTS, {})
        yield history


def flat(vm_paths: Paths) -> list[Path]:
    """Return the snapshots whose disk was made to lie over fewer layers than the parent's has."""
    manifests = (vm_paths.state / "snapshots").glob("*/*/manifest.json")
    return [path.parent for path in manifests if json.loads(path.read_text())["over"] is not None]


def test_chains_are_short_and_every_snapshot_has_its_own_files(history: History, vm_paths: Paths) -> None:
    assert max(history.layers(label) for label in history.files) == LONG + 1
    assert len(flat(vm_paths)) > 1
    for label in random.Random(7).sample(sorted(history.files), k=12):
        history.check(label)


def test_layers_tell_nothing_of_the_host(history: History, vm_paths: Paths) -> None:
    layers = [layer for folder in flat(vm_paths) for layer in folder.glob("*.qcow2")]
    assert layers
    assert not [layer for layer in layers if b"/" in layer.read_bytes()[:4096]]


def test_what_is_left_after_some_were_removed_is_as_it_was(history: History) -> None:
    history.check("step-0")  # the notebook's present one cannot be removed
    gone = [f"step-{number}" for number in (1, 5, 6, 12, 13, 14, 24, 25, 26, 38)]
    history.command("rm", *gone)
    assert all(line.endswith(" ok") for line in history.command("verify").splitlines())
    for label in ("step-39", "step-2", "step-7", "step-15", "step-27", "step-23", "step-37"):
        history.check(label)
    # Its branch goes on from a chain that others merged.
    history.grow(SNAPSHOTS, 2 * LONG, history.files["step-37"])
    assert max(history.layers(label) for label in history.files if label not in gone) <= LONGEST
    for label in ("step-39", f"step-{SNAPSHOTS + 2 * LONG - 1}", f"step-{SNAPSHOTS + LONG}"):
        history.check(label)


def test_exported_chains_come_back_as_they_were(
    history: History, vm_environment: Mapping[str, str], tmp_path: Path
) -> None:
    history.command("export", "step-39", str(tmp_path / "a.tar"))
    history.command("import", str(tmp_path / "a.tar"), "--notebook", "/tests/imported.ipynb")
    with notebook(named(vm_environment, "/tests/imported.ipynb")) as nb:
        for label in ("step-39", "step-20"):
            back(nb, label)
            assert value(nb, "hashes()") == history.files[label]
