"""QEMU's agent in real VMs: it describes the guest, as a claim; a hostile one can say little, and keeps nobody."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kernel_client import Notebook, notebook
from travel import ok, refused, told, value

from agentvm_kernel.config import Paths

pytestmark = pytest.mark.timeout(600)

# Root in the VM puts one of its own in the place of QEMU's agent.
REPLACE = """
import subprocess
script = '''#!/usr/bin/env python3
import json, socket
connection, _ = socket.socket(fileno=3).accept()
answers = {answers}
for line in connection.makefile("rb"):
    command = json.loads(line)["execute"]
    connection.sendall(answers.get(command, b"") or json.dumps({{"return": []}}).encode() + b"\\\\n")
'''
subprocess.run(["sudo", "tee", "/usr/local/sbin/qemu-ga"], input=script.encode(), check=True, capture_output=True)
subprocess.run(["sudo", "chmod", "755", "/usr/local/sbin/qemu-ga"], check=True)
"""


@pytest.fixture(scope="module")
def nb(vm_environment: dict[str, str]) -> Iterator[Notebook]:
    with notebook({**vm_environment, "AGENTVM_IMAGE": "standard"}) as ours:
        yield ours


def test_it_describes_the_guest_as_a_claim(nb: Notebook) -> None:
    said = told(nb, "%vm guest").splitlines()
    assert all("(claimed by the guest)" in line for line in said)
    rows = dict(line.split(" (claimed by the guest)", 1) for line in said)
    release = value(nb, "__import__('os').uname().release")
    assert rows["system"].strip().startswith("Debian GNU/Linux 13")
    assert rows["kernel"].split() == [release, "x86_64"]
    assert rows["file system /"].strip().startswith("ext4, ")
    assert "QEMU's agent" in rows
    assert "qemu-ga" not in ok(nb, "!ps -e -o comm").text(), "it runs only while it is asked"


def test_a_copy_of_the_disk_has_what_was_just_written(vm_paths: Paths, nb: Notebook, tmp_path: Path) -> None:
    ok(nb, "open('marker', 'w').write('just written' * 1000)")
    said = command("vm", "disk", vm_of(nb), str(tmp_path / "disk.qcow2"), paths=vm_paths)
    assert (said[0], said[2]) == (0, ""), "its file systems were frozen"
    ok(nb, "open('marker', 'w').write('and goes on')")
    raw = tmp_path / "disk"
    subprocess.run(["qemu-img", "convert", "-O", "raw", tmp_path / "disk.qcow2", raw], check=True)
    found = subprocess.run(["debugfs", "-R", "cat /home/agent/marker", raw], capture_output=True, check=True)
    assert found.stdout == b"just written" * 1000
    checked = subprocess.run(["e2fsck", "-fn", raw], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_a_hostile_one_can_say_little(nb: Notebook) -> None:
    lies = '{"guest-get-osinfo": json.dumps({"return": {"pretty-name": "\\x1b[2J<b>x</b>"}}).encode() + b"\\\\n"}'
    ok(nb, REPLACE.format(answers=lies))
    said = ok(nb, "%vm guest")
    data = said.of("display_data")[-1]["data"]
    assert data["text/plain"].split(") ")[1].strip() == "\ufffd[2J<b>x</b>"
    assert "<b>" not in data["text/html"]
    ok(nb, REPLACE.format(answers='{"guest-get-osinfo": b"a" * (1 << 22)}'))
    assert "nothing sensible" in refused(nb, "%vm guest")
    assert value(nb, "1 + 1") == 2


def test_an_image_without_it_is_told(vm_environment: dict[str, str]) -> None:
    with notebook(vm_environment) as minimal:
        assert "qemu-ga is not installed" in refused(minimal, "%vm guest")


def vm_of(nb: Notebook) -> str:
    return str(ok(nb, "1").metadata["agentvm"]["vm"])


def command(*words: str, paths: Paths) -> tuple[int, str, str]:
    """What `agentvm` says: its exit code, and what it prints."""
    program = [sys.executable, "-c", "from agentvm_kernel.cli import main; main()", *words]
    done = subprocess.run(
        program, env={**os.environ, **paths.environment}, capture_output=True, text=True, check=False, timeout=300
    )
    return done.returncode, done.stdout, done.stderr
