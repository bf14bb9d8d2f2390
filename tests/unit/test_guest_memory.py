"""A guest's memory is read, written and watched from outside; a child process stands in for QEMU."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from guest_process import GuestProcess

from agentvm_kernel.errors import SnapshotError
from agentvm_kernel.vm import memory as memory_module
from agentvm_kernel.vm import pagemap, tracking, userfault
from agentvm_kernel.vm.delta import PAGE, Run, merge_runs
from agentvm_kernel.vm.memory import Buffer, GuestMemory, address_of
from agentvm_kernel.vm.tracking import PrivatePages, SoftDirty, WriteProtection, find_tracker

PAGES = 64
SIZE = PAGES * PAGE


@pytest.fixture
def backing(tmp_path: Path) -> Path:
    path = tmp_path / "memory"
    path.write_bytes(random.Random(1).randbytes(SIZE))
    return path


@pytest.fixture(params=[1, 4])
def guest(request: pytest.FixtureRequest, backing: Path) -> Iterator[GuestProcess]:
    process = GuestProcess(backing, request.param)
    yield process
    process.end()


@pytest.fixture
def memory(guest: GuestProcess, backing: Path) -> GuestMemory:
    return GuestMemory(guest.pid, backing, SIZE)


def read(memory: GuestMemory, runs: list[Run]) -> bytes:
    buffer = Buffer(SIZE)
    memory.read(runs, buffer)
    return bytes(buffer.view(sum(count for _, count in runs) * PAGE))


def write(memory: GuestMemory, pieces: list[tuple[int, bytes]]) -> None:
    here = [memoryview(bytearray(data)) for _, data in pieces]
    memory.write((place, address_of(view), len(view)) for (place, _), view in zip(pieces, here, strict=True))


def watch(memory: GuestMemory) -> WriteProtection:
    try:
        return WriteProtection(memory)
    except SnapshotError as error:
        pytest.skip(f"write protection: {error}")


def test_areas_are_found_in_order_wherever_they_are_mapped(memory: GuestMemory) -> None:
    areas = list(memory.areas)
    assert [first for first, _, _ in areas] == [number * PAGES // len(areas) for number in range(len(areas))]
    assert sum(count for _, count, _ in areas) == memory.pages == PAGES


def test_pages_are_read_in_the_order_asked_for(memory: GuestMemory, guest: GuestProcess, backing: Path) -> None:
    content = bytearray(backing.read_bytes())
    guest.touch(3, 16, 40)
    for page in (3, 16, 40):
        content[page * PAGE + page] = 7
    assert read(memory, [(0, PAGES)]) == content
    runs = [(40, 1), (14, 4), (3, 2)]
    assert read(memory, runs) == b"".join(content[first * PAGE : (first + count) * PAGE] for first, count in runs)


def test_written_pieces_arrive_and_the_file_stays(memory: GuestMemory, backing: Path) -> None:
    before = backing.read_bytes()
    content = bytearray(before)
    pieces = [(100, b"a" * 50), (16 * PAGE - 256, b"b" * 512), (SIZE - 300, b"c" * 300)]
    write(memory, pieces)
    for place, data in pieces:
        content[place : place + len(data)] = data
    assert read(memory, [(0, PAGES)]) == content
    assert backing.read_bytes() == before


def test_long_and_many_copies_are_made_in_parts(
    memory: GuestMemory, backing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_module, "_LONGEST", 1000)
    monkeypatch.setattr(memory_module, "_MAX_VECTORS", 7)
    content = bytearray(backing.read_bytes())
    assert read(memory, [(0, PAGES)]) == content
    pieces = [(5 * PAGE, b"a" * 2500), (16 * PAGE - 1700, b"b" * 3400)]
    write(memory, pieces)
    for place, data in pieces:
        content[place : place + len(data)] = data
    assert read(memory, [(0, PAGES)]) == content


def test_memory_file_that_is_not_mapped_is_refused(guest: GuestProcess, backing: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(backing.read_bytes())
    with pytest.raises(SnapshotError, match="private view"):
        GuestMemory(guest.pid, other, SIZE)
    with pytest.raises(SnapshotError, match="private view"):
        GuestMemory(guest.pid, backing, SIZE + PAGE)
    with pytest.raises(SnapshotError, match="not accessible"):
        GuestMemory(guest.pid, tmp_path / "missing", SIZE)
    with other.open("r+b") as file, mmap.mmap(file.fileno(), 0), pytest.raises(SnapshotError, match="private view"):
        GuestMemory(os.getpid(), other, SIZE)


def test_process_that_is_gone_is_an_error_everywhere(memory: GuestMemory, guest: GuestProcess, backing: Path) -> None:
    guest.end()
    with pytest.raises(SnapshotError, match="could not be copied: No such process"):
        read(memory, [(0, 1)])
    with pytest.raises(SnapshotError, match="could not be copied"):
        write(memory, [(0, b"x")])
    with pytest.raises(SnapshotError, match="not accessible"):
        GuestMemory(guest.pid, backing, SIZE)
    for tracker in (PrivatePages(memory), SoftDirty(memory)):
        with pytest.raises(SnapshotError, match="cannot be looked at"):
            tracker.collect()
    with pytest.raises(SnapshotError, match="could not be made to track"):
        WriteProtection(memory)


def test_private_pages_are_all_that_were_ever_written(memory: GuestMemory, guest: GuestProcess) -> None:
    tracker = PrivatePages(memory)
    assert tracker.collect() == []
    guest.touch(0, 15, 16, 63)
    assert merge_runs(tracker.collect()) == [(0, 1), (15, 2), (63, 1)]
    guest.touch(5)
    assert merge_runs(tracker.collect()) == [(0, 1), (5, 1), (15, 2), (63, 1)]


def test_write_protection_tells_each_write_once(memory: GuestMemory, guest: GuestProcess) -> None:
    tracker = watch(memory)
    assert tracker.collect() == []
    guest.touch(0, 15, 16, 63)
    assert merge_runs(tracker.look()) == [(0, 1), (15, 2), (63, 1)]
    assert merge_runs(tracker.collect()) == [(0, 1), (15, 2), (63, 1)]
    assert tracker.look() == tracker.collect() == []
    guest.touch(16, 30)
    assert merge_runs(tracker.collect()) == [(16, 1), (30, 1)]


def test_write_protection_sees_no_reads_but_the_hosts_writes(memory: GuestMemory) -> None:
    tracker = watch(memory)
    read(memory, [(0, PAGES)])
    assert tracker.collect() == []
    write(memory, [(7 * PAGE + 5, b"x")])
    assert tracker.collect() == [(7, 1)]
    write(memory, [(9 * PAGE, b"x")])
    tracker.begin()
    assert tracker.collect() == []


def test_more_runs_than_one_scan_returns_are_all_found(
    memory: GuestMemory, guest: GuestProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = watch(memory)
    monkeypatch.setattr(pagemap, "_REGIONS_AT_ONCE", 2)
    pages = range(1, PAGES, 2)
    guest.touch(*pages)
    assert tracker.collect() == [(page, 1) for page in pages]
    assert tracker.collect() == []


def test_process_works_on_as_if_nothing_had_happened(memory: GuestMemory, guest: GuestProcess) -> None:
    for _ in range(3):  # a second registration by another descriptor is refused
        with contextlib.suppress(SnapshotError):
            WriteProtection(memory)
        guest.touch(1, 2, 3)
        guest.wait_blocked()
    descriptors = [path.readlink() for path in Path(f"/proc/{guest.pid}/fd").iterdir()]
    assert sum("userfaultfd" in str(target) for target in descriptors) <= 1


def test_process_that_does_not_wait_in_a_system_call_is_left_alone(
    memory: GuestMemory, guest: GuestProcess, backing: Path
) -> None:
    assert backing.read_bytes()[100] != 1
    guest.spin(100)
    while read(memory, [(0, 1)])[100] != 1:
        os.sched_yield()
    with pytest.raises(SnapshotError, match="does not wait in a system call"):
        WriteProtection(memory)
    write(memory, [(100, b"\0")])
    while read(memory, [(0, 1)])[100] != 1:  # it spins on
        os.sched_yield()


def test_process_that_ends_while_it_is_stopped_is_an_error(
    memory: GuestMemory, guest: GuestProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    ptrace = userfault._ptrace

    def kill_first(request: int, tid: int, data: object = None) -> None:
        if request == userfault._INTERRUPT:
            os.kill(tid, signal.SIGKILL)
            return
        ptrace(request, tid, data)

    monkeypatch.setattr(userfault, "_ptrace", kill_first)
    with pytest.raises(SnapshotError, match="could not be made to track"):
        WriteProtection(memory)


def test_process_about_to_get_a_signal_is_left_alone(
    memory: GuestMemory, guest: GuestProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    ptrace = userfault._ptrace

    def signal_first(request: int, tid: int, data: object = None) -> None:
        if request == userfault._INTERRUPT:
            os.kill(tid, signal.SIGWINCH)
            return
        ptrace(request, tid, data)

    monkeypatch.setattr(userfault, "_ptrace", signal_first)
    with pytest.raises(SnapshotError, match=f"signal {int(signal.SIGWINCH)}"):
        WriteProtection(memory)
    guest.touch(1)


def test_refused_system_call_closes_the_descriptor(
    memory: GuestMemory, guest: GuestProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(Path(f"/proc/{guest.pid}/fd").iterdir())
    monkeypatch.setattr(userfault, "_API", 0)
    with pytest.raises(SnapshotError, match="could not be made to track"):
        WriteProtection(memory)
    assert set(Path(f"/proc/{guest.pid}/fd").iterdir()) == before
    guest.touch(1)


def test_soft_dirty_bits_tell_each_write_once(memory: GuestMemory, guest: GuestProcess) -> None:
    if not pagemap.has_soft_dirty():
        pytest.skip("this kernel has no soft-dirty bits")
    tracker = SoftDirty(memory)
    guest.touch(1)
    tracker.collect()
    guest.touch(0, 15, 16)
    assert merge_runs(tracker.look()) == [(0, 1), (15, 2)]
    assert merge_runs(tracker.collect()) == [(0, 1), (15, 2)]
    assert tracker.collect() == []


PRESENT, SWAPPED, FILE, DIRTY = 1 << 63, 1 << 62, 1 << 61, 1 << 55


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of /proc, with a pagemap of eight pages from page 2 on and process id 1."""
    entries = [
        DIRTY, DIRTY,
        PRESENT | DIRTY, PRESENT | FILE | DIRTY, PRESENT, SWAPPED | DIRTY, PRESENT | DIRTY | 0x1FFFFF, 0, DIRTY,
        PRESENT | DIRTY,
    ]  # fmt: skip
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "pagemap").write_bytes(b"".join(entry.to_bytes(8, "little") for entry in entries))
    monkeypatch.setattr(pagemap, "Path", lambda name: Path(name.replace("/proc", str(tmp_path))))
    return tmp_path


