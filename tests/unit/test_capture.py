"""A VM's snapshot is taken in a short pause, and a failure at any step costs neither the VM nor what it wrote."""
# ruff: noqa: F811 - fixtures are imported by name

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from capture_bed import MEMORY_MIB, capturer, golden, hypervisor, keep, machine, vm  # noqa: F401
from guest_process import MemoryHypervisor, MemoryMachine

from agentvm_kernel.errors import AgentVMError, DiskFullError, HypervisorError, SnapshotError, VMError
from agentvm_kernel.vm import capture as capture_module
from agentvm_kernel.vm import memory as memory_module
from agentvm_kernel.vm.blank import DUMP_VARIABLE, Blank, start_blank
from agentvm_kernel.vm.capture import Capture, Capturer
from agentvm_kernel.vm.clone import VM, become
from agentvm_kernel.vm.delta import BLOCK, PAGE, Delta, Run
from agentvm_kernel.vm.memory import Buffer
from agentvm_kernel.vm.snapshot import Snapshot


def saved(capture: Capture) -> dict[int, bytes]:
    """Return the blocks of a capture's delta."""
    delta = Delta.open(capture.delta, MEMORY_MIB << 20)
    data = memoryview(delta.path.read_bytes())[delta.offset :]
    blocks = [block for first, count in delta.runs for block in range(first, first + count)]
    return {block: bytes(data[place * BLOCK : (place + 1) * BLOCK]) for place, block in enumerate(blocks)}


def one_byte(page: int, value: int = 7) -> dict[int, bytes]:
    """Return the block that ``GuestProcess.touch`` changes in a page of zeros."""
    return {
        page * PAGE // BLOCK + page // BLOCK: bytes(page % BLOCK) + bytes([value]) + bytes(BLOCK - 1 - page % BLOCK)
    }


