"""What VMs use, from files as proc(5) has them, machines without QEMU, and a clock that the tests set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from fake_hypervisor import FakeMachine

from agentvm_kernel.errors import HypervisorError
from agentvm_kernel.observe.process import read_usage, weigh
from agentvm_kernel.observe.sample import History, Sample
from agentvm_kernel.observe.sampler import Sampler
from agentvm_kernel.observe.watch import Known, disk_space
from agentvm_kernel.vm.hypervisor import DiskTraffic
from agentvm_kernel.vm.spec import DomainSpec, Hardware, Transport

HARDWARE = Hardware(1, 512, 4, "tcg", Transport.SERIAL)
MIB = 1 << 20
PAGE = os.sysconf("SC_PAGESIZE")
TICKS = os.sysconf("SC_CLK_TCK")
RUNNING = Known(is_running=True)


class BrokenMachine(FakeMachine):
    """A machine whose QEMU refuses."""

    async def disk_traffic(self) -> DiskTraffic:
        raise HypervisorError("QEMU is gone.")


class Bed:
    """Machines, their processes as files, and a clock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.proc = folder / "proc"
        self.now = 1000.0
        self.machines: list[tuple[FakeMachine, Known]] = []
        self.sampler = Sampler(lambda: list(self.machines), proc=self.proc, clock=lambda: self.now)

    def machine(self, pid: int, known: Known = RUNNING, kind: type[FakeMachine] = FakeMachine) -> FakeMachine:
        own = self.folder / f"vm-{pid}"
        own.mkdir()
        memory = own / "memory"
        memory.write_bytes(b"m")
        machine = kind(DomainSpec(f"d-{pid}", "uuid", own, HARDWARE, memory, ()), pid)
        self.machines.append((machine, known))
        self.process(pid)
        self.smaps(pid)
        return machine

    def process(self, pid: int, cpu: float = 1.0, resident: int = 60, written: int = 40, started: int = 7) -> None:
        """Let a process have used seconds of CPU, and have MiB of memory."""
        folder = self.proc / str(pid)
        folder.mkdir(parents=True, exist_ok=True)
        ticks = round(cpu * TICKS)
        fields = ["S", *["0"] * 10, str(ticks - 1), "1", *["0"] * 6, str(started * TICKS), *["0"] * 30]
        (folder / "stat").write_text(f"{pid} (qemu) S 9 (x) {' '.join(fields)}\n")
        pages = MIB // PAGE
        (folder / "statm").write_text(f"999999 {resident * pages} {(resident - written) * pages} 1 0 1 0\n")

    def smaps(self, pid: int, own: int = 40, shared: int = 10, mapped: int = 30) -> None:
        """Let its memory be so many MiB: of its own, its part of what is shared, and of its guest's."""
        file = (self.folder / f"vm-{pid}" / "memory").stat()
        where = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x} {file.st_ino}"
        (self.proc / str(pid) / "smaps").write_text(
            f"7f0000000000-7f0020000000 rw-p 00000000 {where}      /some/memory\n"
            f"Size:   524288 kB\nRss:   {mapped << 10} kB\nPss:   {own << 10} kB\nPss_Dirty:  5 kB\n"
            f"Private_Clean:  1024 kB\nPrivate_Dirty:  {(own - 1) << 10} kB\nVmFlags: rd wr\n"
            f"7f0030000000-7f0040000000 r-xp 00000000 00:1 1      /usr/bin/qemu\n"
            f"Rss:   {(2 * shared) << 10} kB\nPss:   {shared << 10} kB\nPrivate_Clean:  0 kB\nPrivate_Dirty:  0 kB\n"
        )

    async def look(self, seconds: float = 1.0) -> None:
        self.now += seconds
        await self.sampler.look()

    def latest(self, pid: int) -> Sample:
        return self.sampler.latest[f"vm-{pid}"]


@pytest.fixture
def bed(tmp_path: Path) -> Bed:
    return Bed(tmp_path)


async def test_a_sample_has_what_the_process_the_disk_and_the_supervisor_say(bed: Bed) -> None:
    facts = Known(True, True, network_sent=1, network_received=2, connections=3, allowed=4, refused=5, snapshots=6)
    machine = bed.machine(1, facts)
    machine.traffic = DiskTraffic(100, 200)
    (machine.spec.folder / "disk-1.qcow2").write_bytes(b"x" * 100_000)
    await bed.look()
    sample = bed.latest(1)
    assert (sample.cpu_seconds, sample.memory, sample.memory_private) == (1.0, 50 * MIB, 40 * MIB)
    assert (sample.memory_guest, sample.disk_read, sample.disk_written) == (30 * MIB, 100, 200)
    assert sample.disk_space >= 100_000
    assert sample[10:16] == (1, 2, 3, 4, 5, 6)
    assert (sample.executing, sample.stale) == (True, False)


