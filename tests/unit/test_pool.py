"""The pool hands out VMs whose identity is confirmed, keeps some ready and leaves nothing behind."""

from __future__ import annotations

import asyncio
import errno
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fake_hypervisor import FakeHypervisor

from agentvm_kernel import settings
from agentvm_kernel.errors import HostError, HypervisorError, IdentityError, SnapshotError, VMError
from agentvm_kernel.profiles import Limits
from agentvm_kernel.supervisor.budget import Budget
from agentvm_kernel.supervisor.pool import Pool
from agentvm_kernel.vm.golden import Source, golden_id, make_golden
from agentvm_kernel.vm.snapshot import Snapshot
from agentvm_kernel.vm.spec import Hardware, Transport

LIMITS = Limits()
HARDWARE = Hardware(1, 256, 4, "tcg", Transport.SERIAL)


@pytest.fixture
def hypervisor() -> FakeHypervisor:
    return FakeHypervisor()


async def make_snapshot(hypervisor: FakeHypervisor, folder: Path, digest: str = "d" * 64) -> Snapshot:
    for name in ("kernel", "initramfs", "rootfs"):
        (folder / name).write_bytes(b"\0" * 512)
    source = Source(digest, folder / "kernel", folder / "initramfs", folder / "rootfs")
    target = folder / (await golden_id(hypervisor, source, HARDWARE))
    return await make_golden(hypervisor, source, HARDWARE, target, "agentvm-golden", lambda _stage: None)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - work in the background
            await asyncio.sleep(0.001)


@pytest.fixture
async def snapshot(hypervisor: FakeHypervisor, short_tmp: Path) -> Snapshot:
    return await make_snapshot(hypervisor, short_tmp)


@pytest.fixture
async def pool(hypervisor: FakeHypervisor, short_tmp: Path, snapshot: Snapshot) -> AsyncIterator[Pool]:
    folder = short_tmp / "vm"
    folder.mkdir()
    pool = Pool(hypervisor, folder, settings.Pool(warm=1, blanks=1), Budget(0.7))
    pool.start()
    yield pool
    await pool.close()
    assert not hypervisor.running
    assert list(folder.iterdir()) == []


async def test_golden_snapshot_is_complete_and_read_only(snapshot: Snapshot) -> None:
    assert Snapshot.load(snapshot.folder) == snapshot
    assert snapshot.hardware == HARDWARE
    assert {path.name for path in snapshot.folder.iterdir()} == {
        "memory",
        "device-state",
        "disk.qcow2",
        "manifest.json",
    }
    assert all(path.stat().st_mode & 0o222 == 0 for path in snapshot.folder.iterdir())
    assert snapshot.memory.stat().st_size == 256 << 20


async def test_a_snapshot_of_other_devices_is_told_from_one_that_can_be_loaded(snapshot: Snapshot) -> None:
    before = {key: value for key, value in snapshot.manifest.hardware.items() if key != "layout"}
    for hardware in (before, before | {"layout": "0" * 16}):
        old = replace(snapshot, manifest=snapshot.manifest.model_copy(update={"hardware": hardware}))
        with pytest.raises(SnapshotError, match="made by another version of AgentVM, whose VMs have other devices"):
            _ = old.hardware


async def test_a_failed_boot_leaves_no_snapshot(hypervisor: FakeHypervisor, short_tmp: Path) -> None:
    hypervisor.lies = {"ok": False, "error": "ipykernel did not start"}
    with pytest.raises(VMError, match="ipykernel did not start"):
        await make_snapshot(hypervisor, short_tmp)
    assert [path.name for path in short_tmp.iterdir() if path.is_dir()] == []
    assert not hypervisor.running


async def test_a_guest_that_dies_while_booting_is_named(hypervisor: FakeHypervisor, short_tmp: Path) -> None:
    hypervisor.is_mute = True
    task = asyncio.create_task(make_snapshot(hypervisor, short_tmp))
    await hypervisor.started.wait()
    await hypervisor.machines[0].asked.wait()
    hypervisor.machines[0].die("the VM's kernel panicked")
    with pytest.raises(VMError, match="kernel panicked"):
        await task


async def test_the_stock_is_filled_and_an_acquire_takes_the_warm_one(
    pool: Pool, snapshot: Snapshot, hypervisor: FakeHypervisor
) -> None:
    await pool.filled(snapshot)
    assert pool.stocks.counts() == {snapshot.id: {"warm": 1, "blanks": 1}}
    started = len(hypervisor.machines)
    vm = await pool.acquire(snapshot, LIMITS)
    machine = next(machine for machine in hypervisor.machines if machine.pid == vm.pid)
    steps = [call for call in machine.calls if not call.startswith(("throttle", "limit"))]
    assert steps == ["attach disk-1.qcow2", "load device-state", "resume", "pause", "resume"]
    assert {"throttle 200 5000"} < set(machine.calls)
    assert [request["op"] for request in machine.ops] == ["identity", "clock"]
    assert machine.pid < 1000 + started
    await pool.filled(snapshot)
    assert vm in pool.leased


