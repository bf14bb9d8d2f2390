"""Samples, what is said about them, and whether a figure holds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal


def percentile(samples: Sequence[float], percent: int = 95) -> float:
    """Return a percentile by the nearest-rank method: the least sample that so many percent do not exceed.

    Args:
        samples: At least one.
        percent: How many, 1 to 100.
    """
    return sorted(samples)[math.ceil(percent * len(samples) / 100) - 1]


@dataclass
class Series:
    """Samples of one quantity.

    Attributes:
        name: What was measured, and how.
        unit: ``ms``, ``MB`` (10^6 bytes) or the like.
        samples: The samples, in the order in which they were taken.
    """

    name: str
    unit: str
    samples: list[float] = field(default_factory=list)

    def add(self, *samples: float) -> None:
        """Add samples."""
        self.samples += samples

    def renamed(self, name: str) -> Series:
        """Return the same samples under another name."""
        return Series(name, self.unit, self.samples)

    @property
    def median(self) -> float:
        """The median."""
        return statistics.median(self.samples)

    def describe(self) -> dict[str, object]:
        """Return it as plain values for JSON."""
        return {
            "name": self.name,
            "unit": self.unit,
            "median": round(self.median, 3),
            "p95": round(percentile(self.samples), 3),
            "n": len(self.samples),
        }


@dataclass
class Figure:
    """A quantity beside its baseline.

    Attributes:
        measured: The quantity.
        baseline: What it is compared with, measured in the same run.
        limit: What is promised; ``None`` for a figure that is there for orientation.
        limit_on: What the limit bounds: the quantity's median, or its ratio to the baseline's.
    """

    measured: Series
    baseline: Series | None = None
    limit: float | None = None
    limit_on: Literal["median", "ratio"] = "median"

    @property
    def ratio(self) -> float | None:
        """The quantity's median over the baseline's."""
        if self.baseline is None or not self.baseline.median:
            return None
        return self.measured.median / self.baseline.median

    @property
    def verdict(self) -> Literal["met", "missed"] | None:
        """Whether the limit holds; ``None`` where there is none."""
        value = self.measured.median if self.limit_on == "median" else self.ratio
        if self.limit is None or value is None:
            return None
        return "met" if value <= self.limit else "missed"

    def describe(self) -> dict[str, object]:
        """Return it as plain values for JSON."""
        return self.measured.describe() | {
            "limit": self.limit,
            "limit_on": self.limit_on if self.limit is not None else None,
            "baseline": self.baseline.describe() if self.baseline is not None else None,
            "ratio": round(self.ratio, 3) if self.ratio is not None else None,
            "verdict": self.verdict,
        }


def differences(name: str, unit: str, blocks: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Series:
    """Return how much more one quantity is than another, block by block.

    Neighbouring blocks share the host's mood, so their difference is steadier than that of two medians over all.

    Args:
        name: What the difference is.
        unit: Unit of the samples.
        blocks: Samples of the one and of the other, taken one right after the other.
    """
    return Series(name, unit, [statistics.median(one) - statistics.median(other) for one, other in blocks])
