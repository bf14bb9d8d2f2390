"""Which snapshots are in use, so that nobody removes them; in a file, so that the command line knows it too."""

from __future__ import annotations

import fcntl
import json
import threading
from collections import Counter
from pathlib import Path
from typing import IO

from agentvm_kernel.durable import Disk
from agentvm_kernel.errors import SnapshotError


class Pins:
    """Counts uses of snapshots.

    The supervisor *owns* the store as long as it lives: it holds a lock that ends with its process. Its pins are in a
    file beside that lock, and mean something only as long as the lock is held.

    Args:
        folder: The store's folder.
        disk: What writes.
    """

    def __init__(self, folder: Path, disk: Disk) -> None:
        self._lock_file = folder / "owner.lock"
        self._file = folder / "pins.json"
        self._disk = disk
        self._counts: Counter[str] = Counter()
        self._mutex = threading.Lock()
        self._owned: IO[str] | None = None

    def own(self) -> None:
        """Become the owner; pins of a dead one are dropped.

        Raises:
            SnapshotError: another process is the owner.
        """
        lock = self._lock_file.open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise SnapshotError(
                "Another supervisor uses the snapshots.", "End it: `agentvm supervisor --stop`."
            ) from error
        self._owned = lock
        with self._mutex:
            self._write()

    def disown(self) -> None:
        """Give the store up."""
        if self._owned is not None:
            self._owned.close()
            self._owned = None

    def add(self, snapshot: str) -> None:
        """Count one more use of a snapshot."""
        with self._mutex:
            self._counts[snapshot] += 1
            if self._counts[snapshot] == 1:
                self._write()

    def drop(self, snapshot: str) -> None:
        """Count one use less."""
        with self._mutex:
            self._counts[snapshot] -= 1
            if self._counts[snapshot] <= 0:
                del self._counts[snapshot]
                self._write()

    def all(self) -> set[str]:
        """Return the ids of snapshots in use, by this process or by the owner."""
        with self._mutex:
            mine = set(self._counts)
        return mine if self._owned is not None else mine | self._of_owner()

    def _write(self) -> None:
        if self._owned is not None:
            # Not synced: after a power cut there is no owner, so nobody asks what was in it.
            new = self._file.with_name(".pins.json.new")
            new.unlink(missing_ok=True)
            self._disk.write(new, json.dumps(sorted(self._counts)).encode())
            self._disk.rename(new, self._file)

    def _of_owner(self) -> set[str]:
        with self._lock_file.open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return set(json.loads(self._file.read_bytes()))
        return set()
