"""Keeps those who can make events without end from filling the disk with them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final

_BURST: Final = 2000
_RATE: Final = 5.0
"""Events a second, after the burst: of some 500 bytes each, that is 200 MB a day."""


@dataclass
class _Bucket:
    room: float
    since: float
    left_out: int = 0


class Restraint:
    """Lets through a burst of events of each source, and then a few each second (a token bucket); counts the rest.

    Args:
        clock: Seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: defaultdict[Hashable, _Bucket] = defaultdict(lambda: _Bucket(_BURST, clock()))

    def admits(self, source: Hashable) -> bool:
        """Return whether one more event may be recorded.

        Args:
            source: Whose it is.
        """
        bucket, now = self._buckets[source], self._clock()
        bucket.room = min(_BURST, bucket.room + (now - bucket.since) * _RATE)
        bucket.since = now
        if bucket.room < 1:
            bucket.left_out += 1
            return False
        bucket.room -= 1
        return True

    def take_left_out(self, source: Hashable) -> int:
        """Return how many events of a source were left out, and forget it."""
        bucket = self._buckets.get(source)
        if bucket is None:
            return 0
        left_out, bucket.left_out = bucket.left_out, 0
        return left_out

    def forget(self, source: Hashable) -> None:
        """Forget a source that is over."""
        self._buckets.pop(source, None)