async def test_no_two_vms_share_identity(pool: Pool, snapshot: Snapshot, hypervisor: FakeHypervisor) -> None:
    vms = [await pool.acquire(snapshot, LIMITS) for _ in range(3)]
    identities = [m.ops[0] for m in hypervisor.machines if m.ops and m.ops[0]["op"] == "identity"]
    for field in ("epoch", "key", "entropy", "hostname", "machine_id"):
        values = [identity[field] for identity in identities]
        assert len(set(values)) == len(values) >= 3, field
    assert len({vm.key for vm in vms}) == 3


async def test_a_dead_warm_vm_is_not_handed_out(pool: Pool, snapshot: Snapshot, hypervisor: FakeHypervisor) -> None:
    await pool.filled(snapshot)
    for machine in hypervisor.running:
        machine.die("QEMU was killed by SIGKILL")
    vm = await pool.acquire(snapshot, LIMITS)
    assert not vm.ended.done()


async def test_an_unconfirmed_identity_is_no_vm(pool: Pool, snapshot: Snapshot, hypervisor: FakeHypervisor) -> None:
    hypervisor.lies = {"epoch": 1, "hostname": "someone-else"}
    with pytest.raises(IdentityError):
        await pool.acquire(snapshot, LIMITS)
    assert not pool.leased


async def test_a_host_that_cannot_start_vms_says_so_and_recovers(
    pool: Pool, snapshot: Snapshot, hypervisor: FakeHypervisor
) -> None:
    hypervisor.failures = ["no more memory"] * 2
    with pytest.raises(HypervisorError, match="no more memory"):
        await pool.acquire(snapshot, LIMITS)
    hypervisor.failures.clear()
    assert await pool.acquire(snapshot, LIMITS)


async def test_release_ends_the_vm_and_removes_its_files(
    pool: Pool, snapshot: Snapshot, hypervisor: FakeHypervisor, short_tmp: Path
) -> None:
    vm = await pool.acquire(snapshot, LIMITS)
    folder = short_tmp / "vm" / vm.id
    assert folder.is_dir()
    assert vm.content
    await pool.release(vm)
    assert not folder.exists()
    assert not vm.content, "it maps files"
    assert vm.ended.result() == "was ended"


async def test_stocks_nobody_asks_for_give_way(pool: Pool, hypervisor: FakeHypervisor, short_tmp: Path) -> None:
    first, second, third = [await make_snapshot(hypervisor, short_tmp, digest * 64) for digest in "123"]
    vm = await pool.acquire(first, LIMITS)
    for snapshot in (second, third):
        await pool.filled(snapshot)
    assert set(pool.stocks.counts()) == {first.id, second.id, third.id}
    pool.stocks.target = pool.stocks.target.model_copy(update={"idle_after": 1e-9})
    await pool.tend()
    await until(lambda: second.id not in pool.stocks.counts())
    assert set(pool.stocks.counts()) == {first.id, third.id}, "one is in use, the other was asked for last"
    await pool.release(vm)
    await pool.tend()
    await until(lambda: set(pool.stocks.counts()) == {third.id})


async def test_demand_lets_the_stock_grow_and_its_end_lets_it_shrink(
    pool: Pool, snapshot: Snapshot, hypervisor: FakeHypervisor
) -> None:
    for _ in range(12):
        await pool.release(await pool.acquire(snapshot, LIMITS))
    await pool.filled(snapshot)
    grown = pool.stocks.counts()[snapshot.id]["warm"]
    assert 1 < grown <= 8
    (info,) = pool.stocks.describe()
    assert info.warm_wanted == grown
    assert info.rate > 0.2
    pool.stocks.of(snapshot).warm.demand._since -= 10_000
    await pool.tend()
    await until(lambda: pool.stocks.counts()[snapshot.id]["warm"] == 1)


async def test_what_is_too_old_is_replaced_before_it_goes(
    pool: Pool, snapshot: Snapshot, hypervisor: FakeHypervisor
) -> None:
    await pool.filled(snapshot)
    before = {vm.id for vm in pool.stocks.warm} | {blank.machine.spec.folder.name for blank in pool.stocks.blanks}
    pool.stocks.target = pool.stocks.target.model_copy(update={"time_to_live": 3600.0})
    for shelf in (pool.stocks.of(snapshot).warm, pool.stocks.of(snapshot).blanks):
        for one in shelf.ready:
            one.since -= 4000
    await pool.tend()

    def names() -> set[str]:
        assert pool.stocks.warm, "there is a warm VM at all times"
        return {vm.id for vm in pool.stocks.warm} | {blank.machine.spec.folder.name for blank in pool.stocks.blanks}

    await until(lambda: not names() & before and len(names()) == 2)


