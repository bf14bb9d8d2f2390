"""A cell can break its world in every way: a clear message names it, a restart works, the host keeps nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

import pytest
from audited import audited
from kernel_client import TIMEOUT, Cell, Notebook, notebook, wait_until
from vms import qemus, supervisor_pid

from agentvm_kernel.config import Paths

pytestmark = pytest.mark.timeout(300)

# What a `kill -9` leaves behind is gone after so many seconds, from when there is a supervisor again.
ORPHAN_SECONDS = 10

KILL_RELAY = """
import subprocess
pids = subprocess.run("pgrep -f agentvm_guest/agent.py", shell=True, capture_output=True, text=True).stdout.split()
subprocess.run(["sudo", "kill", "-9", *pids])
import time
time.sleep(60)
"""
PANIC = "import subprocess, time\nsubprocess.run('echo c | sudo tee /proc/sysrq-trigger', shell=True)\ntime.sleep(60)"
POWER_OFF = "import subprocess, time\nsubprocess.run(['sudo', 'poweroff', '-f'])\ntime.sleep(60)"
EAT_MEMORY = "hog = []\nwhile True:\n    hog.append(bytearray(16 << 20))"
FILL_DISK = """
with open("/home/agent/fill", "wb") as file:
    while True:
        file.write(b"x" * (16 << 20))
"""


@pytest.fixture(scope="module")
def nb(vm_environment: Mapping[str, str]) -> Iterator[Notebook]:
    with notebook(vm_environment) as running:
        yield running


def vm_of(cell: Cell) -> str:
    return str(cell.metadata["agentvm"]["vm"])


def error_text(cell: Cell) -> str:
    assert cell.status == "error"
    assert len(cell.errors) == 1
    return f"{cell.reply['ename']}: {cell.reply['evalue']}"


def assert_gone(paths: Paths, vm: str, seconds: float = TIMEOUT) -> None:
    """The host keeps no process and no file of a VM."""
    wait_until(lambda: not qemus(f"{paths.tag}-{vm}"), f"the QEMU of {vm} is gone", seconds)
    wait_until(lambda: not (paths.runtime / "vm" / vm).exists(), f"the folder of {vm} is gone", seconds)


@pytest.mark.parametrize(
    ("code", "named"),
    [
        pytest.param("import os\nos._exit(1)", ["1"], id="exit"),
        pytest.param(KILL_RELAY, ["agent", "9"], id="relay-killed"),
        pytest.param(POWER_OFF, ["powered itself off"], id="power-off"),
        pytest.param(PANIC, ["panic"], id="kernel-panic"),
        pytest.param(EAT_MEMORY, ["memory"], id="memory"),
    ],
)
def test_the_end_is_named_and_a_restart_gives_a_working_vm(
    nb: Notebook, vm_paths: Paths, code: str, named: list[str]
) -> None:
    before = nb.run("marker = 1")
    assert before.status == "ok", before.reply
    vm = vm_of(before)
    broken = nb.run(code)
    text = error_text(broken)
    for word in named:
        assert word in text, text
    later = nb.run("1")
    assert "restart" in error_text(later).lower()
    assert nb.run("%vm restart").status == "ok"
    fresh = nb.run("'marker' in globals(), 6 * 7")
    assert fresh.result == "(False, 42)"
    assert vm_of(fresh) != vm
    assert_gone(vm_paths, vm)


def test_a_full_disk_is_an_error_in_the_cell_and_the_notebook_goes_on(nb: Notebook) -> None:
    full = nb.run(FILL_DISK)
    assert "No space left" in error_text(full)
    assert nb.run("6 * 7").result == "42"
    assert nb.run("import os; os.remove('/home/agent/fill'); open('x', 'w').write('y')").status == "ok"


def test_a_kernel_restart_by_jupyter_gives_a_fresh_vm_and_ends_the_old(nb: Notebook, vm_paths: Paths) -> None:
    vm = vm_of(nb.run("marker = 2"))
    nb.manager.restart_kernel()
    nb.client.wait_for_ready(timeout=60)
    fresh = nb.run("'marker' in globals()")
    assert fresh.result == "False"
    assert vm_of(fresh) != vm
    assert_gone(vm_paths, vm)


def test_a_killed_kernel_process_leaves_no_vm(vm_environment: Mapping[str, str], vm_paths: Paths) -> None:
    with notebook(vm_environment) as running:
        vm = vm_of(running.run("1"))
        os.kill(running.pid, 9)
        assert_gone(vm_paths, vm, ORPHAN_SECONDS)


def test_a_killed_supervisor_is_replaced_and_what_it_left_is_ended(
    vm_environment: Mapping[str, str], vm_paths: Paths
) -> None:
    with notebook(vm_environment) as running:
        vm = vm_of(running.run("1"))
        old = set(qemus(vm_paths.tag))
        assert old
        os.kill(supervisor_pid(vm_paths), 9)
        wait_until(lambda: running.run("1").status == "error", "the notebook says so")
        restarted = running.run("%vm restart")
        assert restarted.status == "ok", restarted.reply
        wait_until(lambda: old.isdisjoint(qemus(vm_paths.tag)), "no orphan is left", ORPHAN_SECONDS)
        assert_gone(vm_paths, vm, ORPHAN_SECONDS)
        assert running.run("6 * 7").result == "42"
        reasons = [one.get("reason", "") for one in audited(vm_paths.state, "vm_destroyed")]
        assert any("left behind" in reason for reason in reasons)
