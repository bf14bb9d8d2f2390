"""What the host holds a VM to: disk rate, CPU share, memory of QEMU; and the kernel's own cgroup v2, in a guest."""

from __future__ import annotations

import ast
import asyncio
import inspect
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest
from kernel_client import Notebook, notebook, wait_until
from travel import ok, saved, told, value

from agentvm_kernel.config import Paths
from agentvm_kernel.supervisor.client import SupervisorClient
from agentvm_kernel.supervisor.status import Status
from agentvm_kernel.vm import cgroup
from agentvm_kernel.vm.layers import examine
from agentvm_kernel.vm.nice import NICE

pytestmark = pytest.mark.timeout(300)

MEGABYTES = 24
SLOW = 4
WRITE = f"""
import subprocess, time
def write():
    began = time.monotonic()
    subprocess.run("dd if=/dev/zero of=/home/agent/file bs=1M count={MEGABYTES} oflag=direct conv=fsync status=none",
                   shell=True, check=True)
    return time.monotonic() - began
def read():
    began = time.monotonic()
    subprocess.run("dd if=/home/agent/file of=/dev/null bs=1M iflag=direct status=none", shell=True, check=True)
    return time.monotonic() - began
write()
"""


@pytest.fixture(scope="module")
def nb(vm_environment: Mapping[str, str]) -> Iterator[Notebook]:
    with notebook(vm_environment) as running:
        yield running


def status(paths: Paths) -> Status:
    async def ask() -> Status:
        async with SupervisorClient(paths, start=False) as client:
            return await client.status()

    return asyncio.run(ask())


def qemu_of(nb: Notebook, paths: Paths) -> psutil.Process:
    """The QEMU of a notebook's VM."""
    vm = ok(nb, "1").metadata["agentvm"]["vm"]
    (pid,) = [lease.pid for lease in status(paths).leases if lease.vm == vm]
    return psutil.Process(pid)


@pytest.fixture
def needs_cgroup(nb: Notebook, vm_paths: Paths) -> None:
    ok(nb, "1")
    who = status(vm_paths).enforced_by["cpu"]
    if "cgroup" not in who.split(":")[0]:
        pytest.skip(f"CPU share on this host: {who}")


def test_the_disk_rate_is_held_across_snapshots_and_rollbacks_and_can_be_lifted(nb: Notebook) -> None:
    ok(nb, "%limits disk_rate=none disk_iops=none")
    ok(nb, WRITE)
    free = max(value(nb, "write()") for _ in range(3))

    def is_slow() -> bool:
        # Twice the rate may pass for a second; the rest takes its time.
        return bool(value(nb, "write()") > max(2 * free, (MEGABYTES - 3 * SLOW) / SLOW / 2))

    ok(nb, f"%limits disk_rate={SLOW}MB")
    assert is_slow()
    snapshot = saved(nb, "throttled")
    assert is_slow()
    ok(nb, f"%rollback {snapshot}")
    assert is_slow()
    assert value(nb, "read()") > free
    ok(nb, "%limits disk_rate=none")
    assert not is_slow()


def test_operations_are_counted_too(nb: Notebook) -> None:
    small = "dd if=/dev/zero of=/home/agent/small bs=4k count=400 oflag=direct status=none"
    ok(nb, "%limits disk_rate=none disk_iops=none")
    ok(
        nb,
        "import subprocess, time\ndef small():\n    began = time.monotonic()\n"
        f"    subprocess.run({small!r}, shell=True, check=True)\n    return time.monotonic() - began\nsmall()",
    )
    free = max(value(nb, "small()") for _ in range(2))
    ok(nb, "%limits disk_iops=50")
    assert value(nb, "small()") > 2 * free
    ok(nb, "%limits reset")


def share(process: psutil.Process, seconds: float) -> float:
    """CPU seconds that a process uses a second."""
    before, began = process.cpu_times(), time.monotonic()
    time.sleep(seconds)
    after, ended = process.cpu_times(), time.monotonic()
    return float(after.user + after.system - before.user - before.system) / (ended - began)