async def test_cpu_is_a_share_of_the_time_since_the_last_look(bed: Bed) -> None:
    bed.machine(1)
    await bed.look()
    bed.process(1, cpu=1.5)
    await bed.look(1.0)
    assert bed.latest(1).cpu_percent == pytest.approx(50)
    bed.process(1, cpu=2.5)
    await bed.look(0.1)  # somebody asked in between
    assert (bed.latest(1).cpu_seconds, bed.latest(1).cpu_percent) == (2.5, pytest.approx(50))
    await bed.look(1.9)
    assert bed.latest(1).cpu_percent == pytest.approx(50)
    assert len(bed.sampler.history("vm-1")) == 3, "what was asked for in between is not kept"


async def test_memory_is_looked_at_closely_seldom_and_carried_on_in_between(bed: Bed) -> None:
    bed.machine(1)
    await bed.look()
    bed.smaps(1, own=100, shared=5, mapped=90)
    bed.process(1, resident=120, written=100)
    await bed.look()
    assert bed.latest(1).memory == (50 + 60) * MIB
    assert bed.latest(1).memory_guest == (30 + 60) * MIB
    await bed.look(20)
    assert (bed.latest(1).memory, bed.latest(1).memory_private) == (105 * MIB, 100 * MIB)
    bed.smaps(1, own=1, shared=1, mapped=1)
    await bed.look(20)
    assert bed.latest(1).memory == 105 * MIB, "nothing was written meanwhile"
    await bed.look(60)
    assert bed.latest(1).memory == 2 * MIB


