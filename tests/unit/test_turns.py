"""VMs that want the CPU all the time give way to those that want it for a moment, and get their turn back."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import psutil
import pytest
from fake_hypervisor import FakeMachine

from agentvm_kernel.supervisor import turns as module
from agentvm_kernel.supervisor.turns import Turns
from agentvm_kernel.vm.clone import VM
from agentvm_kernel.vm.cputime import wanted_cpu
from agentvm_kernel.vm.spec import DomainSpec, Hardware, Transport

HARDWARE = Hardware(1, 512, 4, "tcg", Transport.SERIAL)


class FakeVM:
    def __init__(self, machine: FakeMachine) -> None:
        self.id, self.pid, self.machine = f"vm-{machine.pid}", machine.pid, machine


class Bed:
    """VMs, and a clock that goes on by a second with each look."""

    def __init__(self, folder: Path, count: int) -> None:
        spec = DomainSpec("vm", "uuid", folder, HARDWARE, folder / "memory", ())
        self.machines = [FakeMachine(spec, pid) for pid in range(count)]
        self.vms = [cast("VM", FakeVM(machine)) for machine in self.machines]
        self.wanted = {pid: {1: 100.0, 2: 100.0} for pid in range(count)}
        self.now = 1000.0
        self.turns = Turns(lambda: self.vms)

    async def look(self, *wanted: float) -> None:
        """Look after a second in which a thread of each VM has wanted a core for so long."""
        self.now += 1
        for pid, seconds in enumerate(wanted):
            self.wanted[pid] = {1: self.wanted[pid][1] + 0.5, 2: self.wanted[pid][2] + seconds}
        await self.turns.look()

    @property
    def calls(self) -> list[list[str]]:
        return [machine.calls for machine in self.machines]


@pytest.fixture
async def bed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bed:
    bed = Bed(tmp_path, 2)
    monkeypatch.setattr(module, "wanted_cpu", lambda pid: bed.wanted[pid])
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: bed.now))
    return bed


async def test_who_never_rests_gives_way_to_who_does_now_and_then(bed: Bed) -> None:
    for second in range(20):
        await bed.look(1.0, 1.0 if second % 2 else 0.4)
    assert bed.calls == [["give way"], []]


async def test_a_short_cell_is_nothing_to_give_way_for(bed: Bed) -> None:
    for second in range(20):
        await bed.look(1.0 if second % 10 < 2 else 0.1, 0.6)
    assert bed.calls == [[], []]


async def test_who_has_become_quiet_takes_turns_again(bed: Bed) -> None:
    for _ in range(20):
        await bed.look(1.0, 1.0)
    for _ in range(2):
        await bed.look(0.0, 1.0)
    assert bed.calls == [["give way", "take turns"], ["give way"]]


async def test_a_vm_that_is_gone_is_nobodys_business(bed: Bed) -> None:
    bed.machines[0].die("it was killed")
    for _ in range(10):
        await bed.look(1.0, 1.0)
    assert bed.calls == [[], ["give way"]]
    bed.vms.clear()
    await bed.look()


@pytest.fixture
def busy() -> Iterator[subprocess.Popen[bytes]]:
    """A process with two threads of which each wants a CPU."""
    code = "import hashlib, threading\ndef work():\n    while True: hashlib.sha256(bytes(1 << 20))\n"
    child = subprocess.Popen(
        [sys.executable, "-c", f"{code}threading.Thread(target=work, daemon=True).start()\nwork()"]
    )
    with child:
        yield child
        child.kill()


def test_waiting_for_the_cpu_is_wanting_it(busy: subprocess.Popen[bytes]) -> None:
    while len(wanted_cpu(busy.pid)) < 2:
        time.sleep(0.01)
    for thread in wanted_cpu(busy.pid):
        os.sched_setaffinity(thread, {min(os.sched_getaffinity(0))})
    while (used := psutil.Process(busy.pid).cpu_times().user) < 1:
        time.sleep(0.05)
    assert sum(wanted_cpu(busy.pid).values()) > 1.4 * used, "each of two threads on one core wants it"


def test_a_process_that_is_gone_wants_nothing() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    assert wanted_cpu(child.pid) == {}


async def test_who_is_held_stays_as_it_is_until_it_is_let_go(bed: Bed) -> None:
    bed.turns.hold(bed.vms[0])
    for _ in range(20):
        await bed.look(1.0, 0.1)
    assert bed.calls == [[], []]
    bed.turns.let_go(bed.vms[0])
    for _ in range(20):
        await bed.look(1.0, 0.1)
    assert bed.calls == [["give way"], []]


async def test_it_tells_how_much_of_the_last_second_a_vm_wanted(bed: Bed) -> None:
    assert bed.turns.wanted(bed.vms[0]) == 0
    for wanted in (0.1, 0.1, 0.7):
        await bed.look(wanted, 0.3)
    assert (bed.turns.wanted(bed.vms[0]), bed.turns.wanted(bed.vms[1])) == (pytest.approx(0.7), pytest.approx(0.5))
