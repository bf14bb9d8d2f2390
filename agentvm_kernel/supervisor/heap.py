"""Memory that the C library keeps for later: much of it after many VMs, and the host has use for it."""

from __future__ import annotations

import asyncio
import ctypes
from typing import Final

_SECONDS: Final = 10.0
_MOST_SECONDS: Final = 120.0

_libc = ctypes.CDLL(None)


class Heap:
    """Gives back to the host what this process has freed.

    Meanwhile nobody gets memory, which somebody who waits for a VM would notice: so it waits for a calm.

    Args:
        seconds: How long nothing must have been asked for.
        most: How long after the first wish at the latest.
    """

    def __init__(self, seconds: float = _SECONDS, most: float = _MOST_SECONDS) -> None:
        self._seconds = seconds
        self._most = most
        self._latest = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def trim_soon(self) -> None:
        """Do it in a while, beside whatever else goes on."""
        loop = asyncio.get_running_loop()
        if self._timer is None:
            self._latest = loop.time() + self._most
        elif self._timer.when() >= self._latest:
            return
        else:
            self._timer.cancel()
        self._timer = loop.call_at(min(loop.time() + self._seconds, self._latest), self._begin)

    def close(self) -> None:
        """Do no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _begin(self) -> None:
        self._timer = None
        asyncio.get_running_loop().run_in_executor(None, trim)


def trim() -> None:
    """Give it back now; nothing happens where the C library is not glibc, which alone keeps so much."""
    if (malloc_trim := getattr(_libc, "malloc_trim", None)) is not None:
        malloc_trim(0)