@pytest.mark.usefixtures("needs_cgroup")
def test_the_cpu_share_is_held_and_can_be_lifted(nb: Notebook, vm_paths: Paths) -> None:
    process = qemu_of(nb, vm_paths)
    spin = (
        "import threading\nstop = False\ndef spin():\n    while not stop: pass\nthreading.Thread(target=spin).start()"
    )
    ok(nb, spin)
    free = share(process, 2)
    ok(nb, "%limits cpu=0.15")
    assert share(process, 3) < free / 2
    ok(nb, "%limits cpu=none")
    assert share(process, 2) > free / 2
    ok(nb, "stop = True")
    ok(nb, "%limits reset")


@pytest.mark.usefixtures("needs_cgroup")
def test_qemu_has_a_limit_on_memory_in_a_group_that_goes_with_it(nb: Notebook, vm_paths: Paths) -> None:
    process = qemu_of(nb, vm_paths)
    (layer,) = [one for one in examine(process.pid, "tcg") if one.name == "cgroup limits"]
    assert (layer.active, "memory" in layer.detail) == ("yes", True)
    vm = str(ok(nb, "1").metadata["agentvm"]["vm"])
    groups = [path for path in Path("/sys/fs/cgroup").rglob(f"*{vm}*") if path.is_dir()]
    assert groups
    ok(nb, "%vm stop")
    wait_until(lambda: not any(path.exists() for path in groups), "its groups are gone")
    ok(nb, "%vm restart")


def test_qemu_stands_behind_the_hosts_work(nb: Notebook, vm_paths: Paths) -> None:
    process = qemu_of(nb, vm_paths)
    assert {os.getpriority(os.PRIO_PROCESS, thread.id) for thread in process.threads()} == {NICE}


def test_security_says_what_the_kernel_says(nb: Notebook, vm_paths: Paths) -> None:
    process = qemu_of(nb, vm_paths)
    rows = {line.split("  ")[0]: line for line in told(nb, "%vm security").splitlines()}
    assert "1 filters" in rows["seccomp sandbox"]
    assert process.username() in rows["a user of its own"]


IN_GUEST = """
import os, subprocess, sys, time
sys.path.insert(0, "/tmp")
import cgroup
base = cgroup.Path("/sys/fs/cgroup/delegated")
base.mkdir()
(base / "cgroup.procs").write_text(str(os.getpid()))
subtree = cgroup.find_subtree()
assert subtree.base == base, subtree
subtree.prepare()
assert cgroup.find_subtree() == subtree
spinner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
hog = subprocess.Popen([sys.executable, "-c", "input(); x = b'x' * (96 << 20); input()"], stdin=subprocess.PIPE)
group = subtree.place("vm-1", spinner.pid)
def share():
    def used():
        return int((group / "cpu.stat").read_text().split()[1]) / 1e6
    before, began = used(), time.monotonic()
    time.sleep(2)
    return (used() - before) / (time.monotonic() - began)
cgroup.limit(group, cores=None, memory=1 << 30)
free = share()
cgroup.limit(group, cores=0.1, memory=1 << 30)
held = share()
busy = subtree.remove("vm-1")
spinner.kill(); spinner.wait()
removed = subtree.remove("vm-1")
cgroup.limit(subtree.place("vm-2", hog.pid), cores=None, memory=32 << 20)
hog.stdin.write(b"\\n"); hog.stdin.flush()
killed = hog.wait()
swept = subtree.sweep("vm-")
print(dict(free=free, held=held, busy=busy, removed=removed, killed=killed, swept=swept))
"""


def test_our_own_groups_hold_what_they_should_on_a_kernel_with_cgroup_v2(nb: Notebook) -> None:
    source = inspect.getsource(cgroup)
    ok(nb, f"open('/tmp/cgroup.py', 'w').write({source!r})\nopen('/tmp/try.py', 'w').write({IN_GUEST!r})")
    run = "subprocess.run('sudo python3 /tmp/try.py 2>&1', shell=True, capture_output=True, text=True)"
    text = ok(nb, f"import subprocess\nprint({run}.stdout)").text()
    seen = ast.literal_eval(text.strip()) if text.startswith("{") else pytest.fail(text)
    assert seen["held"] < seen["free"] / 2
    assert (seen["busy"], seen["removed"]) == (False, True)
    assert seen["killed"] == -9
    assert seen["swept"] == ["vm-2"]
