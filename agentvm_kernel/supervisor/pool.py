"""VMs kept ready: warm ones and blanks, refilled in the background, one start at a time."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import OrderedDict, deque
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from agentvm_kernel import config
from agentvm_kernel.errors import AgentVMError
from agentvm_kernel.supervisor.budget import room
from agentvm_kernel.vm.blank import Blank, start_blank
from agentvm_kernel.vm.clone import VM, Randomness, become
from agentvm_kernel.vm.complete import distance
from agentvm_kernel.vm.hypervisor import Hypervisor
from agentvm_kernel.vm.snapshot import Snapshot

_log = logging.getLogger(__name__)

# Stocks beyond this are for snapshots that nobody has asked for lately; they give way.
_MAX_STOCKS = 2
# What weighs when choosing a blank: starting one, and writing memory that was not touched before.
_START_SECONDS = 0.4
_BYTES_PER_SECOND = 300e6


@dataclass
class Stock:
    """What is ready of one complete memory file.

    Attributes:
        snapshot: Whose memory it is.
        memory: The file; ``None`` for a golden snapshot's own.
        warm: Warm VMs; of golden snapshots only.
        blanks: Blanks.
    """

    snapshot: Snapshot
    memory: Path | None = None
    warm: deque[VM] = field(default_factory=deque)
    blanks: deque[Blank] = field(default_factory=deque)


class Pool:
    """Hands out VMs and keeps some ready.

    Args:
        hypervisor: Starts them.
        folder: Their folders lie here.
        target: How many to keep ready of each kind.
    """

    def __init__(self, hypervisor: Hypervisor, folder: Path, target: config.Pool) -> None:
        self._hypervisor = hypervisor
        self._folder = folder
        self._target = target
        self._stocks: OrderedDict[str, Stock] = OrderedDict()
        self._leased: set[VM] = set()
        self._wanted = asyncio.Event()
        self._changed = asyncio.Condition()
        self._worker: asyncio.Task[None] | None = None
        self._is_closing = False
        self._is_quiet = 0
        self._obtaining: set[asyncio.Task[VM]] = set()
        self._retiring: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to refill in the background."""
        self._worker = asyncio.create_task(self._refill(), name="pool-refill")

    async def close(self) -> None:
        """End everything, leased VMs too."""
        # A start under way in libvirt cannot be called back: let it end, then end what it started.
        self._is_closing = True
        self._wanted.set()
        if self._worker is not None:
            await self._worker
        await asyncio.gather(*self._obtaining, return_exceptions=True)
        stocks, self._stocks = list(self._stocks.values()), OrderedDict()
        for stock in stocks:
            self._retire_stock(stock)
        for vm in self._leased:
            self._retire(vm)
        await asyncio.gather(*self._retiring)
        self._leased.clear()

    def counts(self) -> dict[str, dict[str, int]]:
        """Return how many warm VMs and blanks are ready, by snapshot id."""
        return {key: {"warm": len(stock.warm), "blanks": len(stock.blanks)} for key, stock in self._stocks.items()}

    @property
    def leased(self) -> frozenset[VM]:
        """The VMs that are out."""
        return frozenset(self._leased)

    async def acquire(self, snapshot: Snapshot) -> VM:
        """Return a running VM whose identity is confirmed: a warm one, else from a blank, else from scratch.

        Args:
            snapshot: What it is to be a clone of.

        Raises:
            VMError: none could be had.
        """
        return await self._hand_out(self._obtain(self._stock(snapshot)))

    async def clone(self, snapshot: Snapshot, randomness: Randomness) -> VM:
        """Return a running VM whose identity is confirmed, a clone of any snapshot: from a blank, else from scratch.

        Args:
            snapshot: What it is to be a clone of.
            randomness: What happens to its generators in user space.

        Raises:
            VMError: none could be had.
        """
        self._stock(snapshot.golden)
        return await self._hand_out(self._clone(self._nearest(snapshot), snapshot, randomness))

    def add_base(self, snapshot: Snapshot, memory: Path) -> None:
        """Keep a blank over a complete memory file, too.

        Args:
            snapshot: Whose memory it is.
            memory: The file.
        """
        self._stocks[snapshot.id] = Stock(snapshot, memory)
        self._wanted.set()

    def renew_base(self, snapshot: Snapshot) -> None:
        """Take note of the files that a base's snapshot and its ancestors have now."""
        if stock := self._stocks.get(snapshot.id):
            stock.snapshot = snapshot

    def drop_base(self, snapshot: Snapshot) -> None:
        """Keep none any more."""
        if stock := self._stocks.pop(snapshot.id, None):
            self._retire_stock(stock)

    def _nearest(self, snapshot: Snapshot) -> Stock:
        """Return the stock from which a clone of a snapshot is there soonest."""

        def seconds(stock: Stock) -> float:
            start = 0.0 if stock.blanks else _START_SECONDS
            return start + distance(stock.snapshot, snapshot) / _BYTES_PER_SECOND

        return min((one for one in self._stocks.values() if one.snapshot.golden.id == snapshot.golden.id), key=seconds)

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Start nothing in the background within this context: somebody waits for what needs the cores."""
        self._is_quiet += 1
        try:
            yield
        finally:
            self._is_quiet -= 1
            self._wanted.set()

    async def _hand_out(self, work: Coroutine[None, None, VM]) -> VM:
        task = asyncio.create_task(work)
        self._obtaining.add(task)
        task.add_done_callback(self._obtaining.discard)
        try:
            vm = await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(self._discard_result)
            raise
        finally:
            self._wanted.set()
        self._leased.add(vm)
        return vm

    async def _obtain(self, stock: Stock) -> VM:
        return await self._take_warm(stock) or await self._clone(stock)

    def _discard_result(self, task: asyncio.Task[VM]) -> None:
        if not task.cancelled() and task.exception() is None:
            self._retire(task.result())

    async def release(self, vm: VM) -> None:
        """End a VM that was handed out."""
        self._leased.discard(vm)
        await vm.end()

    def retire(self, vm: VM) -> None:
        """End a VM that was handed out, in the background."""
        self._leased.discard(vm)
        self._retire(vm)

    async def wait_filled(self, snapshot: Snapshot) -> None:
        """Wait until the stock of a snapshot is complete; for benchmarks and tests."""
        stock = self._stock(snapshot)
        self._wanted.set()
        async with self._changed:
            await self._changed.wait_for(lambda: not self._lacks(stock))

    async def wait_all_filled(self) -> None:
        """Wait until all stocks are complete; for benchmarks and tests."""
        self._wanted.set()
        async with self._changed:
            await self._changed.wait_for(lambda: not any(self._lacks(stock) for stock in self._stocks.values()))

    async def drain(self) -> None:
        """Fill up, and then end all blanks and refill none until the next clone; for benchmarks."""
        await self.wait_all_filled()
        self._is_quiet += 1  # unlike quiet(), it does not ask for a refill in the end
        for stock in self._stocks.values():
            while stock.blanks:
                await stock.blanks.popleft().end()
        self._is_quiet -= 1

    def nearest_distance(self, snapshot: Snapshot) -> int:
        """Return the bytes of memory in which a snapshot differs from the stock it would be cloned from."""
        return distance(self._nearest(snapshot).snapshot, snapshot)

    def _lacks(self, stock: Stock) -> bool:
        return self._lacks_warm(stock) or len(stock.blanks) < self._target.blanks

    def _lacks_warm(self, stock: Stock) -> bool:
        return stock.memory is None and len(stock.warm) < self._target.warm

    def _stock(self, snapshot: Snapshot) -> Stock:
        stock = self._stocks.setdefault(snapshot.id, Stock(snapshot))
        self._stocks.move_to_end(snapshot.id)
        golden = [one for one in self._stocks.values() if one.memory is None]
        for old in golden[:-_MAX_STOCKS]:
            del self._stocks[old.snapshot.id]
            self._retire_stock(old)
        return stock

    def _retire_stock(self, stock: Stock) -> None:
        for vm in stock.warm:
            self._retire(vm)
        for blank in stock.blanks:
            self._retire(blank)

    def _retire(self, ready: VM | Blank) -> None:
        task = asyncio.create_task(ready.end())
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _take_warm(self, stock: Stock) -> VM | None:
        while stock.warm:
            vm = stock.warm.popleft()
            try:
                if not vm.ended.done():
                    await vm.wake()
                    return vm
            except AgentVMError as error:
                _log.warning("the warm VM %s did not wake: %s", vm.id, error)
            self._retire(vm)
        return None

    async def _clone(self, stock: Stock, snapshot: Snapshot | None = None, randomness: Randomness | None = None) -> VM:
        blank = await self._take_blank(stock)
        return await become(blank, blank.machine.spec.folder.name, snapshot, randomness)

    async def take_blank(self, snapshot: Snapshot) -> Blank:
        """Hand out the blank from which a clone of a snapshot is there soonest; for benchmarks. The caller ends it."""
        return await self._take_blank(self._nearest(snapshot))

    async def _take_blank(self, stock: Stock) -> Blank:
        while stock.blanks:
            blank = stock.blanks.popleft()
            if not blank.machine.ended.done():
                blank.base = stock.snapshot
                return blank
            self._retire(blank)
        return await self._start_blank(stock)

    async def _start_blank(self, stock: Stock) -> Blank:
        vm_id = f"vm-{secrets.token_hex(4)}"
        name = self._hypervisor.domain_name(vm_id)
        return await start_blank(self._hypervisor, stock.snapshot, self._folder / vm_id, name, stock.memory)

    async def _refill(self) -> None:
        while not self._is_closing:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                while not self._is_closing and not self._is_quiet and await self._add_one():
                    continue
            except AgentVMError as error:
                # Whoever needs a VM next will be told; trying again now would only fail again.
                _log.error("the pool could not be refilled: %s", error)

    async def _add_blank(self, stock: Stock) -> None:
        blank = await self._start_blank(stock)
        if self._stocks.get(stock.snapshot.id) is stock:
            stock.blanks.append(blank)
        else:
            self._retire(blank)

    async def _add_one(self) -> bool:
        """Add what is most wanted; say whether anything was. A host that is short of memory keeps nothing ready."""
        if room() < 1:
            _log.warning("too little memory is available to keep VMs ready")
            return False
        for stock in reversed(self._stocks.values()):
            if self._lacks_warm(stock):
                vm = await self._clone(stock)
                await vm.pause()
                stock.warm.append(vm)
            elif len(stock.blanks) < self._target.blanks:
                await self._add_blank(stock)
            else:
                continue
            async with self._changed:
                self._changed.notify_all()
            return True
        return False
