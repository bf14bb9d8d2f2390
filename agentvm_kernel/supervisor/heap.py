"""Memory that the C library keeps for later: much of it after many VMs, and the host has use for it."""

from __future__ import annotations

import asyncio
import ctypes
from typing import Final

_SECONDS: Final = 10.0

_libc = ctypes.CDLL(None)


class Heap:
    """Gives back to the host what this process has freed.

    Args:
        seconds: How long after it was asked for; what is asked for meanwhile is done with it.
    """

    def __init__(self, seconds: float = _SECONDS) -> None:
        self._seconds = seconds
        self._timer: asyncio.TimerHandle | None = None

    def trim_soon(self) -> None:
        """Do it in a while, beside whatever else goes on."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._seconds, self._begin)

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
