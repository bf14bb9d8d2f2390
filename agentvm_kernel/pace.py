"""Lets things happen at a rate: a bucket that fills steadily and may be overdrawn, in order of asking."""

from __future__ import annotations

import time


class Pace:
    """A token bucket (ITU-T I.371, leaky bucket as a meter). Full at first."""

    def __init__(self) -> None:
        self._missing = 0.0
        self._at = time.monotonic()

    def take(self, amount: float, rate: float, burst: float) -> float:
        """Take from the bucket. Those who ask first are served first.

        Args:
            amount: How much.
            rate: How much flows in per second.
            burst: How much the bucket holds.

        Returns:
            Seconds until what was taken has flowed in; 0 if it was there.
        """
        now = time.monotonic()
        self._missing = max(0.0, self._missing - (now - self._at) * rate) + amount
        self._at = now
        return max(0.0, self._missing - burst) / rate
