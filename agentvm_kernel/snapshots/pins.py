"""Which snapshots are in use, so that nobody removes them.

Who uses a snapshot holds a shared lock on its folder. The command line sees it as well as the supervisor does, it needs
no room on a full disk, and it ends with the process that holds it.
"""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path


def hold(folder: Path) -> int:
    """Mark a folder as in use until the returned descriptor is closed."""
    descriptor = _open(folder)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def is_used(folder: Path) -> bool:
    """Say whether anybody uses a folder; of those who ask, only one may at a time."""
    descriptor = _open(folder)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _open(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


class Pins:
    """The uses of snapshots that this process counts."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._uses: dict[str, tuple[int, int]] = {}  # descriptor and count

    def add(self, snapshot: str, folder: Path) -> None:
        """Count one more use of a snapshot.

        Args:
            snapshot: Its id.
            folder: Where it lies.

        Raises:
            FileNotFoundError: it does not lie there.
        """
        with self._mutex:
            descriptor, count = self._uses.get(snapshot) or (hold(folder), 0)
            self._uses[snapshot] = descriptor, count + 1

    def drop(self, snapshot: str) -> None:
        """Count one use less."""
        with self._mutex:
            descriptor, count = self._uses.pop(snapshot)
            if count > 1:
                self._uses[snapshot] = descriptor, count - 1
            else:
                os.close(descriptor)

    def drop_all(self) -> None:
        """Use nothing any more."""
        with self._mutex:
            for descriptor, _ in self._uses.values():
                os.close(descriptor)
            self._uses.clear()
