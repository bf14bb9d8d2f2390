"""What the kernel tells about a process's pages (Documentation/admin-guide/mm/pagemap.rst)."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import re
import struct
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from agentvm_kernel.vm.delta import PAGE

_ENTRY: Final = 8
_ENTRIES_AT_ONCE: Final = 1 << 18

# Bits 63 (present), 62 (swapped) and 61 (file page) are in an entry's byte 7, bit 55 (soft-dirty) in its byte 6.
_PRIVATE: Final = bytes(int(bool(byte & 0xC0) and not byte & 0x20) for byte in range(256))
_SOFT_DIRTY: Final = bytes(int(bool(byte & 0x80)) for byte in range(256))
_ABSENT: Final = bytes(int(not byte & 0xC0) for byte in range(256))
_MARKED: Final = re.compile(rb"\x01+")

_SCAN: Final = 0xC0606610  # _IOWR('f', 16, struct pm_scan_arg)
_SCAN_ARGUMENT: Final = struct.Struct("12Q")
_REGION_WORDS: Final = 3
_REGIONS_AT_ONCE: Final = 4096
_PROTECT_AND_CHECK: Final = 0b11  # PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC
# Asked for nothing else, the kernel need not look at the pages themselves: forty times as fast.
_IS_WRITTEN: Final = 1 << 1


def private_pages(pid: int, address: int, count: int, *, soft_dirty: bool) -> Iterator[tuple[int, int]]:
    """Yield the runs of pages that are a process's own copies, not the mapped file's.

    Args:
        pid: The process.
        address: Where to begin.
        count: Number of pages.
        soft_dirty: Only those that were written since the soft-dirty bits were last cleared.

    Yields:
        First page, counted from the address, and number of pages; runs may touch.
    """
    with Path(f"/proc/{pid}/pagemap").open("rb", buffering=0) as pagemap:
        pagemap.seek(address // PAGE * _ENTRY)
        for base in range(0, count, _ENTRIES_AT_ONCE):
            entries = pagemap.read(min(count - base, _ENTRIES_AT_ONCE) * _ENTRY)
            marks = entries[7::_ENTRY].translate(_PRIVATE)
            if soft_dirty:
                both = int.from_bytes(marks) & int.from_bytes(entries[6::_ENTRY].translate(_SOFT_DIRTY))
                marks = both.to_bytes(len(marks))
            for match in _MARKED.finditer(marks):
                yield base + match.start(), match.end() - match.start()


def absent_pages(pid: int, address: int, count: int) -> list[int]:
    """Return which pages of a process nobody has touched.

    Args:
        pid: The process.
        address: Where to begin.
        count: Number of pages.

    Raises:
        OSError: the process is gone, or not to be looked at.
    """
    with Path(f"/proc/{pid}/pagemap").open("rb", buffering=0) as pagemap:
        pagemap.seek(address // PAGE * _ENTRY)
        marks = pagemap.read(count * _ENTRY)[7::_ENTRY].translate(_ABSENT)
    return [page for page, is_absent in enumerate(marks) if is_absent]


def clear_soft_dirty(pid: int) -> None:
    """Clear a process's soft-dirty bits (proc(5), clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("4")


def has_soft_dirty() -> bool:
    """Say whether this kernel has soft-dirty bits: a page that was just written must carry one."""
    with mmap.mmap(-1, PAGE) as page, Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
        page[0] = 1
        pagemap.seek(ctypes.addressof(ctypes.c_char.from_buffer(page)) // PAGE * _ENTRY)
        return bool(_SOFT_DIRTY[pagemap.read(_ENTRY)[6]])


def written_pages(pid: int, address: int, count: int, *, protect: bool) -> Iterator[tuple[int, int]]:
    """Yield the runs of pages that were written since they were write-protected (PAGEMAP_SCAN, Linux 6.7).

    Args:
        pid: The process; the range must be registered with a userfaultfd of its own (``userfault.py``).
        address: Where to begin.
        count: Number of pages.
        protect: Write-protect what is found, and what was never touched, in the same go.

    Yields:
        First page, counted from the address, and number of pages; runs may touch.

    Raises:
        OSError: the kernel cannot do that.
    """
    regions = array("Q", bytes(_REGIONS_AT_ONCE * _REGION_WORDS * 8))
    start, end = address, address + count * PAGE
    with Path(f"/proc/{pid}/pagemap").open("rb", buffering=0) as pagemap:
        while start < end:
            argument = bytearray(_SCAN_ARGUMENT.size)
            _SCAN_ARGUMENT.pack_into(
                argument, 0, _SCAN_ARGUMENT.size, _PROTECT_AND_CHECK if protect else 0, start, end, 0,
                regions.buffer_info()[0], _REGIONS_AT_ONCE, 0, 0, _IS_WRITTEN, 0, _IS_WRITTEN,
            )  # fmt: skip
            found = fcntl.ioctl(pagemap, _SCAN, argument)
            start = _SCAN_ARGUMENT.unpack(argument)[4]
            last = found * _REGION_WORDS
            for low, high in zip(regions[0:last:_REGION_WORDS], regions[1:last:_REGION_WORDS], strict=True):
                yield (low - address) // PAGE, (high - low) // PAGE
