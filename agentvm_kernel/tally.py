"""What a VM has moved so far, in a few bytes that two processes share: who counts, and who has the VM and looks.

To look costs a microsecond and asks nobody, so that it can be done at the beginning and at the end of every cell. The
file is private to its user; it is mapped, so that it may be removed while somebody still looks.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Final, NamedTuple, Self

_WORD: Final = 8


class Traffic(NamedTuple):
    """What a VM has moved since it began. All of it is counted on the host.

    Attributes:
        network_sent: Bytes that it has sent through the gateway.
        network_received: Bytes that it has received.
        connections: Connections that were let through.
        disk_read: Bytes that it has read from its disk, when that was last asked.
        disk_written: Bytes that it has written to its disk, when that was last asked.
    """

    network_sent: int = 0
    network_received: int = 0
    connections: int = 0
    disk_read: int = 0
    disk_written: int = 0


_SIZE: Final = _WORD * len(Traffic._fields)


class Tally:
    """Counts; made by who has the VM in charge.

    Args:
        path: The file, which must not exist; its folder must.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, _SIZE)  # a page that has no room on the disk would end this process
            self._map = mmap.mmap(descriptor, _SIZE)
        finally:
            os.close(descriptor)
        self._words = memoryview(self._map).cast("Q")
        self._is_open = True

    def network(self, sent: int, received: int, connections: int) -> None:
        """Tell of the network; nothing happens once it is closed.

        Args:
            sent: See `Traffic`.
            received: …
            connections: …
        """
        if self._is_open:
            self._words[0], self._words[1], self._words[2] = sent, received, connections

    def disk(self, read: int, written: int) -> None:
        """Tell of the disk, as `network` does.

        Args:
            read: See `Traffic`.
            written: …
        """
        if self._is_open:
            self._words[3], self._words[4] = read, written

    def close(self) -> None:
        """Count no more, and remove the file. Idempotent."""
        if self._is_open:
            self._is_open = False
            self._words.release()
            self._map.close()
            self.path.unlink(missing_ok=True)


class TallyReader:
    """Looks at somebody else's `Tally`.

    Args:
        path: The file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is none.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != _SIZE:
                raise ValueError(f"{path} is no tally")
            self._map = mmap.mmap(file.fileno(), _SIZE, access=mmap.ACCESS_READ)
        self._words = memoryview(self._map).cast("Q")

    def read(self) -> Traffic:
        """Return what has been counted by now; every number for itself is whole."""
        return Traffic(*self._words)

    def close(self) -> None:
        """Look no more."""
        self._words.release()
        self._map.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
