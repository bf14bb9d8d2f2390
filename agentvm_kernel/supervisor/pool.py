"""VMs kept ready: warm ones and blanks, refilled in the background, one start at a time."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path

from agentvm_kernel import settings
from agentvm_kernel.errors import AgentVMError
from agentvm_kernel.observe.events.vm import VMDestroyed, VMStarted
from agentvm_kernel.observe.fields import Event
from agentvm_kernel.profiles import Limits
from agentvm_kernel.supervisor.budget import Budget, cores
from agentvm_kernel.supervisor.retirement import Retirement
from agentvm_kernel.supervisor.stock import Ready, Stock
from agentvm_kernel.supervisor.stocks import Stocks
from agentvm_kernel.vm.blank import Blank, start_blank
from agentvm_kernel.vm.clone import VM, Network, Randomness, become
from agentvm_kernel.vm.complete import distance
from agentvm_kernel.vm.hypervisor import Hypervisor
from agentvm_kernel.vm.limits import enforce
from agentvm_kernel.vm.snapshot import Snapshot

_log = logging.getLogger(__name__)


class Pool:
    """Hands out VMs and keeps some ready.

    Args:
        hypervisor: Starts them.
        folder: Their folders lie here.
        target: How many to keep ready of each kind.
        budget: What of the host they may take.
        record: Takes an event into the audit log.
        cloned: Told of each clone that was made, with the seconds that it took.

    Attributes:
        stocks: What is ready.
    """

    def __init__(
        self,
        hypervisor: Hypervisor,
        folder: Path,
        target: settings.Pool,
        budget: Budget,
        record: Callable[[Event], None] = lambda _: None,
        cloned: Callable[[float], None] = lambda _: None,
    ) -> None:
        self.stocks = Stocks(target)
        self._hypervisor = hypervisor
        self._folder = folder
        self._budget = budget
        self._cloned = cloned
        self._leased: set[VM] = set()
        self._wanted = asyncio.Event()
        self._changed = asyncio.Condition()
        self._adding = asyncio.Lock()
        self._cores = asyncio.Semaphore(2 * cores())
        self._record = record
        self._retirement = Retirement(record)
        self._workers: list[asyncio.Task[None]] = []
        self._is_closing = False
        self._is_quiet = 0
        self._obtaining: set[asyncio.Task[VM]] = set()

    def start(self) -> None:
        """Begin to refill in the background."""
        self._workers = [
            asyncio.create_task(self._refill(), name="pool-refill"),
            asyncio.create_task(self._tend(), name="pool-tend"),
        ]

    async def close(self) -> None:
        """End everything, leased VMs too."""
        # A start under way in libvirt cannot be called back: let it end, then end what it started.
        self._is_closing = True
        self._wanted.set()
        if self._workers:
            refill, tend = self._workers
            tend.cancel()
            await asyncio.wait((refill, tend))
        await asyncio.gather(*self._obtaining, return_exceptions=True)
        self._retirement.begin(self.stocks.take_all())
        self._retirement.begin(self._leased)
        await self._retirement.close()
        self._leased.clear()

    # What there is

    @property
    def leased(self) -> frozenset[VM]:
        """The VMs that are out."""
        return frozenset(self._leased)

    def room(self) -> int:
        """Return how many more VMs may go out: what is ready takes its memory already."""
        return self._budget.room() + len(self.stocks.warm) + len(self.stocks.blanks)

    # Handing out

    async def acquire(self, snapshot: Snapshot, limits: Limits, network: Network = "none") -> VM:
        """Return a running VM whose identity is confirmed: a warm one, else from a blank, else from scratch.

        Args:
            snapshot: What it is to be a clone of.
            limits: What holds for the user's processes in it.
            network: Whether they may hope for a network.

        Raises:
            VMError: none could be had.
        """
        self._retirement.begin(self.stocks.take_outdated(snapshot))
        stock = self.stocks.of(snapshot)
        stock.limits = limits
        stock.warm.demand.note()
        return await self._hand_out(self._obtain(stock, limits, network))

    async def clone(self, snapshot: Snapshot, randomness: Randomness, limits: Limits, network: Network = "none") -> VM:
        """Return a running VM whose identity is confirmed, a clone of any snapshot: from a blank, else from scratch.

        Args:
            snapshot: What it is to be a clone of.
            randomness: What happens to its generators in user space.
            limits: What holds for the user's processes in it.
            network: Whether they may hope for a network.

        Raises:
            VMError: none could be had.
        """
        self.stocks.of(snapshot.golden)
        stock = self.stocks.nearest(snapshot)
        stock.blanks.demand.note()
        return await self._hand_out(self._clone(stock, snapshot, randomness, limits, network))

    async def release(self, vm: VM) -> None:
        """End a VM that was handed out, and wait until it has ended."""
        self._leased.discard(vm)
        await self._retirement.end(vm)

    def retire(self, vm: VM) -> None:
        """End a VM that was handed out, in the background. Idempotent."""
        if vm in self._leased:
            self._leased.remove(vm)
            self._retirement.begin([vm])

    async def take_blank(self, snapshot: Snapshot) -> Blank:
        """Hand out the blank from which a clone of a snapshot is there soonest; for benchmarks. The caller ends it."""
        return await self._take_blank(self.stocks.nearest(snapshot))

    def nearest_distance(self, snapshot: Snapshot) -> int:
        """Return the bytes of memory in which a snapshot differs from the stock it would be cloned from."""
        return distance(self.stocks.nearest(snapshot).snapshot, snapshot)

    # Complete memory files

    def add_base(self, snapshot: Snapshot, memory: Path) -> None:
        """Keep a blank over a complete memory file, too.

        Args:
            snapshot: Whose memory it is.
            memory: The file.
        """
        self.stocks.add_base(snapshot, memory)
        self.refill()

    def drop_base(self, snapshot: Snapshot) -> None:
        """Keep none any more."""
        self._retirement.begin(self.stocks.drop_base(snapshot))

    # Steering

    def give_reason(self, vm: str, reason: str) -> None:
        """Have the audit log say why a VM was ended; see `Retirement.give_reason`."""
        self._retirement.give_reason(vm, reason)

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Start nothing in the background within this context: somebody waits for what needs the cores."""
        self._is_quiet += 1
        try:
            yield
        finally:
            self._is_quiet -= 1
            self._wanted.set()

    async def drain(self) -> None:
        """End what is kept ready, and keep nothing ready until ``fill``."""
        self.stocks.is_drained = True
        async with self._adding:
            await asyncio.gather(*(self._retirement.end(thing) for thing in self.stocks.take_all()))

    def fill(self) -> None:
        """Keep VMs ready again."""
        self.stocks.is_drained = False
        self.refill()

    def refill(self) -> None:
        """Look whether something lacks or is too much."""
        self._wanted.set()

    async def filled(self, snapshot: Snapshot | None = None) -> None:
        """Wait until nothing lacks; for benchmarks and tests.

        Args:
            snapshot: Have a stock of it, too.
        """
        if snapshot is not None:
            self.stocks.of(snapshot)
        self._wanted.set()
        async with self._changed:
            await self._changed.wait_for(lambda: not self._lacking())

    # How it is done

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

    def _discard_result(self, task: asyncio.Task[VM]) -> None:
        if not task.cancelled() and task.exception() is None:
            self._retirement.begin([task.result()])

    async def _obtain(self, stock: Stock, limits: Limits, network: Network) -> VM:
        warm = await self._take_warm(stock, limits, network)
        return warm or await self._clone(stock, limits=limits, network=network)

    async def _take_warm(self, stock: Stock, limits: Limits, network: Network) -> VM | None:
        if not stock.warm.ready and stock.checking:
            async with self._changed:  # it is back in a moment
                await self._changed.wait_for(lambda: not stock.checking)
        while vm := stock.warm.take():
            try:
                if not vm.ended.done():
                    await asyncio.gather(vm.wake(limits, network), enforce(vm.machine, limits))
                    return vm
            except AgentVMError as error:
                _log.warning("the warm VM %s did not wake: %s", vm.id, error)
            self._retirement.begin([vm])
        return None

    async def _clone(
        self,
        stock: Stock,
        snapshot: Snapshot | None = None,
        randomness: Randomness | None = None,
        limits: Limits | None = None,
        network: Network = "none",
    ) -> VM:
        async with self._cores:
            began = time.monotonic()
            is_dump = snapshot is not None and snapshot.manifest.is_dump
            blank = await (self._start_blank(stock, is_empty=True) if is_dump else self._take_blank(stock))
            vm = await self._become(blank, snapshot, randomness, limits, network)
            self._cloned(time.monotonic() - began)
        await self._enforce(vm, limits)
        return vm

    async def _become(
        self,
        blank: Blank,
        snapshot: Snapshot | None,
        randomness: Randomness | None,
        limits: Limits | None,
        network: Network,
    ) -> VM:
        name = blank.machine.spec.folder.name
        try:
            vm = await become(blank, name, snapshot, randomness, limits, network)
        except BaseException:
            self._record(VMDestroyed(vm=name, reason="it did not become a clone"))
            raise
        image = vm.snapshot.golden.manifest.image
        self._record(VMStarted(vm=name, snapshot=vm.snapshot.id, image=image, epoch=vm.epoch))
        return vm

    async def _enforce(self, vm: VM, limits: Limits | None) -> None:
        """Hold a VM to limits from the host's side, or end it."""
        if limits is None:
            return
        try:
            await enforce(vm.machine, limits)
        except BaseException:
            self._retirement.begin([vm])
            raise

    async def _take_blank(self, stock: Stock) -> Blank:
        while blank := stock.blanks.take():
            if not blank.machine.ended.done():
                blank.base = stock.snapshot
                return blank
            self._retirement.begin([blank])
        return await self._start_blank(stock)

    async def _start_blank(self, stock: Stock, *, is_empty: bool = False) -> Blank:
        if self._budget.room() < 1:
            # What is ready for others goes: somebody needs the memory now.
            self._retirement.begin(self.stocks.take_one_stock())
        vm_id = f"vm-{secrets.token_hex(4)}"
        name = self._hypervisor.domain_name(vm_id)
        return await start_blank(
            self._hypervisor, stock.snapshot, self._folder / vm_id, name, stock.memory, is_empty=is_empty
        )

    # In the background

    def plan(self) -> None:
        """Decide how many there should be of everything."""
        self.stocks.plan({vm.snapshot.golden.id for vm in self._leased})

    def _lacking(self) -> list[Stock]:
        self.plan()
        return self.stocks.lacking()

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

    async def _add_one(self) -> bool:
        """Add what is most wanted; say whether anything was. A host that is short of memory keeps nothing ready."""
        async with self._adding:
            lacking = self._lacking()
            if lacking and self._budget.room() < 1:
                _log.warning("too little memory is available to keep VMs ready")
                return False
            if lacking:
                await self._add_to(lacking[0])
            self._retirement.begin(self.stocks.take_surplus())
        async with self._changed:
            self._changed.notify_all()
        return bool(lacking)

    async def _add_to(self, stock: Stock) -> None:
        if stock.warm.lacks(self.stocks.target.time_to_live):
            # A blank that is too old would only become a warm VM that is.
            self._retirement.begin(stock.blanks.take_where(lambda one: one.age > self.stocks.target.time_to_live))
            vm = await self._clone(stock, limits=stock.limits)
            await vm.pause()
            stock.warm.put(vm)
        else:
            stock.blanks.put(await self._start_blank(stock))
        if not self.stocks.has(stock):
            self._retirement.begin(stock.take_all())  # it was dropped meanwhile

    async def _tend(self) -> None:
        """Look now and then whether what is ready still answers, is too old or too much."""
        while True:
            await asyncio.sleep(
                min(self.stocks.target.check_every, self.stocks.target.idle_after, self.stocks.target.time_to_live) / 2
            )
            await self.tend()

    async def tend(self) -> None:
        """Check what has not answered for long, and let the refill look at age and number."""
        for stock in self.stocks.all:
            self._retirement.begin(stock.take_dead())
            due = [one for one in stock.warm.ready if time.monotonic() - one.checked > self.stocks.target.check_every]
            for one in due:
                await self._check(stock, one)
        self._wanted.set()

    async def _check(self, stock: Stock, one: Ready[VM]) -> None:
        """Ask a warm VM for an answer; it cannot be handed out meanwhile."""
        if one not in stock.warm.ready:
            return
        stock.warm.ready.remove(one)
        stock.checking = True
        try:
            await one.thing.wake()
            await one.thing.pause()
        except AgentVMError as error:
            _log.warning("the warm VM %s does not answer any more: %s", one.thing.id, error)
            self._retirement.begin([one.thing])
        else:
            one.checked = time.monotonic()
            stock.warm.ready.appendleft(one)
        finally:
            stock.checking = False
            async with self._changed:
                self._changed.notify_all()
