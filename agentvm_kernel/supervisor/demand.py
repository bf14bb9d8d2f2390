"""How often something has been asked for lately."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final

HALF_LIFE: Final = 30.0
"""Seconds after which a request counts half."""


class Demand:
    """A rate with exponential decay: requests of long ago count ever less.

    Args:
        now: Clock, seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._weight = 0.0
        self._since = now()
        self._last = now()

    def note(self) -> None:
        """Count a request."""
        self._weight = self._present() + 1
        self._since = self._last = self._now()

    @property
    def rate(self) -> float:
        """Requests a second, lately."""
        return self._present() * math.log(2) / HALF_LIFE

    @property
    def idle(self) -> float:
        """Seconds since the last request, or since the beginning."""
        return self._now() - self._last

    def _present(self) -> float:
        return float(self._weight * 2 ** -((self._now() - self._since) / HALF_LIFE))
