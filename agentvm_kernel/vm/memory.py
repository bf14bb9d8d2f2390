"""A guest's memory, seen from the host: QEMU's private view of a snapshot's memory file (proc(5): maps, mem)."""

from __future__ import annotations

import ctypes
import mmap
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path

from agentvm_kernel.errors import SnapshotError
from agentvm_kernel.vm.delta import PAGE, Layers, Run

_MAX_VECTORS = 1024  # IOV_MAX
_LONGEST = 1 << 20  # so that no call copies more than 1 GiB; the kernel stops short at 2 GiB
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
        _copy(self.pid, _libc.process_vm_readv, _pairs(buffer.address, self._addresses(runs)))

    def write(self, layers: Layers) -> None:
        """Write the newest content of every page that is in some delta."""
        with ExitStack() as stack:
            files = {path: stack.enter_context(_mapped(path)) for path in layers.files}
            pairs = (
                pair
                for first, count, path, offset in layers.pieces()
                for pair in _pairs(files[path] + offset, self._addresses([(first, count)]))
            )
            _copy(self.pid, _libc.process_vm_writev, pairs)

    def _addresses(self, runs: Iterable[Run]) -> Iterator[tuple[int, int]]:
        for first, count in runs:
            end = first + count
            for start, length, address in self._areas:
                low, high = max(first, start), min(end, start + length)
                if low < high:
                    yield address + (low - start) * PAGE, (high - low) * PAGE


def _pairs(local: int, remote: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """Yield local address, remote address, length of pieces; the local side is without gaps."""
    for address, length in remote:
        for start in range(0, length, _LONGEST):
            yield local + start, address + start, min(length - start, _LONGEST)
        local += length


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


@contextmanager
def _mapped(path: Path) -> Iterator[int]:
    """Provide the address of a file's content, mapped into this process."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE) as view:
        yield ctypes.addressof(ctypes.c_char.from_buffer(view))


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
            self._map.close()
            self.size = -(-size // PAGE) * PAGE
            self._map = self._new(self.size)

    def shrink(self) -> None:
        """Give back what was reserved beyond what is kept."""
        if self.size > self._keep:
            self._map.close()
            self._map, self.size = self._new(self._keep), self._keep

    @property
    def address(self) -> int:
        """Where it lies in this process."""
        return ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    def view(self, size: int) -> memoryview:
        """Return its first bytes; to be released before the next ``reserve``."""
        return memoryview(self._map)[:size]