async def test_a_warm_vm_that_does_not_answer_any_more_is_replaced(
    pool: Pool, snapshot: Snapshot, hypervisor: FakeHypervisor
) -> None:
    await pool.filled(snapshot)
    (sick,) = pool.stocks.warm
    for one in pool.stocks.of(snapshot).warm.ready:
        one.checked -= 1000
    machine = next(machine for machine in hypervisor.machines if machine.pid == sick.pid)
    machine.lies = {"ok": False, "error": "out of order"}
    await pool.tend()
    await until(lambda: bool(pool.stocks.warm) and sick not in pool.stocks.warm)
    assert sick.ended.done()


async def test_a_healthy_warm_vm_stays_and_is_asked_only_when_due(
    pool: Pool, snapshot: Snapshot, hypervisor: FakeHypervisor
) -> None:
    await pool.filled(snapshot)
    (vm,) = pool.stocks.warm
    machine = next(machine for machine in hypervisor.machines if machine.pid == vm.pid)
    asked = len(machine.ops)
    await pool.tend()
    assert len(machine.ops) == asked
    for one in pool.stocks.of(snapshot).warm.ready:
        one.checked -= 1000
    await pool.tend()
    assert len(machine.ops) == asked + 1
    assert pool.stocks.warm == [vm]
    assert machine.calls[-2:] == ["resume", "pause"]


async def test_dead_blanks_are_replaced(pool: Pool, snapshot: Snapshot, hypervisor: FakeHypervisor) -> None:
    await pool.filled(snapshot)
    (dead,) = pool.stocks.blanks
    next(machine for machine in hypervisor.machines if machine is dead.machine).die("QEMU was killed by SIGKILL")
    await pool.tend()
    await until(lambda: bool(pool.stocks.blanks) and dead not in pool.stocks.blanks)


async def test_a_drained_pool_keeps_nothing_ready_until_it_is_filled(
    pool: Pool, snapshot: Snapshot, hypervisor: FakeHypervisor
) -> None:
    await pool.filled(snapshot)
    await pool.drain()
    assert not hypervisor.running
    vm = await pool.acquire(snapshot, LIMITS)
    await pool.tend()
    await pool.release(vm)
    await until(lambda: not hypervisor.running)
    pool.fill()
    await pool.filled()
    assert pool.stocks.counts()[snapshot.id]["warm"] >= 1


async def test_who_needs_memory_gets_that_of_what_is_ready(
    pool: Pool, snapshot: Snapshot, hypervisor: FakeHypervisor, short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = await make_snapshot(hypervisor, short_tmp, "2" * 64)
    await pool.filled(other)
    await pool.filled(snapshot)
    monkeypatch.setattr(Budget, "room", lambda _: 0)
    for _ in range(3):  # the warm one, the blank, and one from scratch
        await pool.acquire(snapshot, LIMITS)
    assert pool.stocks.counts()[other.id] == {"warm": 0, "blanks": 0}


async def test_one_who_gives_up_waiting_leaves_no_vm(
    pool: Pool, snapshot: Snapshot, hypervisor: FakeHypervisor
) -> None:
    for _ in range(3):
        waiting = asyncio.create_task(pool.acquire(snapshot, LIMITS))
        await asyncio.wait([waiting], timeout=0.005)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    await pool.filled(snapshot)
    assert not pool.leased


async def test_a_host_short_of_memory_keeps_nothing_ready_and_still_serves(
    pool: Pool, snapshot: Snapshot, hypervisor: FakeHypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Budget, "room", lambda _: 0)
    vm = await pool.acquire(snapshot, LIMITS)
    await pool.release(vm)
    await pool.close()
    assert len(hypervisor.machines) == 1 + 1, "the golden snapshot's boot and the VM that was asked for"


async def test_what_is_ready_of_a_removed_golden_snapshot_is_not_mixed_with_its_successor(
    pool: Pool, snapshot: Snapshot, hypervisor: FakeHypervisor, short_tmp: Path
) -> None:
    await pool.filled(snapshot)
    before = {machine.pid for machine in hypervisor.running}
    shutil.rmtree(snapshot.folder)
    again = await make_snapshot(hypervisor, short_tmp)
    assert again.id == snapshot.id
    vm = await pool.acquire(again, LIMITS)
    assert vm.pid not in before
    await pool.filled(again)
    assert before.isdisjoint(machine.pid for machine in hypervisor.running)


async def test_a_full_disk_is_named_and_does_not_stop_the_refill(
    pool: Pool, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, *_arguments: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", full)
        with pytest.raises(HostError, match="No space left on device") as refused:
            await pool.acquire(snapshot, LIMITS)
        assert "Make room" in refused.value.hint
    await pool.filled(snapshot)
