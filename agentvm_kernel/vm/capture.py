"""``snapshot(VM)``: what the VM wrote since its last snapshot, saved during a pause of a few milliseconds.

During the pause: device state, the pages written (copied into a buffer that was touched before), and a new overlay on
the disk if it was written. Files are written after it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agentvm_kernel.errors import AgentVMError, DiskFullError
from agentvm_kernel.vm.clone import VM
from agentvm_kernel.vm.content import Content, changed_blocks
from agentvm_kernel.vm.delta import PAGE, Run, merge_runs, write_delta
from agentvm_kernel.vm.disk import create_overlay, is_written
from agentvm_kernel.vm.memory import Buffer
from agentvm_kernel.vm.tracking import Tracker

_log = logging.getLogger(__name__)

_KEPT: Final = 16 << 20
_SLACK: Final = 4 << 20  # what a running VM may write between the look and the pause


OnResume = Callable[[float, int], None]


@dataclass(frozen=True)
class Capture:
    """What was saved of a VM; its files lie in the VM's folder until a store takes them.

    Attributes:
        pause: How long the VM stood still, seconds.
        runs: The pages written since its last snapshot.
        device_state: QEMU's device state.
        delta: The pages' content.
        layers: The disk layers that were frozen, topmost first; none if the disk was not written.
        over: How many of the disk layers of the VM's last snapshot, lowest first, they lie over; ``None`` for all.
        is_dump: The device state is a dump of QEMU's own, with all memory in it.
    """

    pause: float
    runs: list[Run]
    device_state: Path
    delta: Path
    layers: tuple[Path, ...]
    over: int | None = None
    is_dump: bool = False


class Capturer:
    """Takes snapshots of VMs, one at a time: they share the buffer.

    Args:
        owner: The user under which QEMU runs, if another.
    """

    def __init__(self, owner: tuple[int, int] | None) -> None:
        self._owner = owner
        self._buffer = Buffer(_KEPT)
        self._turn = asyncio.Lock()

    async def capture(self, vm: VM, on_resume: OnResume = lambda _pause, _written: None) -> Capture:
        """Save what a VM wrote.

        Args:
            vm: A running VM.
            on_resume: Called as soon as it runs on, with the pause in seconds and the bytes of memory that were saved.

        Raises:
            SnapshotError: it could not be saved; the VM runs on, and the next snapshot will hold what this one would.
            ShareError: something in the guest keeps the shared folder busy.
        """
        tracker, content = vm.tracker, vm.content
        await vm.settle()
        # A guest that is slow to let go of its devices keeps no other waiting.
        async with vm.sharing.ended(), vm.without_card(), self._turn:
            vm.captures += 1
            if tracker is None or content is None:
                return await self._dump(vm, on_resume)
            state = vm.folder / f"device-state-{vm.captures}"
            delta = vm.folder / f"memory-{vm.captures}.delta"
            await self._prepare_overlay(vm)
            await asyncio.to_thread(self._reserve, vm, tracker)
            began = time.perf_counter()
            await vm.pause()
            try:
                await _both(vm.machine.save(state), asyncio.to_thread(self._copy_pages, vm, tracker))
                await self._freeze_disk(vm)
            finally:
                await vm.machine.resume()
            pause = time.perf_counter() - began
            on_resume(pause, _size(vm.unsaved_runs))
            try:
                await asyncio.to_thread(self._write_delta, vm.unsaved_runs, content, delta)
            finally:
                self._buffer.shrink()
            capture = Capture(pause, vm.unsaved_runs, state, delta, *_take_layers(vm))
            vm.unsaved_runs = []
            try:
                await self._prepare_overlay(vm)
            except AgentVMError as error:  # this snapshot is taken; the next one will try again
                _log.warning("no overlay for the next snapshot of %s: %s", vm.id, error)
            return capture

    async def _dump(self, vm: VM, on_resume: OnResume) -> Capture:
        """Let QEMU write everything: where its memory cannot be reached, and of a VM that came from a dump."""
        state, delta = vm.folder / f"device-state-{vm.captures}", vm.folder / f"memory-{vm.captures}.delta"
        await self._prepare_overlay(vm)
        began = time.perf_counter()
        await vm.pause()
        try:
            # First the disk: at the end of a migration QEMU lets go of it until it runs on.
            await self._freeze_disk(vm)
            await vm.machine.dump(state)
        finally:
            await vm.machine.resume()
        pause = time.perf_counter() - began
        on_resume(pause, 0)
        with _writing(delta):
            write_delta(delta, [], [])
        return Capture(pause, [], state, delta, *_take_layers(vm), is_dump=True)

    async def _prepare_overlay(self, vm: VM) -> None:
        """Have an overlay at hand for the case that the disk was written; for the next snapshot, after this one."""
        if vm.spare_overlay is None:
            vm.overlays += 1
            overlay = vm.folder / f"disk-{vm.overlays}.qcow2"
            await create_overlay(overlay, vm.snapshot.hardware.disk_gb, owner=self._owner)
            await vm.machine.prepare_overlay(overlay)
            vm.spare_overlay = overlay

    def _reserve(self, vm: VM, tracker: Tracker) -> None:
        """Make room for what will have to be copied, so that the pause does not have to."""
        self._buffer.reserve(_size(vm.unsaved_runs) + _size(tracker.look()) + _SLACK)

    def _copy_pages(self, vm: VM, tracker: Tracker) -> None:
        written = tracker.collect()
        vm.unsaved_runs = merge_runs(vm.unsaved_runs, written) if vm.unsaved_runs else written
        self._buffer.reserve(_size(vm.unsaved_runs))
        tracker.memory.read(vm.unsaved_runs, self._buffer)

    @staticmethod
    async def _freeze_disk(vm: VM) -> None:
        if vm.spare_overlay is not None and is_written(vm.overlay, vm.spare_overlay):
            await vm.machine.freeze_disk()
            vm.unsaved_layers.insert(0, vm.overlay)
            vm.overlay, vm.spare_overlay = vm.spare_overlay, None

    def _write_delta(self, runs: list[Run], content: Content, path: Path) -> None:
        """Write what differs from the VM's last snapshot; runs after the pause."""
        with self._buffer.view(_size(runs)) as pages, _writing(path):
            changed, parts = changed_blocks(content, runs, pages)
            write_delta(path, changed, parts)
            del parts


async def _both(one: Coroutine[object, object, None], other: Coroutine[object, object, None]) -> None:
    """Do two things at once; whatever happens, none of them goes on afterwards."""
    for outcome in await asyncio.gather(one, other, return_exceptions=True):
        if outcome is not None:
            raise outcome


def _take_layers(vm: VM) -> tuple[tuple[Path, ...], int | None]:
    """Return the layers that a VM's snapshot gets, and what they lie over."""
    layers, over = tuple(vm.unsaved_layers), vm.over
    if not layers:
        return (), None
    vm.unsaved_layers, vm.over = [], None
    return layers, over


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Say what it means that a file cannot be written, and leave no half of it."""
    try:
        yield
    except OSError as error:
        path.unlink(missing_ok=True)
        raise DiskFullError(
            f"There is no room for a snapshot: {error.strerror}.", "Free some space in the state folder."
        ) from error


def _size(runs: Sequence[Run]) -> int:
    return sum(count for _, count in runs) * PAGE