async def test_the_pause_holds_only_what_needs_it(
    vm: VM, machine: MemoryMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    capturer = Capturer(None)
    assert vm.tracker is not None
    read = vm.tracker.memory.read

    def copy(runs: Sequence[Run], buffer: Buffer) -> None:
        machine.calls.append("copy")
        read(runs, buffer)

    monkeypatch.setattr(vm.tracker.memory, "read", copy)
    monkeypatch.setattr(
        capturer, "_write_delta", lambda *a: (machine.calls.append("write"), Capturer._write_delta(capturer, *a))
    )
    machine.guest.touch(1, 2)
    machine.write_disk()
    told: list[tuple[float, int]] = []

    def on_resume(pause: float, written: int) -> None:
        machine.calls.append("told")
        told.append((pause, written))

    capture = await capturer.capture(vm, on_resume)
    assert machine.calls == [
        "prepare disk-2.qcow2", "pause", "save", "copy", "freeze", "resume", "told", "write", "prepare disk-3.qcow2",
    ]  # fmt: skip
    assert told == [(capture.pause, 2 * PAGE)]
    assert not capture.is_dump
    assert capture.device_state.read_text() == "device state"
    assert saved(capture) == one_byte(1) | one_byte(2)
    assert [layer.name for layer in capture.layers] == ["disk-1.qcow2"]
    assert (vm.overlay.name, vm.spare_overlay) == ("disk-2.qcow2", vm.folder / "disk-3.qcow2")


async def test_device_state_and_memory_are_saved_at_the_same_time(
    vm: VM, machine: MemoryMachine, capturer: Capturer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert vm.tracker is not None
    loop, has_begun = asyncio.get_running_loop(), asyncio.Event()
    read, save = vm.tracker.memory.read, machine.save

    def copy(runs: Sequence[Run], buffer: Buffer) -> None:
        loop.call_soon_threadsafe(has_begun.set)
        read(runs, buffer)

    async def save_later(device_state: Path) -> None:
        await asyncio.wait_for(has_begun.wait(), 10)
        await save(device_state)

    monkeypatch.setattr(vm.tracker.memory, "read", copy)
    monkeypatch.setattr(machine, "save", save_later)
    machine.guest.touch(1)
    assert saved(await capturer.capture(vm)) == one_byte(1)


async def test_the_vm_runs_on_only_when_nothing_is_copied_any_more(
    vm: VM, machine: MemoryMachine, capturer: Capturer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert vm.tracker is not None
    read, may_end = vm.tracker.memory.read, threading.Event()

    def copy(runs: Sequence[Run], buffer: Buffer) -> None:
        assert may_end.wait(10)
        read(runs, buffer)
        machine.calls.append("copied")

    monkeypatch.setattr(vm.tracker.memory, "read", copy)
    machine.faults.add("save")
    machine.guest.touch(1)
    capturing = asyncio.create_task(capturer.capture(vm))
    await asyncio.wait({capturing}, timeout=0.5)
    may_end.set()
    with pytest.raises(HypervisorError):
        await capturing
    assert machine.calls[-3:] == ["save failed", "copied", "resume"]


async def test_a_network_card_is_out_while_the_vm_is_saved(vm: VM, machine: MemoryMachine, capturer: Capturer) -> None:
    await vm.plug()
    await vm.plug()
    assert machine.calls == ["plug"], "it has one already"
    card = vm.card
    machine.calls.clear()
    await capturer.capture(vm)
    assert machine.calls == ["unplug", "prepare disk-2.qcow2", "pause", "save", "resume", "plug"]
    assert vm.card == card
    assert [one["mac"] for one in machine.ops if one["op"] == "card"] == [card.mac if card else ""] * 2


async def test_a_guest_that_keeps_its_card_is_not_saved(vm: VM, machine: MemoryMachine, capturer: Capturer) -> None:
    await vm.plug()
    machine.clings = True
    with pytest.raises(VMError, match="does not let go"):
        await capturer.capture(vm)
    assert "save" not in machine.calls
    assert "pause" not in machine.calls
    assert vm.card is not None, "the next snapshot tries again"


async def test_a_card_that_does_not_come_back_costs_no_snapshot(
    vm: VM, machine: MemoryMachine, capturer: Capturer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await vm.plug()

    async def refuse() -> None:
        raise HypervisorError("There is no network.")

    monkeypatch.setattr(machine, "plug", refuse)
    assert (await capturer.capture(vm)).device_state.exists()
    assert vm.card is None


async def test_disk_that_was_not_written_is_not_frozen(vm: VM, machine: MemoryMachine, capturer: Capturer) -> None:
    for _ in range(2):
        assert (await capturer.capture(vm)).layers == ()
    assert machine.calls == ["prepare disk-2.qcow2", *["pause", "save", "resume"] * 2]


async def test_each_snapshot_holds_what_was_written_since_the_last(
    vm: VM, machine: MemoryMachine, capturer: Capturer, short_tmp: Path
) -> None:
    machine.guest.touch(1, 2)
    first = await capturer.capture(vm)
    keep(vm, first, short_tmp / "a")
    machine.guest.touch(2, 3, value=9)
    machine.guest.touch(1)  # as it was: written, and not changed
    second = await capturer.capture(vm)
    assert saved(second) == one_byte(2, 9) | one_byte(3, 9)


@pytest.mark.parametrize("step", ["save", "freeze", "copy", "write", "pause"])
async def test_failure_costs_neither_the_vm_nor_what_it_wrote(
    vm: VM, machine: MemoryMachine, capturer: Capturer, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    machine.guest.touch(1)
    machine.write_disk()
    told: list[float] = []
    with monkeypatch.context() as patch:
        if step == "copy":
            patch.setattr(memory_module._libc, "process_vm_readv", lambda *_: -1)
        elif step == "write":
            patch.setattr(capture_module, "write_delta", fill_disk)
        else:
            machine.faults.add(step)
        with pytest.raises(VMError) as caught:
            await capturer.capture(vm, lambda pause, _written: told.append(pause))
    assert isinstance(caught.value, {"copy": SnapshotError, "write": DiskFullError}.get(step, HypervisorError))
    assert machine.calls.count("resume") == machine.calls.count("pause") == (step != "pause")
    assert len(told) == (step == "write")
    assert not list(vm.folder.glob("*.delta"))
    machine.guest.touch(5)
    machine.write_disk()
    capture = await capturer.capture(vm)
    assert machine.calls.count("resume") == machine.calls.count("pause") == 1 + (step != "pause")
    assert saved(capture) == one_byte(1) | one_byte(5)
    layers = ["disk-2.qcow2", "disk-1.qcow2"] if step == "write" else ["disk-1.qcow2"]
    assert [layer.name for layer in capture.layers] == layers
    assert vm.unsaved_runs == vm.unsaved_layers == []


def fill_disk(path: Path, runs: Sequence[Run], _data: Sequence[memoryview]) -> None:
    path.write_bytes(bytes(len(runs)))
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


async def test_full_disk_is_told_when_the_buffer_had_to_grow(
    vm: VM, machine: MemoryMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture_module, "_KEPT", PAGE)
    capturer = Capturer(None)
    machine.guest.touch(*range(20))
    with monkeypatch.context() as patch:
        patch.setattr(capture_module, "write_delta", fill_disk)
        with pytest.raises(DiskFullError, match="No space left") as caught:
            await capturer.capture(vm)
    assert caught.value.hint
    capture = await capturer.capture(vm)
    assert capture.runs == [(0, 20)]
    assert set(saved(capture)) == set(range(20 * PAGE // BLOCK))


async def test_pages_that_are_taken_back_are_in_the_next_snapshot(
    vm: VM, machine: MemoryMachine, capturer: Capturer
) -> None:
    machine.guest.touch(1, 4)
    machine.write_disk()
    capture = await capturer.capture(vm)
    vm.take_back(capture.runs, capture.layers, capture.over)
    machine.guest.touch(4, 8, value=9)
    later = await capturer.capture(vm)
    assert saved(later) == one_byte(1) | one_byte(4, 9) | one_byte(8, 9)
    assert later.layers == capture.layers


async def test_more_than_was_foreseen_is_copied_all_the_same(
    vm: VM, machine: MemoryMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture_module, "_KEPT", PAGE)
    monkeypatch.setattr(capture_module, "_SLACK", 0)
    capturer = Capturer(None)
    assert vm.tracker is not None
    monkeypatch.setattr(vm.tracker, "look", list)
    machine.guest.touch(*range(30))
    assert set(saved(await capturer.capture(vm))) == set(range(30 * PAGE // BLOCK))
    assert capturer._buffer.size == PAGE


async def test_missing_spare_overlay_fails_only_the_snapshot_that_needs_it(
    vm: VM, machine: MemoryMachine, capturer: Capturer
) -> None:
    await capturer.capture(vm)
    machine.guest.touch(1)
    machine.write_disk()
    machine.faults.add("prepare")
    capture = await capturer.capture(vm)
    assert saved(capture) == one_byte(1)
    assert vm.spare_overlay is None
    machine.faults.add("prepare")
    with pytest.raises(HypervisorError):
        await capturer.capture(vm)
    assert machine.calls[-1] == "prepare failed"
    machine.write_disk()
    assert [layer.name for layer in (await capturer.capture(vm)).layers] == ["disk-2.qcow2"]
    assert len({call for call in machine.calls if call.startswith("prepare disk")}) == 3


async def test_captures_of_several_vms_take_turns(
    vm: VM, machine: MemoryMachine, capturer: Capturer, hypervisor: MemoryHypervisor, golden: Snapshot, short_tmp: Path
) -> None:
    other = await become(await start_blank(hypervisor, golden, short_tmp / "vm-2", "vm-2"), "vm-2")
    machine.guest.touch(1)
    hypervisor.of(other.pid).guest.touch(2)
    captures = await asyncio.gather(capturer.capture(vm), capturer.capture(other))
    assert [saved(capture) for capture in captures] == [one_byte(1), one_byte(2)]
    await other.end()


async def test_clone_of_a_snapshot_has_its_memory(
    vm: VM, machine: MemoryMachine, capturer: Capturer, hypervisor: MemoryHypervisor, golden: Snapshot, short_tmp: Path
) -> None:
    machine.guest.touch(1, 2)
    first = keep(vm, await capturer.capture(vm), short_tmp / "a")
    machine.guest.touch(2, value=9)
    second = keep(vm, await capturer.capture(vm), short_tmp / "b")
    clones = [
        await become(await start_blank(hypervisor, golden, short_tmp / name, name), name, snapshot)
        for name, snapshot in (("vm-2", first), ("vm-3", second))
    ]
    for clone, value in zip(clones, (7, 9), strict=True):
        assert clone.tracker is not None
        buffer = Buffer(PAGE)
        clone.tracker.memory.read([(2, 1)], buffer)
        assert buffer.view(PAGE)[2] == value
        hypervisor.of(clone.pid).guest.touch(6)
        capture = await capturer.capture(clone)
        assert saved(capture) == one_byte(6)
        if clone.tracker.is_exact:  # what came with the snapshot was not written by it
            assert capture.runs == [(6, 1)]
        await clone.end()


async def blank_of(hypervisor: MemoryHypervisor, golden: Snapshot, short_tmp: Path, *, is_empty: bool = False) -> Blank:
    return await start_blank(hypervisor, golden, short_tmp / "vm-2", "vm-2", is_empty=is_empty)


async def test_where_memory_cannot_be_reached_qemu_dumps_everything(
    hypervisor: MemoryHypervisor, golden: Snapshot, short_tmp: Path, capturer: Capturer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DUMP_VARIABLE, "1")
    vm = await become(await blank_of(hypervisor, golden, short_tmp), "vm-2")
    machine = hypervisor.of(vm.pid)
    machine.calls.clear()
    machine.write_disk()
    machine.guest.touch(1)
    told: list[int] = []
    capture = await capturer.capture(vm, lambda _pause, written: told.append(written))
    assert machine.calls == ["prepare disk-2.qcow2", "pause", "freeze", "dump", "resume"]
    assert capture.is_dump
    assert capture.runs == []
    assert saved(capture) == {}
    assert capture.device_state.read_text() == "dump"
    assert [layer.name for layer in capture.layers] == ["disk-1.qcow2"]
    assert told == [0]
    await vm.end()


@pytest.mark.parametrize("step", ["dump", "freeze"])
async def test_dump_that_fails_costs_nothing(
    hypervisor: MemoryHypervisor,
    golden: Snapshot,
    short_tmp: Path,
    capturer: Capturer,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    monkeypatch.setenv(DUMP_VARIABLE, "1")
    vm = await become(await blank_of(hypervisor, golden, short_tmp), "vm-2")
    machine = hypervisor.of(vm.pid)
    machine.write_disk()
    machine.faults.add(step)
    with pytest.raises(HypervisorError):
        await capturer.capture(vm)
    assert machine.calls[-1] == "resume"
    assert [layer.name for layer in (await capturer.capture(vm)).layers] == ["disk-1.qcow2"]
    await vm.end()


async def test_dump_that_finds_no_room_is_tried_again(
    hypervisor: MemoryHypervisor, golden: Snapshot, short_tmp: Path, capturer: Capturer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DUMP_VARIABLE, "1")
    vm = await become(await blank_of(hypervisor, golden, short_tmp), "vm-2")
    hypervisor.of(vm.pid).write_disk()
    with monkeypatch.context() as patch:
        patch.setattr(capture_module, "write_delta", fill_disk)
        with pytest.raises(DiskFullError):
            await capturer.capture(vm)
    assert [layer.name for layer in (await capturer.capture(vm)).layers] == ["disk-1.qcow2"]
    await vm.end()


async def test_clone_of_a_dump_is_loaded_by_qemu_and_dumped_again(
    vm: VM, hypervisor: MemoryHypervisor, golden: Snapshot, short_tmp: Path, capturer: Capturer
) -> None:
    vm.tracker = None
    snapshot = keep(vm, await capturer.capture(vm), short_tmp / "a")
    clone = await become(await blank_of(hypervisor, golden, short_tmp, is_empty=True), "vm-2", snapshot)
    assert clone.content is None
    assert (await capturer.capture(clone)).is_dump
    await clone.end()


async def test_dump_is_refused_by_a_blank_whose_memory_is_not_empty(
    vm: VM, hypervisor: MemoryHypervisor, golden: Snapshot, short_tmp: Path, capturer: Capturer
) -> None:
    vm.tracker = None
    snapshot = keep(vm, await capturer.capture(vm), short_tmp / "a")
    with pytest.raises(SnapshotError, match="empty memory"):
        await become(await blank_of(hypervisor, golden, short_tmp), "vm-2", snapshot)


async def test_snapshot_of_another_golden_one_is_refused(
    hypervisor: MemoryHypervisor, golden: Snapshot, short_tmp: Path
) -> None:
    other = Snapshot("other", golden.folder, golden.manifest)
    with pytest.raises(SnapshotError, match="another golden"):
        await become(await blank_of(hypervisor, golden, short_tmp), "vm-2", other)
    assert not hypervisor.running


async def test_delta_cannot_be_loaded_where_memory_cannot_be_reached(
    vm: VM, machine: MemoryMachine, hypervisor: MemoryHypervisor, golden: Snapshot, short_tmp: Path, capturer: Capturer
) -> None:
    machine.guest.touch(1)
    snapshot = keep(vm, await capturer.capture(vm), short_tmp / "a")
    blank = await blank_of(hypervisor, golden, short_tmp)
    blank.tracker = None
    with pytest.raises(SnapshotError, match="not accessible") as caught:
        await become(blank, "vm-2", snapshot)
    assert "doctor" in caught.value.hint
    assert hypervisor.running == [machine]
    assert not (short_tmp / "vm-2").exists()


async def test_memory_out_of_reach_is_no_error_of_a_blank(
    hypervisor: MemoryHypervisor, golden: Snapshot, short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise SnapshotError("not here")

    monkeypatch.setattr("agentvm_kernel.vm.blank.GuestMemory", refuse)
    blank = await blank_of(hypervisor, golden, short_tmp)
    assert blank.tracker is None
    await blank.end()
    assert not (short_tmp / "vm-2").exists()


async def test_failed_start_leaves_nothing(hypervisor: MemoryHypervisor, golden: Snapshot, short_tmp: Path) -> None:
    hypervisor.failures = ["no more memory"]
    with pytest.raises(AgentVMError, match="no more memory"):
        await blank_of(hypervisor, golden, short_tmp)
    assert not (short_tmp / "vm-2").exists()