@pytest.mark.parametrize("at_once", [1 << 18, 3, 1])
def test_pagemap_entries_are_understood(made_up: Path, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(pagemap, "_ENTRIES_AT_ONCE", at_once)
    found = {
        soft_dirty: merge_runs(pagemap.private_pages(1, 2 * PAGE, 8, soft_dirty=soft_dirty))
        for soft_dirty in (False, True)
    }
    assert found == {False: [(0, 1), (2, 3), (7, 1)], True: [(0, 1), (3, 2), (7, 1)]}


def test_soft_dirty_bits_are_cleared_for_the_process(
    made_up: Path, memory: GuestMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.pid, memory._areas = 1, [(10, 8, 2 * PAGE)]
    assert SoftDirty(memory).collect() == [(10, 1), (13, 2), (17, 1)]
    assert (made_up / "1" / "clear_refs").read_text() == "4"


@pytest.mark.parametrize("bit", [0, 1])
def test_soft_dirty_bits_are_looked_for_on_a_page_just_written(monkeypatch: pytest.MonkeyPatch, bit: int) -> None:
    monkeypatch.setattr(pagemap, "_SOFT_DIRTY", bytes([bit]) * 256)
    assert pagemap.has_soft_dirty() is bool(bit)


def test_the_best_tracker_is_taken(memory: GuestMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking.pagemap, "has_soft_dirty", lambda: True)
    assert isinstance(find_tracker(memory), SoftDirty)
    monkeypatch.setattr(tracking.pagemap, "has_soft_dirty", lambda: False)
    expected = type(watch(memory))
    monkeypatch.setattr(tracking, "register_write_protection", lambda _pid, _areas: None)
    assert isinstance(find_tracker(memory), expected)

    def refuse(_pid: int, _areas: object) -> None:
        raise SnapshotError("not here")

    monkeypatch.setattr(tracking, "register_write_protection", refuse)
    tracker = find_tracker(memory)
    assert isinstance(tracker, PrivatePages)
    assert not tracker.is_exact


def test_buffer_grows_and_is_given_back() -> None:
    buffer = Buffer(PAGE)
    buffer.reserve(3 * PAGE + 1)
    assert buffer.size == 4 * PAGE
    buffer.view(4 * PAGE)[-1] = 9
    assert ctypes.string_at(buffer.address + 4 * PAGE - 1, 1) == b"\x09"
    buffer.reserve(PAGE)
    assert buffer.size == 4 * PAGE
    buffer.shrink()
    assert buffer.size == PAGE
    assert bytes(buffer.view(PAGE)) == bytes(PAGE)
