"""The chain of a VM's disk stays short, at a cost that stays small, and whatever goes wrong costs no snapshot."""
# ruff: noqa: F811 - fixtures are imported by name

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from capture_bed import capturer, golden, hypervisor, keep, machine, vm  # noqa: F401
from guest_process import MemoryMachine
from hypothesis import given
from hypothesis import strategies as st

from agentvm_kernel.errors import HypervisorError
from agentvm_kernel.vm import chain as chain_module
from agentvm_kernel.vm.capture import Capture, Capturer
from agentvm_kernel.vm.chain import LONG, LONGEST, count_to_merge, keep_short
from agentvm_kernel.vm.clone import VM

PLENTY = 10**12


def grow(written: list[int]) -> tuple[int, int]:
    """Take snapshots that write so much each. Returns the longest chain, and how much was copied."""
    sizes: list[int] = []
    longest = copied = merged = 0
    for size in written:
        sizes.insert(0, size + merged)
        longest = max(longest, len(sizes))
        count = count_to_merge(sizes)
        merged = sum(sizes[:count])
        copied += merged
        del sizes[:count]
    return longest, copied


@given(st.lists(st.integers(1, 10**9), max_size=100))
def test_no_chain_gets_longer_whatever_is_written(written: list[int]) -> None:
    assert grow(written)[0] <= LONG + 1


def test_what_is_copied_grows_with_the_logarithm_of_the_number_of_snapshots() -> None:
    copies = {count: grow([1000] * count)[1] / (1000 * count) for count in (20, 200, 2000, 20000)}
    assert copies[20] < 1
    assert copies[200] < 2
    assert copies[2000] < 4
    assert copies[20000] < 6


@pytest.mark.parametrize(
    ("sizes", "count"),
    [
        pytest.param([], 0, id="none"),
        pytest.param([1] * LONG, 0, id="short"),
        pytest.param([1] * (LONG + 1), LONG + 1, id="all alike"),
        pytest.param([1] * LONG + [10**9], LONG, id="a large old one stays"),
        pytest.param([10**9] + [1] * LONG, LONG + 1, id="a large new one is worth it only for all"),
        pytest.param([1] * 200, 200, id="from before chains were kept short"),
    ],
)
def test_small_young_layers_are_merged_first(sizes: list[int], count: int) -> None:
    assert count_to_merge(sizes) == count


class Book:
    """Takes snapshots of a VM whose guest writes to the disk before each."""

    def __init__(self, vm: VM, machine: MemoryMachine, capturer: Capturer, folder: Path) -> None:
        self.vm = vm
        self.machine = machine
        self._capturer = capturer
        self._folder = folder
        self._number = 0

    async def capture(self) -> Capture:
        return await self._capturer.capture(self.vm)

    async def step(self, allowance: Callable[[], int] = lambda: PLENTY) -> None:
        capture = await self.capture()
        self._number += 1
        keep(self.vm, capture, self._folder / f"snapshot-{self._number}")
        keep_short(self.vm, allowance)

    async def go_on(self, count: int, allowance: Callable[[], int] = lambda: PLENTY) -> None:
        for _ in range(count):
            self.machine.write_disk()
            await self.step(allowance)
        await self.vm.settle()


@pytest.fixture
def book(vm: VM, machine: MemoryMachine, capturer: Capturer, short_tmp: Path) -> Book:
    return Book(vm, machine, capturer, short_tmp)


async def test_snapshot_after_a_merge_lies_over_what_is_left(book: Book) -> None:
    await book.go_on(LONG)
    assert book.vm.snapshot.depth == LONG
    assert not [call for call in book.machine.calls if call.startswith("merge")]
    await book.go_on(1)
    assert book.machine.calls[-1] == f"merge {LONG + 1}"
    await book.step()  # the guest wrote nothing since, but its disk has changed
    assert book.vm.snapshot.manifest.over == 0
    assert [layer.name for layer in book.vm.snapshot.layers] == [f"disk-{LONG + 2}.qcow2"]
    await book.go_on(1)
    assert book.vm.snapshot.manifest.over is None
    assert book.vm.snapshot.depth == 2


