"""The chain of a disk's layers stays short, whatever the number of snapshots.

Each snapshot freezes a layer, and QEMU opens a chain in a time that grows with the square of its length. So a running
VM's QEMU copies what some of the topmost layers hold into the overlay on top, which thereby comes to lie over the layer
below them; the next snapshot, which freezes it, has a short chain. The layers themselves stay as they are: they belong
to older snapshots. Nothing but the VM's own QEMU ever reads them, since guests wrote them.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Final

from agentvm_kernel.errors import AgentVMError
from agentvm_kernel.vm.clone import VM

_log = logging.getLogger(__name__)

LONG: Final = 12
"""More layers than so many, above the golden snapshot's, are too many. Opening them takes a tenth of a rollback."""
LONGEST: Final = 16
"""With so many it is not left to the background: one who always goes back again never lets that come to its end."""


def count_to_merge(sizes: Sequence[int]) -> int:
    """Return how many of the topmost layers are to become one.

    As in a log-structured merge tree, young and small layers are merged often and large ones rarely: of all ways to
    shorten the chain, the one that copies the fewest bytes for the square of the layers that it saves. With the square
    the copies grow with the logarithm of the snapshots (twice all that is written in 200 of them, five times in
    10,000), whether they write alike or not; without it they grow faster.

    Args:
        sizes: Of the layers, bytes, topmost first.

    Returns:
        None if the chain is short enough.
    """
    if len(sizes) <= LONG:
        return 0
    copied = list(accumulate(sizes))
    return min(range(2, len(sizes) + 1), key=lambda count: copied[count - 1] / (count - 1) ** 2)


def keep_short(vm: VM, allowance: Callable[[], int], *, more_than: int = LONG) -> None:
    """Begin to shorten the chain of a running VM's disk, if it is long; the VM's next snapshot waits for the end.

    Called when a snapshot with a new layer is stored, and before one is taken of a VM whose chain is very long.

    Args:
        vm: The VM.
        allowance: Returns how many bytes the next snapshot may become larger by; called in a thread.
        more_than: Do so if there are more layers than this.
    """
    sizes = [layer.size for layer in reversed(vm.snapshot.layers)]
    # What the overlay lies over has to be the snapshot's disk, and all of it.
    if len(sizes) <= more_than or vm.over is not None or vm.unsaved_layers or vm.is_shortening:
        return
    if count := count_to_merge(sizes):
        vm.shortening = asyncio.create_task(_shorten(vm, count, sum(sizes[:count]), allowance))


async def _shorten(vm: VM, count: int, copied: int, allowance: Callable[[], int]) -> None:
    try:
        if await asyncio.to_thread(_has_room, vm, copied, allowance):
            await vm.machine.merge_layers(count)
            vm.over = vm.snapshot.depth - count
        else:
            _log.warning("no room to merge %d disk layers of %s: its disk gets slower to open", count, vm.id)
    except (AgentVMError, OSError) as error:
        if not vm.ended.done():
            _log.warning("%d disk layers of %s could not be merged: %s", count, vm.id, error)


def _has_room(vm: VM, copied: int, allowance: Callable[[], int]) -> bool:
    # Full disks stop guests that write: leave as much again to them.
    return shutil.disk_usage(vm.folder).free >= 2 * copied and allowance() >= copied
