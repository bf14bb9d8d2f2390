"""The pool hands out VMs whose identity is confirmed, keeps some ready and leaves nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fake_hypervisor import FakeHypervisor

from agentvm_kernel import config
from agentvm_kernel.errors import HypervisorError, IdentityError, VMError
from agentvm_kernel.supervisor.pool import Pool
from agentvm_kernel.vm.golden import Source, golden_id, make_golden
from agentvm_kernel.vm.snapshot import Snapshot
from agentvm_kernel.vm.spec import Hardware, Transport

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


@pytest.fixture
async def snapshot(hypervisor: FakeHypervisor, short_tmp: Path) -> Snapshot:
    return await make_snapshot(hypervisor, short_tmp)


@pytest.fixture
async def pool(hypervisor: FakeHypervisor, short_tmp: Path, snapshot: Snapshot) -> AsyncIterator[Pool]:
    folder = short_tmp / "vm"
    folder.mkdir()
    pool = Pool(hypervisor, folder, config.Pool(warm=1, blanks=1))
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
    await pool.wait_filled(snapshot)
    assert pool.counts() == {snapshot.id: {"warm": 1, "blanks": 1}}
    started = len(hypervisor.machines)
    vm = await pool.acquire(snapshot)
    machine = next(machine for machine in hypervisor.machines if machine.pid == vm.pid)
    assert machine.calls == ["attach disk-1.qcow2", "load device-state", "resume", "pause", "resume"]
    assert [request["op"] for request in machine.ops] == ["identity", "clock"]
    assert machine.pid < 1000 + started
    await pool.wait_filled(snapshot)
    assert vm in pool.leased


async def test_no_two_vms_share_identity(pool: Pool, snapshot: Snapshot, hypervisor: FakeHypervisor) -> None:
    vms = [await pool.acquire(snapshot) for _ in range(3)]
    identities = [m.ops[0] for m in hypervisor.machines if m.ops and m.ops[0]["op"] == "identity"]
    for field in ("epoch", "key", "entropy", "hostname", "machine_id"):
        values = [identity[field] for identity in identities]
        assert len(set(values)) == len(values) >= 3, field
    assert len({vm.key for vm in vms}) == 3


async def test_a_dead_warm_vm_is_not_handed_out(pool: Pool, snapshot: Snapshot, hypervisor: FakeHypervisor) -> None:
    await pool.wait_filled(snapshot)
    for machine in hypervisor.running:
        machine.die("QEMU was killed by SIGKILL")
    vm = await pool.acquire(snapshot)
    assert not vm.ended.done()


async def test_an_unconfirmed_identity_is_no_vm(pool: Pool, snapshot: Snapshot, hypervisor: FakeHypervisor) -> None:
    hypervisor.lies = {"epoch": 1, "hostname": "someone-else"}
    with pytest.raises(IdentityError):
        await pool.acquire(snapshot)
    assert not pool.leased


async def test_a_host_that_cannot_start_vms_says_so_and_recovers(
    pool: Pool, snapshot: Snapshot, hypervisor: FakeHypervisor
) -> None:
    hypervisor.failures = ["no more memory"] * 2
    with pytest.raises(HypervisorError, match="no more memory"):
        await pool.acquire(snapshot)
    hypervisor.failures.clear()
    assert await pool.acquire(snapshot)


async def test_release_ends_the_vm_and_removes_its_files(
    pool: Pool, snapshot: Snapshot, hypervisor: FakeHypervisor, short_tmp: Path
) -> None:
    vm = await pool.acquire(snapshot)
    folder = short_tmp / "vm" / vm.id
    assert folder.is_dir()
    await pool.release(vm)
    assert not folder.exists()
    assert vm.ended.result() == "was ended"


async def test_stocks_nobody_asks_for_give_way(pool: Pool, hypervisor: FakeHypervisor, short_tmp: Path) -> None:
    snapshots = [await make_snapshot(hypervisor, short_tmp, digest) for digest in ("1" * 64, "2" * 64, "3" * 64)]
    for snapshot in snapshots:
        await pool.wait_filled(snapshot)
    assert set(pool.counts()) == {snapshots[1].id, snapshots[2].id}


async def test_one_who_gives_up_waiting_leaves_no_vm(
    pool: Pool, snapshot: Snapshot, hypervisor: FakeHypervisor
) -> None:
    for _ in range(3):
        waiting = asyncio.create_task(pool.acquire(snapshot))
        await asyncio.wait([waiting], timeout=0.005)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    await pool.wait_filled(snapshot)
    assert not pool.leased


async def test_a_host_short_of_memory_keeps_nothing_ready_and_still_serves(
    pool: Pool, snapshot: Snapshot, hypervisor: FakeHypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentvm_kernel.supervisor.pool.room", lambda: 0)
    vm = await pool.acquire(snapshot)
    await pool.release(vm)
    await pool.close()
    assert len(hypervisor.machines) == 1 + 1, "the golden snapshot's boot and the VM that was asked for"
