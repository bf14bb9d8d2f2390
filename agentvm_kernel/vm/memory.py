"""A guest's memory, seen from the host: QEMU's private view of a snapshot's memory file (proc(5): maps, mem)."""

from __future__ import annotations

import ctypes
import mmap
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from agentvm_kernel.errors import SnapshotError
from agentvm_kernel.vm.delta import PAGE, Run

_MAX_VECTORS = 1024  # IOV_MAX
_LONGEST = 1 << 20  # so that no call copies more than 1 GiB; the kernel stops short at 2 GiB
_ZERO = bytearray(1)
_libc = ctypes.CDLL(None, use_errno=True)
for _function in (_libc.process_vm_readv, _libc.process_vm_writev):
    _function.restype = ctypes.c_ssize_t
    _function.argtypes = (
        ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong
    )  # fmt: skip


class GuestMemory:
    """Reads and writes the memory of a paused VM.

    Args:
        pid: QEMU's process id.
        backing: The file of which QEMU has a private view.
        size: Size of the guest's memory in bytes.

    Raises:
        SnapshotError: QEMU's memory is not accessible.
    """

    def __init__(self, pid: int, backing: Path, size: int) -> None:
        self.pid = pid
        self.pages = size // PAGE
        # First page, number of pages, address in QEMU's address space; ascending and without gaps.
        self._areas = sorted(_find_areas(pid, backing))
        if sum(count for _, count, _ in self._areas) != self.pages:
            raise SnapshotError(f"QEMU {pid} does not have a private view of {backing}.")

    @property
    def areas(self) -> Iterator[tuple[int, int, int]]:
        """First page, number of pages and address of each part."""
        return iter(self._areas)

    def read(self, runs: Sequence[Run], buffer: Buffer) -> None:
        """Copy pages into a buffer's beginning, one after the other.

        Args:
            runs: Which.
            buffer: Has room for them.
        """
        _copy(self.pid, _libc.process_vm_readv, self._pairs(_placed(runs, buffer.address)))

    def write(self, pieces: Iterable[tuple[int, int, int]]) -> None:
        """Write pieces of memory.

        Args:
            pieces: Address in the guest's memory, address of the content in this process, length in bytes.
        """
        _copy(self.pid, _libc.process_vm_writev, self._pairs(pieces))

    def _pairs(self, pieces: Iterable[tuple[int, int, int]]) -> Iterator[tuple[int, int, int]]:
        """Yield address in this process, address in QEMU, length of what lies at places in the guest's memory."""
        low = high = base = 0  # the part in which the last one lay: mostly there is but one
        for place, local, length in pieces:
            if low <= place and place + length <= high and length <= _LONGEST:
                yield local, base + place, length
                continue
            end = place + length
            for first, count, address in self._areas:
                low, high, base = first * PAGE, (first + count) * PAGE, address - first * PAGE
                for start in range(max(place, low), min(end, high), _LONGEST):
                    yield local + start - place, base + start, min(end, high, start + _LONGEST) - start
                if end <= high:
                    break


def _placed(runs: Iterable[Run], address: int) -> Iterator[tuple[int, int, int]]:
    """Yield where runs of pages lie in the guest, where in a buffer without gaps, and their length."""
    for first, count in runs:
        yield first * PAGE, address, count * PAGE
        address += count * PAGE


def _copy(pid: int, function: ctypes._NamedFuncPointer, pairs: Iterator[tuple[int, int, int]]) -> None:
    """Copy between this process and another."""
    while part := list(islice(pairs, _MAX_VECTORS)):
        ours = array("Q", [value for local, _, length in part for value in (local, length)])
        theirs = array("Q", [value for _, remote, length in part for value in (remote, length)])
        total = sum(length for _, _, length in part)
        done = function(pid, ours.buffer_info()[0], len(part), theirs.buffer_info()[0], len(part), 0)
        if done != total:
            error = os.strerror(ctypes.get_errno()) if done < 0 else f"{done} of {total} bytes"
            raise SnapshotError(f"The memory of QEMU {pid} could not be copied: {error}.")


def touch(pid: int, addresses: Sequence[int]) -> None:
    """Let a process have memory at some addresses, each on a page that it has not touched: a zero, as is there anyway.

    Args:
        pid: A process that does not run meanwhile.
        addresses: Where, in that process.

    Raises:
        SnapshotError: its memory is not accessible.
    """
    zero = address_of(memoryview(_ZERO))
    _copy(pid, _libc.process_vm_writev, ((zero, address, 1) for address in addresses))


def address_of(content: memoryview) -> int:
    """Return where a writable buffer lies in this process."""
    return ctypes.addressof(ctypes.c_char.from_buffer(content))


def _find_areas(pid: int, backing: Path) -> Iterator[tuple[int, int, int]]:
    try:
        file = backing.stat()
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError as error:
        raise SnapshotError(f"The memory of QEMU {pid} is not accessible: {error.strerror}.") from error
    device = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}"
    for line in lines:
        span, mode, offset, where, inode, *_ = line.split(maxsplit=5)
        if where == device and int(inode) == file.st_ino and mode.endswith("p"):
            low, high = (int(part, 16) for part in span.split("-"))
            yield int(offset, 16) // PAGE, (high - low) // PAGE, low


class Buffer:
    """Memory to copy pages through, touched before it is needed: touching fresh memory is slower than the copy.

    Args:
        keep: Bytes that stay when the buffer is let go.
    """

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._map = self._new(keep)
        self.size = keep

    @staticmethod
    def _new(size: int) -> mmap.mmap:
        # MAP_POPULATE touches every page here and now.
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)

    def reserve(self, size: int) -> None:
        """Make room; what it held is lost."""
        if size > self.size:
            self._replace(-(-size // PAGE) * PAGE)

    def shrink(self) -> None:
        """Give back what was reserved beyond what is kept."""
        if self.size > self._keep:
            self._replace(self._keep)

    def _replace(self, size: int) -> None:
        # The old one is not closed: a failed write's traceback may hold views of it. It goes with the last of them.
        self._map, self.size = self._new(size), size

    @property
    def address(self) -> int:
        """Where it lies in this process."""
        return address_of(memoryview(self._map))

    def view(self, size: int) -> memoryview:
        """Return its first bytes; to be released before the next ``reserve``."""
        return memoryview(self._map)[:size]
