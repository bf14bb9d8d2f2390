"""`agentvm run` in real VMs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

pytest.register_assert_rewrite("run_behaviour")

from kernel_client import wait_until  # noqa: E402
from run_behaviour import *  # noqa: E402, F403
from run_behaviour import SECONDS, Runs  # noqa: E402
from vms import qemus  # noqa: E402

from agentvm_kernel.config import Paths  # noqa: E402

pytestmark = pytest.mark.timeout(300)

DIGEST = """
import hashlib, pathlib
for path in sorted(pathlib.Path('tree').rglob('*')):
    if path.is_file():
        print(hashlib.sha256(path.read_bytes()).hexdigest(), oct(path.stat().st_mode & 0o777), path)
for path in pathlib.Path('tree').rglob('*'):
    if path.is_file():
        path.write_bytes(path.read_bytes()[::-1])
"""


@pytest.fixture
def runs(tmp_path: Path, vm_environment: Mapping[str, str]) -> Runs:
    return Runs(tmp_path, vm_environment)


def test_a_tree_goes_in_and_comes_out_byte_by_byte(runs: Runs) -> None:
    script = runs.write("x.py", DIGEST)
    tree = runs.folder / "tree"
    contents = {f"a{n}/b/{'c' * n}": os.urandom(n * 9999) for n in range(1, 40)}
    for name, content in contents.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(content)
        (tree / name).chmod(0o640)
    code, out, err = runs.run(script, "--in", "tree", "--out", "out")
    assert (code, err) == (0, b"")
    expected = {f"{hashlib.sha256(data).hexdigest()} 0o640 tree/{name}" for name, data in contents.items()}
    assert set(out.decode().splitlines()) == expected
    for name, content in contents.items():
        assert (runs.folder / "out" / "tree" / name).read_bytes() == content[::-1]


def test_programs_are_the_ordinary_users_in_a_fresh_vm_each(runs: Runs) -> None:
    script = runs.write("x.sh", "id -un; pwd; ls -A /home/agent/work; touch trace; sudo id -un; echo x > /dev/stdout")
    for _ in range(2):
        assert runs.run(script) == (0, b"agent\n/home/agent/work\nx.sh\nroot\nx\n", b"")


def test_a_vm_that_ends_is_told_and_none_is_left(runs: Runs, vm_paths: Paths) -> None:
    assert "powered itself off" in runs.fails(runs.write("x.sh", "sudo poweroff -f; sleep 60"))
    with runs.start(runs.write("y.sh", "echo go; sleep 600")) as process:
        assert process.stdout
        assert process.stdout.readline() == b"go\n"
        vms = set(qemus(vm_paths.tag))
        process.kill()
        assert process.wait(SECONDS) == -9
    wait_until(lambda: not vms <= set(qemus(vm_paths.tag)), "its VM is gone", SECONDS)


def test_a_program_that_eats_all_memory_is_killed_and_told_as_killed(runs: Runs) -> None:
    script = runs.write("x.py", "hog = []\nwhile True:\n    hog.append(bytearray(16 << 20))")
    assert runs.run(script)[0] == 137


def test_a_program_that_fills_the_disk_gets_an_error(runs: Runs) -> None:
    script = runs.write("x.sh", "head -c 8G /dev/zero > full; echo $?; rm full; echo on")
    code, out, err = runs.run(script, "--profile", "test")
    assert (code, out) == (0, b"1\non\n")
    assert b"No space left" in err
