"""Which pages a VM has written: three ways to know, the best that the host allows.

- *soft-dirty* bits of the page table (Documentation/admin-guide/mm/soft-dirty.rst): most distributions' kernels.
- *write protection* that the kernel lifts by itself at the first write (userfaultfd's WP_ASYNC, read by PAGEMAP_SCAN):
  Linux 6.7 or newer.
- *private pages*: every page that is no longer the memory file's. That set only grows, so a snapshot costs as much as
  was written since the VM was made, not since the last snapshot.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import ClassVar

from agentvm_kernel.errors import SnapshotError
from agentvm_kernel.vm import pagemap
from agentvm_kernel.vm.delta import PAGE, Run
from agentvm_kernel.vm.memory import GuestMemory
from agentvm_kernel.vm.userfault import register_write_protection

_log = logging.getLogger(__name__)


class Tracker(ABC):
    """Knows what a VM wrote.

    Attributes:
        memory: The VM's memory.
    """

    name: ClassVar[str]
    """As ``agentvm doctor`` calls it."""

    is_exact: ClassVar[bool] = True
    """Whether ``collect`` returns only what was written since the last time."""

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory

    @abstractmethod
    def collect(self) -> list[Run]:
        """Return what was written since the last call, and begin anew; the VM is paused.

        Raises:
            SnapshotError: the host does not let this process look.
        """

    @abstractmethod
    def begin(self) -> None:
        """Begin anew, whatever was written; the VM is paused.

        Raises:
            SnapshotError: the host does not let this process do that.
        """

    @abstractmethod
    def look(self) -> list[Run]:
        """Return what ``collect`` would, approximately, while the VM runs; nothing begins anew."""

    def _scan(self, scan: Callable[..., Iterator[Run]], **options: bool) -> list[Run]:
        pid = self.memory.pid
        try:
            return [
                (first + start, length)
                for first, count, address in self.memory.areas
                for start, length in scan(pid, address, count, **options)
            ]
        except OSError as error:
            raise SnapshotError(f"The pages of QEMU {pid} cannot be looked at: {error.strerror}.") from error


class PrivatePages(Tracker):
    """All that differs from the memory file."""

    name = "private pages"
    is_exact = False

    def collect(self) -> list[Run]:
        """See ``Tracker``."""
        return self.look()

    def begin(self) -> None:
        """See ``Tracker``; there is nothing that could begin anew."""

    def look(self) -> list[Run]:
        """See ``Tracker``."""
        return self._scan(pagemap.private_pages, soft_dirty=False)


class SoftDirty(Tracker):
    """The page table's soft-dirty bits."""

    name = "soft-dirty bits"

    def collect(self) -> list[Run]:
        """See ``Tracker``."""
        runs = self.look()
        self.begin()
        return runs

    def begin(self) -> None:
        """See ``Tracker``."""
        try:
            pagemap.clear_soft_dirty(self.memory.pid)
        except OSError as error:
            raise SnapshotError(f"The pages of QEMU {self.memory.pid} cannot be marked: {error.strerror}.") from error

    def look(self) -> list[Run]:
        """See ``Tracker``."""
        return self._scan(pagemap.private_pages, soft_dirty=True)


class WriteProtection(Tracker):
    """Pages are write-protected; the kernel lifts that at the first write, and remembers.

    Args:
        memory: Memory of a paused VM.

    Raises:
        SnapshotError: the host does not allow it.
    """

    name = "write protection"

    def __init__(self, memory: GuestMemory) -> None:
        super().__init__(memory)
        register_write_protection(memory.pid, [(address, count * PAGE) for _, count, address in memory.areas])
        self.collect()

    def collect(self) -> list[Run]:
        """See ``Tracker``."""
        return self._scan(pagemap.written_pages, protect=True)

    def begin(self) -> None:
        """See ``Tracker``."""
        self.collect()

    def look(self) -> list[Run]:
        """See ``Tracker``."""
        return self._scan(pagemap.written_pages, protect=False)


def find_tracker(memory: GuestMemory) -> Tracker:
    """Return the best tracker that the host allows.

    Args:
        memory: Memory of a VM that is paused and has not run yet.
    """
    if pagemap.has_soft_dirty():
        return SoftDirty(memory)
    try:
        return WriteProtection(memory)
    except SnapshotError as error:
        _log.info("%s", error)
        return PrivatePages(memory)