async def test_snapshot_that_cannot_be_kept_passes_on_what_it_lies_over(book: Book) -> None:
    await book.go_on(LONG + 1)
    for number in (1, 2):
        book.machine.write_disk()
        capture = await book.capture()
        assert (capture.over, len(capture.layers)) == (0, number)
        book.vm.take_back(capture.runs, capture.layers, capture.over)
    book.machine.faults.add("save")
    with pytest.raises(HypervisorError):
        await book.capture()
    capture = await book.capture()
    assert (capture.over, len(capture.layers)) == (0, 2)
    # One that has no layers, and is not kept either, changes nothing.
    later = await book.capture()
    book.vm.take_back(capture.runs, capture.layers, capture.over)
    book.vm.take_back(later.runs, later.layers, later.over)
    assert (await book.capture()).over == 0


async def turns_until(condition: Callable[[], bool]) -> None:
    """Wait for what must not happen, for as long as it would take: everything else takes fewer turns of a thread."""
    for _ in range(500):
        if condition():
            return
        await asyncio.to_thread(int)


async def test_one_merge_is_enough(book: Book) -> None:
    await book.go_on(LONG)
    book.machine.write_disk()
    await book.step()
    for _ in range(2):
        keep_short(book.vm, lambda: PLENTY)
        await book.vm.settle()
    assert [call for call in book.machine.calls if call.startswith("merge")] == [f"merge {LONG + 1}"]


async def test_the_next_snapshot_waits_for_a_merge(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    async def merge(_count: int) -> None:
        await turns_until(lambda: book.machine.calls.count("pause") > 1)
        book.machine.calls.append("merged")
        book.machine.write_disk()

    monkeypatch.setattr(book.machine, "merge_layers", merge)
    await book.go_on(LONG)
    book.machine.calls.clear()
    book.machine.write_disk()
    await book.step()
    await book.step()
    calls = [call for call in book.machine.calls if call in {"pause", "merged"}]
    assert calls == ["pause", "merged", "pause"]
    assert book.vm.snapshot.depth == 1


@pytest.mark.parametrize("depth", [LONGEST - 1, LONGEST])
async def test_only_a_very_long_chain_is_shortened_before_a_snapshot(book: Book, depth: int) -> None:
    await book.go_on(depth, lambda: 0)
    book.vm.shortening = None
    book.machine.write_disk()
    keep_short(book.vm, lambda: PLENTY, more_than=LONGEST - 1)
    await book.step()
    assert book.vm.snapshot.depth == (1 if depth == LONGEST else LONGEST)


async def test_layers_that_no_snapshot_has_yet_are_not_merged(book: Book) -> None:
    await book.go_on(LONGEST, lambda: 0)
    book.machine.write_disk()
    capture = await book.capture()
    book.vm.take_back(capture.runs, capture.layers, capture.over)
    keep_short(book.vm, lambda: PLENTY)
    assert not book.vm.is_shortening


async def test_merge_that_fails_is_tried_again_after_the_next_snapshot(
    book: Book, caplog: pytest.LogCaptureFixture
) -> None:
    book.machine.faults.add("merge")
    await book.go_on(LONG + 1)
    assert "refused to merge" in caplog.text
    assert book.vm.over is None
    await book.go_on(1)
    assert book.vm.snapshot.depth == LONG + 2
    assert book.machine.calls[-1] == f"merge {LONG + 2}"
    await book.go_on(1)
    assert book.vm.snapshot.depth == 1


@pytest.mark.parametrize("where", ["quota", "disk", "gone"])
async def test_without_room_layers_stay_as_they_are(
    book: Book, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def gone() -> int:
        raise FileNotFoundError("lock")

    total = (LONG + 1) * book.vm.overlay.stat().st_size
    if where == "disk":
        usage = shutil.disk_usage(book.vm.folder)
        monkeypatch.setattr(chain_module.shutil, "disk_usage", lambda _: usage._replace(free=2 * total))
    await book.go_on(LONG + 1, {"quota": lambda: total, "gone": gone}.get(where, lambda: PLENTY))
    assert "merge" in caplog.text
    assert not [call for call in book.machine.calls if call.startswith("merge")]
    assert (await book.capture()).over is None


async def test_vm_that_ends_amid_a_merge_leaves_nothing(
    book: Book, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, left = asyncio.Event(), []

    async def merge(_count: int) -> None:
        begun.set()
        reason = await asyncio.shield(book.machine.ended)
        await turns_until(lambda: not book.vm.folder.exists())
        left.append(book.vm.folder.exists())
        raise HypervisorError(f"QEMU ended: {reason}")

    monkeypatch.setattr(book.machine, "merge_layers", merge)
    await book.go_on(LONG)
    going = asyncio.create_task(book.go_on(1))
    await begun.wait()
    await book.vm.end()
    await going
    assert left == [True]
    assert not book.vm.folder.exists()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
