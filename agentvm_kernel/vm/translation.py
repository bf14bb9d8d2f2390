"""Room for what QEMU translates, touched before somebody waits for it.

Without KVM a QEMU that has loaded a device state translates all that the guest then runs anew, and writes it to a
buffer that nobody has touched: a tenth of the time of a fork's first cell went into clearing that memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from agentvm_kernel.errors import SnapshotError
from agentvm_kernel.vm.delta import PAGE
from agentvm_kernel.vm.memory import touch
from agentvm_kernel.vm.pagemap import absent_pages

_ROOM: Final = 24 << 20
"""What a clone has translated once it has run a short cell."""

_LEAST: Final = 64 << 20
"""A buffer of translated code is no smaller (QEMU's ``tb-size``: an eighth of the host's memory, at most 1 GiB)."""


def prepare_translation(pid: int) -> None:
    """Touch the beginning of a QEMU's buffer for translated code, if it has one; its content stays as it is.

    Args:
        pid: A QEMU under emulation that has not run its guest yet.

    Raises:
        SnapshotError: its memory is not accessible.
    """
    try:
        for address in _buffers(pid):
            touch(pid, [address + page * PAGE for page in absent_pages(pid, address, _ROOM // PAGE)])
            return
    except OSError as error:
        raise SnapshotError(f"The memory of QEMU {pid} is not accessible: {error.strerror}.") from error


def _buffers(pid: int) -> Iterator[int]:
    """Yield where memory begins that is written and executed, and no file's."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        span, mode, _, _, inode, *_ = line.split(maxsplit=5)
        low, high = (int(part, 16) for part in span.split("-"))
        if mode == "rwxp" and inode == "0" and high - low >= _LEAST:
            yield low
