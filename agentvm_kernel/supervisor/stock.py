"""What is kept ready of one snapshot, and how much of it there should be."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Generic, TypeVar

from agentvm_kernel import settings
from agentvm_kernel.profiles import Limits
from agentvm_kernel.supervisor.demand import Demand
from agentvm_kernel.supervisor.operator_messages import StockInfo
from agentvm_kernel.vm.blank import Blank
from agentvm_kernel.vm.clone import VM
from agentvm_kernel.vm.snapshot import Snapshot

_Thing = TypeVar("_Thing", VM, Blank)

# What is asked for within this time should be there already; about ten are started in it.
_AHEAD_SECONDS: Final = 10.0


@dataclass(eq=False)
class Ready(Generic[_Thing]):
    """A warm VM or a blank while it is kept.

    Attributes:
        thing: It.
        since: When it was made, on the monotonic clock.
        checked: When it last answered.
    """

    thing: _Thing
    since: float = field(default_factory=time.monotonic)
    checked: float = field(default_factory=time.monotonic)

    @property
    def age(self) -> float:
        """Seconds since it was made."""
        return time.monotonic() - self.since


class Shelf(Generic[_Thing]):
    """Ready things of one kind, oldest first."""

    def __init__(self) -> None:
        self.ready: deque[Ready[_Thing]] = deque()
        self.demand = Demand()
        self.wanted = 0

    def __len__(self) -> int:
        return len(self.ready)

    def take(self) -> _Thing | None:
        """Take the oldest."""
        return self.ready.popleft().thing if self.ready else None

    def put(self, thing: _Thing) -> None:
        """Add one that was just made."""
        self.ready.append(Ready(thing))

    def plan(self, least: int, most: int) -> None:
        """Decide how many there should be: ahead of the demand, within bounds."""
        self.wanted = max(least, min(most, math.ceil(self.demand.rate * _AHEAD_SECONDS)))

    def lacks(self, time_to_live: float) -> bool:
        """Say whether there are too few that are not too old."""
        return sum(one.age < time_to_live for one in self.ready) < self.wanted

    def take_where(self, condition: Callable[[Ready[_Thing]], bool]) -> list[_Thing]:
        """Take all that fulfil a condition."""
        found = [one for one in self.ready if condition(one)]
        for one in found:
            self.ready.remove(one)
        return [one.thing for one in found]

    def surplus(self, time_to_live: float) -> list[_Thing]:
        """Take what is too much, or too old and replaced: the oldest."""
        found = []
        while len(self.ready) > self.wanted and not self.lacks(time_to_live):
            found.append(self.ready.popleft().thing)
        return found


@dataclass(eq=False)
class Stock:
    """What is ready of one complete memory file.

    Attributes:
        snapshot: Whose memory it is.
        memory: The file; ``None`` for a golden snapshot's own.
        warm: Warm VMs; of golden snapshots only.
        blanks: Blanks.
        limits: What was put on the VM that was asked for last; the next is probably to be held to the same.
        checking: A warm VM is away to be checked.
    """

    snapshot: Snapshot
    memory: Path | None = None
    warm: Shelf[VM] = field(default_factory=Shelf)
    blanks: Shelf[Blank] = field(default_factory=Shelf)
    limits: Limits | None = None
    checking: bool = False

    @property
    def idle(self) -> float:
        """Seconds since anybody has asked for something."""
        return min(self.warm.demand.idle, self.blanks.demand.idle)

    @property
    def is_forgotten(self) -> bool:
        """Whether nothing of it is there or should be."""
        kept = (self.warm, self.blanks)
        return self.memory is None and not self.checking and not any(len(one) or one.wanted for one in kept)

    def plan(self, target: settings.Pool, *, is_needed: bool) -> None:
        """Decide how many there should be of each.

        Args:
            target: The configuration.
            is_needed: Somebody has a VM of it, or may want one soon: there is to be at least the minimum.
        """
        if not is_needed:
            self.warm.wanted = self.blanks.wanted = 0
            return
        if self.memory is None:
            self.warm.plan(target.warm, target.warm_max)
        self.blanks.plan(target.blanks, target.blanks_max)

    def lacks(self, time_to_live: float) -> bool:
        """Say whether anything should be added."""
        return self.warm.lacks(time_to_live) or self.blanks.lacks(time_to_live)

    def surplus(self, time_to_live: float) -> list[VM | Blank]:
        """Take what is too much."""
        return [*self.warm.surplus(time_to_live), *self.blanks.surplus(time_to_live)]

    def take_dead(self) -> list[VM | Blank]:
        """Take what has ended by itself."""
        return [
            *self.warm.take_where(lambda one: one.thing.ended.done()),
            *self.blanks.take_where(lambda one: one.thing.machine.ended.done()),
        ]

    def take_all(self) -> list[VM | Blank]:
        """Take everything."""
        found: list[VM | Blank] = [one.thing for one in self.warm.ready]
        found += [one.thing for one in self.blanks.ready]
        self.warm.ready.clear()
        self.blanks.ready.clear()
        return found

    def describe(self) -> StockInfo:
        """Return what clients are told of it."""
        hardware = self.snapshot.hardware
        return StockInfo(
            snapshot=self.snapshot.id, image=self.snapshot.golden.manifest.image, vcpus=hardware.vcpus,
            memory_mib=hardware.memory_mib, warm=len(self.warm), warm_wanted=self.warm.wanted,
            blanks=len(self.blanks), blanks_wanted=self.blanks.wanted,
            rate=self.warm.demand.rate + self.blanks.demand.rate,
        )  # fmt: skip
