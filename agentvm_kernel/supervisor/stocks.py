"""All that is kept ready, and what should be."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from pathlib import Path
from typing import Final

from agentvm_kernel import settings
from agentvm_kernel.supervisor.operator_messages import StockInfo
from agentvm_kernel.supervisor.stock import Stock
from agentvm_kernel.vm.blank import Blank
from agentvm_kernel.vm.clone import VM
from agentvm_kernel.vm.complete import distance
from agentvm_kernel.vm.snapshot import Snapshot

# What weighs when choosing a blank: starting one, and writing memory that was not touched before.
_START_SECONDS: Final = 0.4
_BYTES_PER_SECOND: Final = 300e6


class Stocks:
    """One stock for each golden snapshot in use, and for each complete memory file; what was asked for last comes last.

    Args:
        target: How many to keep ready of each kind.
    """

    def __init__(self, target: settings.Pool) -> None:
        self.target = target
        self.is_drained = False
        self._stocks: OrderedDict[str, Stock] = OrderedDict()

    def of(self, snapshot: Snapshot) -> Stock:
        """Return the stock of a golden snapshot, which is wanted now."""
        stock = self._stocks.setdefault(snapshot.id, Stock(snapshot))
        self._stocks.move_to_end(snapshot.id)
        return stock

    def take_outdated(self, snapshot: Snapshot) -> list[VM | Blank]:
        """Take what is ready of a golden snapshot that was removed, if another was made under the same id."""
        known = self._stocks.get(snapshot.id)
        if known is None or known.snapshot.identity == snapshot.identity:
            return []
        del self._stocks[snapshot.id]
        return known.take_all()

    def nearest(self, snapshot: Snapshot) -> Stock:
        """Return the stock from which a clone of a snapshot is there soonest."""

        def seconds(stock: Stock) -> float:
            start = 0.0 if stock.blanks.ready else _START_SECONDS
            return start + distance(stock.snapshot, snapshot) / _BYTES_PER_SECOND

        return min((one for one in self._stocks.values() if one.snapshot.golden.id == snapshot.golden.id), key=seconds)

    def has(self, stock: Stock) -> bool:
        """Say whether a stock is still kept."""
        return self._stocks.get(stock.snapshot.id) is stock

    @property
    def all(self) -> list[Stock]:
        """The stocks."""
        return list(self._stocks.values())

    @property
    def warm(self) -> list[VM]:
        """The warm VMs."""
        return [one.thing for stock in self._stocks.values() for one in stock.warm.ready]

    @property
    def blanks(self) -> list[Blank]:
        """The blanks."""
        return [one.thing for stock in self._stocks.values() for one in stock.blanks.ready]

    def counts(self) -> dict[str, dict[str, int]]:
        """Return how many warm VMs and blanks are ready, by snapshot id."""
        return {key: {"warm": len(stock.warm), "blanks": len(stock.blanks)} for key, stock in self._stocks.items()}

    def describe(self) -> tuple[StockInfo, ...]:
        """Return what clients are told."""
        return tuple(stock.describe() for stock in self._stocks.values())

    # Complete memory files

    def add_base(self, snapshot: Snapshot, memory: Path) -> None:
        """Keep a blank over a complete memory file, too.

        Args:
            snapshot: Whose memory it is.
            memory: The file.
        """
        self._stocks[snapshot.id] = Stock(snapshot, memory)

    def renew_base(self, snapshot: Snapshot) -> None:
        """Take note of the files that a base's snapshot and its ancestors have now."""
        if stock := self._stocks.get(snapshot.id):
            stock.snapshot = snapshot

    def drop_base(self, snapshot: Snapshot) -> list[VM | Blank]:
        """Keep none any more, and return what there was."""
        stock = self._stocks.pop(snapshot.id, None)
        return stock.take_all() if stock else []

    # How many there should be

    def plan(self, used: Collection[str]) -> None:
        """Decide how many there should be of everything.

        Args:
            used: Ids of the golden snapshots of which VMs are out.
        """
        golden = [stock for stock in self._stocks.values() if stock.memory is None]
        for stock in self._stocks.values():
            is_needed = (
                stock.memory is not None
                or stock is golden[-1]
                or stock.snapshot.id in used
                or stock.idle < self.target.idle_after
            )
            stock.plan(self.target, is_needed=is_needed and not self.is_drained)

    def lacking(self) -> list[Stock]:
        """Return the stocks to which something should be added, the most wanted first."""
        return [stock for stock in reversed(self._stocks.values()) if stock.lacks(self.target.time_to_live)]

    def take_surplus(self) -> list[VM | Blank]:
        """Take what is too much or was replaced; forget stocks that nobody needs."""
        taken = []
        for key, stock in list(self._stocks.items()):
            taken += stock.surplus(self.target.time_to_live)
            if stock.is_forgotten and not self.is_drained:
                del self._stocks[key]
        return taken

    def take_all(self) -> list[VM | Blank]:
        """Take everything."""
        return [thing for stock in self._stocks.values() for thing in stock.take_all()]

    def take_one_stock(self) -> list[VM | Blank]:
        """Take what is ready of that snapshot of which something is ready that was asked for longest ago."""
        return next((taken for stock in self._stocks.values() if (taken := stock.take_all())), [])
