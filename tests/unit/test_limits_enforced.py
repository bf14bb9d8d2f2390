"""What the host is told to hold a VM to."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hypervisor import FakeMachine

from agentvm_kernel.profiles import Limits
from agentvm_kernel.vm import limits as module
from agentvm_kernel.vm.cgroup import NoCgroupError, Subtree
from agentvm_kernel.vm.limits import enforce, enforced_by, memory_bound
from agentvm_kernel.vm.nice import NICE, NICE_READY, set_nice
from agentvm_kernel.vm.spec import DomainSpec, Hardware, Transport

HARDWARE = Hardware(1, 512, 4, "tcg", Transport.SERIAL)


@pytest.fixture
async def machine(tmp_path: Path) -> FakeMachine:
    return FakeMachine(DomainSpec("vm-1", "uuid", tmp_path, HARDWARE, tmp_path / "memory", ()), 1)


async def test_a_vm_is_held_to_all_its_limits(machine: FakeMachine) -> None:
    await enforce(machine, Limits(cpu=1.5, disk_mb_per_second=50, disk_iops=None))
    assert machine.calls == ["throttle 50 None", f"limit 1.5 {memory_bound(HARDWARE) >> 20}"]


async def test_what_holds_already_costs_nothing(machine: FakeMachine) -> None:
    await enforce(machine, Limits())
    machine.calls.clear()
    await enforce(machine, Limits(cell_deadline=5, processes=99))
    assert machine.calls == []


async def test_only_what_changed_is_set_again(machine: FakeMachine) -> None:
    await enforce(machine, Limits())
    machine.calls.clear()
    await enforce(machine, Limits(disk_iops=100))
    await enforce(machine, Limits(disk_iops=100, cpu=0.5))
    assert machine.calls == ["throttle 200 100", f"limit 0.5 {memory_bound(HARDWARE) >> 20}"]


def test_a_qemu_may_use_more_than_its_guests_memory() -> None:
    assert memory_bound(HARDWARE) > (512 + 1024) << 20
    kvm = Hardware(1, 512, 4, "kvm", Transport.SERIAL)
    assert 512 << 20 < memory_bound(kvm) < memory_bound(HARDWARE)


def no_cgroups(_uri: str) -> bool:
    return False


def test_every_limit_names_who_enforces_it() -> None:
    said = enforced_by()
    assert set(Limits.model_fields) <= set(said)
    assert all(said.values())


def test_a_host_without_cgroups_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def find() -> Subtree:
        raise NoCgroupError("no cgroup v2 is mounted")

    monkeypatch.setattr(module, "has_cgroups", no_cgroups)
    monkeypatch.setattr(module, "find_subtree", find)
    said = enforced_by()
    assert said["cpu"] == "number of vCPUs only: no cgroup v2 is mounted"
    assert said["qemu_memory"] == "nobody: no cgroup v2 is mounted"


def test_a_host_with_a_delegated_subtree_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory\n")
    (tmp_path / "cgroup.subtree_control").write_text("")
    monkeypatch.setattr(module, "has_cgroups", no_cgroups)
    monkeypatch.setattr(module, "find_subtree", lambda: Subtree(tmp_path))
    assert enforced_by()["cpu"] == "cgroup v2 of ours, CPU quota"


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A process that leads a session, as QEMU does, and has a second thread."""
    code = "import threading, sys; threading.Thread(target=sys.stdin.read).start(); print(flush=True)"
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        yield child


def nice_of_threads(pid: int) -> set[int]:
    return {os.getpriority(os.PRIO_PROCESS, int(task.name)) for task in Path(f"/proc/{pid}/task").iterdir()}


def test_all_threads_of_a_qemu_stand_behind_the_hosts_work(process: subprocess.Popen[bytes]) -> None:
    set_nice(process.pid, NICE)
    assert nice_of_threads(process.pid) == {NICE}


def test_a_qemu_is_only_made_nicer_by_who_can_take_it_back(
    process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_nice(process.pid, NICE_READY)
    assert nice_of_threads(process.pid) == {NICE_READY if os.geteuid() == 0 else NICE}
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    set_nice(process.pid, NICE_READY)
    assert nice_of_threads(process.pid) == {NICE}


def test_the_niceness_of_a_process_that_is_gone_is_nobodys_business(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    set_nice(process.pid, NICE)
