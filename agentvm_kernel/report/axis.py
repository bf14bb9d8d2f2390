"""An axis of time on which long stretches in which nothing happens take no room."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Final

_LEAST_IDLE: Final = 20.0
"""Seconds of idleness that are always drawn as they are."""

_SHARE: Final = 0.15
_CUT: Final = 12.0
_MOST_CUTS: Final = 20
_STEPS: Final = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400, 604800)
_TICKS: Final = 8


class Axis:
    """It.

    Args:
        spans: When something happened, seconds; at least one.
        left: Where it begins in the picture.
        right: Where it ends.
    """

    def __init__(self, spans: Sequence[tuple[float, float]], left: float, right: float) -> None:
        pieces = _merged(spans)
        room = right - left - _CUT * (len(pieces) - 1)
        self._scale = room / max(sum(end - start for start, end in pieces), 1.0)
        self._pieces: list[tuple[float, float, float]] = []
        for start, end in pieces:
            self._pieces.append((start, end, left))
            left += (end - start) * self._scale + _CUT
        self._zero = pieces[0][0]

    def x(self, time: float) -> float:
        """Return where a moment is; one in a stretch that is left out, where that stands."""
        place = max(0, bisect_right(self._pieces, time, key=lambda piece: piece[0]) - 1)
        start, end, x = self._pieces[place]
        return x + (min(max(time, start), end) - start) * self._scale

    def ticks(self) -> Iterator[tuple[float, str, bool]]:
        """Yield what stands at the axis: where, what, and whether it is what is left out."""
        whole = sum(end - start for start, end, _ in self._pieces)
        step = next((one for one in _STEPS if whole / one <= _TICKS), _STEPS[-1])
        free = float("-inf")
        for place, (start, end, x) in enumerate(self._pieces):
            if place:
                before = self._pieces[place - 1]
                yield x - _CUT / 2, said(start - before[1]), True
            first = -(-(start - self._zero) // step)
            while (moment := self._zero + first * step) <= end:
                at = x + (moment - start) * self._scale
                if at - free >= 40:
                    free = at
                    yield at, clock(first * step), False
                first += 1


def _merged(spans: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return stretches in which something happened, with a little around them, without overlaps and in order."""
    whole = sum(end - start for start, end in spans)
    idle = max(_LEAST_IDLE, whole * _SHARE)
    merged: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if merged and start - merged[-1][1] <= idle:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    while len(merged) > _MOST_CUTS:  # the shortest of what is left out is drawn after all
        place = min(range(1, len(merged)), key=lambda place: merged[place][0] - merged[place - 1][1])
        merged[place - 1 : place + 1] = [(merged[place - 1][0], merged[place][1])]
    margin = 0.5
    return [(start - margin, end + margin) for start, end in merged]


def clock(seconds: float) -> str:
    """Return how long after the beginning something was: ``5 s``, ``1:05``, ``2:01:05``."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def said(seconds: float) -> str:
    """Return a stretch of time in as few letters as there is room for."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"
