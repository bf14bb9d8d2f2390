"""What the supervisor counts of what VMs move: in their tallies, and when it is asked."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from anomaly_bed import Bed
from anomaly_bed import bed as lease_bed
from gateway_bed import NAME, bed
from kernel_harness import within
from test_egress_gateway import HELLO, echo, refused

from agentvm_kernel.errors import ApiError
from agentvm_kernel.observe import sampler
from agentvm_kernel.observe.watch import Watch
from agentvm_kernel.supervisor.answers import Forks
from agentvm_kernel.supervisor.fork_messages import ForkGranted, ForkRequest
from agentvm_kernel.supervisor.snapshot_messages import SnapshotRequest
from agentvm_kernel.supervisor.stats_messages import Moved
from agentvm_kernel.tally import Tally, TallyReader
from agentvm_kernel.vm.hypervisor import DiskTraffic


def granted_tally(ours: Bed) -> Path:
    return Path(ours.lease.granted.tally)


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(65536):
        pass


async def first_fork(events: Forks) -> ForkGranted:
    async for event in events:
        if isinstance(event, ForkGranted):
            return event
    raise AssertionError("no fork")


async def test_hosts_are_those_that_were_spoken_with_and_only_when_they_were(tmp_path: Path) -> None:
    async with bed(tmp_path, echo) as made:
        before = time.monotonic()
        channel = made.open(443, NAME, HELLO)
        await channel.heard(HELLO)
        began = made.access.hosts[NAME]
        assert list(made.access.hosts) == [NAME]
        assert began > before
        channel.say(b"more")
        await channel.heard(b"more")
        assert made.access.hosts[NAME] > began
    async with bed(tmp_path, silent) as made:
        made.open(443, NAME, HELLO)
        await within(lambda: made.accepted)
        await within(lambda: NAME in made.access.hosts)
    async with bed(tmp_path, echo) as made:
        await refused(made, made.open(443, "evil.example", HELLO))
        assert list(made.access.hosts) == []


async def test_the_supervisor_tells_what_a_vm_has_moved_up_to_now(short_tmp: Path) -> None:
    async with lease_bed(short_tmp) as ours:
        ours.machine.traffic = DiskTraffic(5, 7)
        access = ours.lease.network._accesses[ours.lease.vm]
        access.touch("before.example")
        since = time.monotonic()
        for number in range(30):
            access.touch(f"{number}.example")
        moved = await ours.client.moved(ours.id, since)
        assert moved == Moved(
            vm=ours.lease.vm.id, disk_read=5, disk_written=7,
            hosts=tuple(f"{number}.example" for number in range(10, 30)), host_count=30,
        )  # fmt: skip
        with TallyReader(granted_tally(ours)) as reader:
            assert reader.read()[3:] == (5, 7)
            ours.machine.traffic = DiskTraffic(50, 70)
            await ours.supervisor.stats.sampler.look()
            await within(lambda: reader.read()[3:] == (50, 70))
        with pytest.raises(ApiError, match="since"):
            await ours.client._ask(Moved, "GET", f"/v1/leases/{ours.id}/moved?since=-1")


async def test_a_qemu_that_is_stuck_costs_a_moment_and_is_asked_once(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "_PATIENCE_SECONDS", 0.05)
    async with lease_bed(short_tmp) as ours:
        ours.machine.traffic = DiskTraffic(5, 7)
        await ours.client.moved(ours.id, 0)
        ours.machine.answering.clear()
        ours.machine.traffic = DiskTraffic(50, 70)
        for _ in range(3):
            moved = await ours.client.moved(ours.id, 0)
            assert (moved.stale, moved.disk_read, moved.disk_written) == (True, 5, 7)
        ours.machine.answering.set()
        moved = await ours.client.moved(ours.id, 0)
        assert (moved.stale, moved.disk_read, moved.disk_written) == (False, 50, 70)


async def test_an_answer_that_was_owed_from_before_is_not_taken_for_one_of_now(short_tmp: Path) -> None:
    async with lease_bed(short_tmp) as ours:
        machine = ours.machine
        begun = asyncio.Event()

        async def answer() -> DiskTraffic:
            known = machine.traffic
            begun.set()
            await machine.answering.wait()
            return known

        machine.disk_traffic = answer  # type: ignore[method-assign]
        machine.answering.clear()
        watch = Watch(machine)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(watch.ask_now())
            await begun.wait()
            machine.traffic = DiskTraffic(50, 70)
            for _ in range(2):
                tasks.create_task(watch.ask_now())
            machine.answering.set()
        assert watch.traffic == DiskTraffic(50, 70)


async def test_every_vm_that_is_out_has_a_tally_of_its_own_that_ends_with_it(short_tmp: Path) -> None:
    async with lease_bed(short_tmp) as ours:
        first = granted_tally(ours)
        folder = first.parent
        assert (first.name, folder.stat().st_mode & 0o777) == (ours.lease.vm.id, 0o700)
        ours.account(10)
        taken = await ours.client.snapshot(ours.id, SnapshotRequest())
        async with ours.client.forks(ours.id, ForkRequest(count=1)) as events:
            fork = await first_fork(events)
            assert fork.granted.tally == str(folder / fork.granted.vm)
        replaced = await ours.client.rollback(ours.id, taken.id)
        assert replaced.granted.tally == str(folder / replaced.granted.vm)
        with TallyReader(Path(replaced.granted.tally)) as reader:
            assert reader.read().network_sent == 0
            ours.account(3)
            assert reader.read().network_sent == 3
        await ours.supervisor.settled(ours.lease)
        await within(lambda: [path.name for path in folder.iterdir()] == [replaced.granted.vm])
    assert list(folder.iterdir()) == []


async def test_a_lease_goes_without_where_nothing_can_be_counted(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Tally, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Tally, "__init__", full)
    async with lease_bed(short_tmp) as ours:
        assert ours.lease.granted.tally == ""
        ours.account(10)
        assert (await ours.client.moved(ours.id, 0)).vm == ours.lease.vm.id