async def test_close_looks_are_spread_over_many_looks(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    for pid in range(1, 41):
        bed.machine(pid)
    await bed.look()
    looked: list[int] = []
    monkeypatch.setattr("agentvm_kernel.observe.watch.weigh", lambda pid, *_: looked.append(pid))
    bed.now += 60
    for done in range(1, 21):
        await bed.look(0)
        assert len(looked) == 2 * done
    assert sorted(looked) == list(range(1, 41))


async def test_what_the_host_does_not_show_counts_as_all_of_it(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    bed.machine(1)
    (bed.proc / "1" / "smaps").unlink()
    await bed.look()
    assert (bed.latest(1).memory, bed.latest(1).memory_guest) == (60 * MIB, 60 * MIB)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert weigh(1, bed.folder / "vm-1" / "memory", bed.proc) is None


async def test_counters_never_go_back_and_the_oldest_samples_go(bed: Bed) -> None:
    machine = bed.machine(1)
    for second in range(700):
        bed.process(1, cpu=1 + second * 0.25)
        machine.traffic = DiskTraffic(second, 2 * second)
        await bed.look()
    history = bed.sampler.history("vm-1")
    assert len(history) == 600
    assert history[-1] == bed.latest(1)
    for name in ("time", "cpu_seconds", "disk_read", "disk_written"):
        values = [getattr(sample, name) for sample in history]
        assert values == sorted(values), name
    assert history[0].disk_read == 100


async def test_of_unknown_and_ended_processes_there_is_nothing(bed: Bed) -> None:
    for pid in (1, 2, 3, 4):
        bed.machine(pid)
    (bed.proc / "2" / "stat").unlink()
    await bed.look()
    assert sorted(bed.sampler.latest) == ["vm-1", "vm-3", "vm-4"]
    bed.machines[0][0].die("was ended")
    bed.process(3, cpu=0.5, started=99)  # another process of the same number
    bed.machines.pop()
    await bed.look()
    assert bed.sampler.latest == {}
    assert [bed.sampler.history(f"vm-{pid}") for pid in (1, 2, 4, 9)] == [[], [], [], []]


def test_a_zombie_uses_nothing() -> None:
    zombie = subprocess.Popen(["true"])
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    assert read_usage(zombie.pid) is None
    zombie.wait()
    assert read_usage(zombie.pid) is None


async def test_a_qemu_that_does_not_answer_is_asked_once_and_delays_nobody(bed: Bed) -> None:
    stuck, other = bed.machine(1), bed.machine(2)
    stuck.traffic = other.traffic = DiskTraffic(1, 1)
    await bed.look()
    stuck.answering.clear()
    asked = 0

    async def ask() -> DiskTraffic:
        nonlocal asked
        asked += 1
        await stuck.answering.wait()
        return DiskTraffic(9, 9)

    stuck.disk_traffic = ask  # type: ignore[method-assign]
    for number in range(2, 6):
        other.traffic = DiskTraffic(number, number)
        bed.process(1, cpu=number)
        bed.process(2, cpu=number)
        await bed.look()
        assert (bed.latest(1).disk_read, bed.latest(1).stale) == (1, True)
        assert (bed.latest(2).disk_read, bed.latest(2).stale) == (number, False)
    assert asked == 1
    stuck.answering.set()
    await bed.look()
    await bed.look()
    assert (bed.latest(1).disk_read, bed.latest(1).stale) == (9, False)


async def test_a_qemu_that_refuses_keeps_its_last_figures(bed: Bed) -> None:
    bed.machine(1, kind=BrokenMachine)
    await bed.look()
    assert (bed.latest(1).disk_read, bed.latest(1).cpu_seconds, bed.latest(1).stale) == (0, 1.0, True)


async def test_who_does_not_run_is_not_asked(bed: Bed) -> None:
    paused = bed.machine(1, Known())
    paused.traffic = DiskTraffic(5, 5)
    await bed.look()
    assert bed.latest(1).disk_read == 0


async def test_who_hardly_works_is_asked_every_few_seconds(bed: Bed) -> None:
    machine = bed.machine(1)
    seen = []
    for number in range(1, 13):
        machine.traffic = DiskTraffic(number)
        bed.process(1, cpu=1 + 0.01 * number + (number > 8))
        await bed.look()
        seen.append(bed.latest(1).disk_read)
    assert seen == [1, 1, 1, 4, 4, 4, 7, 7, 9, 9, 9, 12]


async def test_fresh_samples_are_taken_only_where_they_lack(bed: Bed) -> None:
    bed.machine(1)
    assert list(await bed.sampler.fresh()) == ["vm-1"]
    bed.process(1, cpu=3)
    bed.now += 0.5
    assert (await bed.sampler.fresh())["vm-1"].cpu_seconds == 1
    bed.now += 1
    assert (await bed.sampler.fresh())["vm-1"].cpu_seconds == 3
    bed.machine(2)
    assert list(await bed.sampler.fresh()) == ["vm-1", "vm-2"]


async def test_it_goes_on_by_itself_and_tells_who_waits(bed: Bed) -> None:
    bed.machine(1)
    bed.sampler.every = 0.01
    bed.sampler.start()
    for _ in range(3):
        await bed.sampler.next_look()
    await bed.sampler.close()
    assert list(bed.sampler.latest) == ["vm-1"]


def test_a_file_that_goes_meanwhile_takes_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk").write_bytes(b"x" * 100_000)
    there = [tmp_path / "gone", tmp_path / "disk"]
    monkeypatch.setattr(Path, "iterdir", lambda _: iter(there))
    assert disk_space(tmp_path) >= 100_000
    monkeypatch.undo()
    assert disk_space(tmp_path / "gone") == 0


def test_a_process_is_read_as_others_read_it(tmp_path: Path) -> None:
    file = tmp_path / "memory"
    file.write_bytes(b"\1" * (8 * MIB))
    program = (
        "import mmap, sys; f = open(sys.argv[1], 'r+b'); m = mmap.mmap(f.fileno(), 0, mmap.MAP_PRIVATE); "
        "m[: 3 << 20] = bytes(3 << 20); sum(range(3_000_000)); print(flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        usage, weight = read_usage(process.pid), weigh(process.pid, file)
        other = psutil.Process(process.pid)
        full = other.memory_full_info()
        assert usage is not None
        assert weight is not None
        assert usage.cpu_seconds == pytest.approx(sum(other.cpu_times()[:2]), abs=0.02)
        assert usage.resident == pytest.approx(full.rss, rel=0.1)
        assert weight.private == pytest.approx(full.uss, rel=0.05)
        assert weight.proportional == pytest.approx(full.pss, rel=0.05)
        assert 3 * MIB <= weight.mapped <= 8 * MIB
        process.communicate(b"\n")
    assert weigh(process.pid, file) is None


def test_a_history_is_what_was_put_in() -> None:
    history = History(kept=2)
    samples = [Sample(*(number * 1000.5 + field for field in range(18))) for number in range(3)]
    for sample in samples:
        history.append(sample)
    assert list(history) == samples[1:]
