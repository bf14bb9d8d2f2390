"""Measures all VMs, once a second, in one go: what each costs the host.

Not by libvirt: to ask it for the statistics of thirty VMs takes as long as the second that there is. What changes all
the time and is cheap (CPU time, resident memory) is read from procfs each time; what the kernel must walk through page
tables for is read seldom, of a few VMs at a time, and carried on by what was written since. QEMU itself is asked what
its guest's disk does, if the guest has worked at all; one that does not answer is asked once, and delays nobody.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

from agentvm_kernel.observe.process import PROC
from agentvm_kernel.observe.sample import Sample
from agentvm_kernel.observe.watch import Known, Watch
from agentvm_kernel.vm.hypervisor import DiskTraffic, Machine

_log = logging.getLogger(__name__)

_PATIENCE_SECONDS: Final = 0.25
_IN_TURN: Final = 20  # in how many looks all VMs may be weighed, as long as none is new
_NEW: Final = float("-inf")

Subjects = Callable[[], Iterable[tuple[Machine, Known]]]


class Sampler:
    """Looks at all VMs again and again.

    Args:
        subjects: Returns the VMs that there are, with what is known of them.
        every: Seconds between two looks.
        proc: Where procfs is.
        clock: The clock of the looks, seconds.

    Attributes:
        every: Seconds between two looks; may be set at any time.
    """

    def __init__(
        self, subjects: Subjects, every: float = 1.0, proc: Path = PROC, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.every = every
        self._subjects = subjects
        self._proc = proc
        self._clock = clock
        self._watches: dict[Machine, Watch] = {}
        self._looked = _NEW
        self._looking = asyncio.Lock()
        self._has_looked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._run(), name="sampler")

    async def close(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    @property
    def latest(self) -> Mapping[str, Sample]:
        """The newest sample of each VM that there is, by its id."""
        return {
            machine.spec.folder.name: watch.latest
            for machine, watch in self._watches.items()
            if watch.latest is not None
        }

    def history(self, vm: str) -> list[Sample]:
        """Return the samples of a VM that are kept, oldest first.

        Args:
            vm: Its id.
        """
        found = [watch for machine, watch in self._watches.items() if machine.spec.folder.name == vm]
        return list(found[0].history) if found else []

    async def fresh(self, most: float = 1.0) -> Mapping[str, Sample]:
        """Return the newest samples, of all VMs that there are now, after another look if they are too old.

        Args:
            most: Seconds that they may be old.
        """
        is_known = all(machine in self._watches or machine.ended.done() for machine, _ in self._subjects())
        if not is_known or self._clock() - self._looked > most:
            await self.look()
        return self.latest

    async def traffic(self, machine: Machine) -> tuple[DiskTraffic, bool]:
        """Return what the disk of one VM has moved up to now, and whether that is older because QEMU does not answer.

        Args:
            machine: Its QEMU.
        """
        watch = self._watches.setdefault(machine, Watch(machine, self._proc))
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await watch.ask_now()
        except TimeoutError:
            _log.debug("QEMU of %s does not answer", machine.spec.name)
        return watch.traffic, watch.is_stale

    async def next_look(self) -> None:
        """Wait until there are new samples."""
        await self._has_looked.wait()

    async def _run(self) -> None:
        while True:
            began = self._clock()
            try:
                await self.look()
            except OSError as error:  # no descriptor left, say: the next look may be better
                _log.warning("the VMs could not be measured: %s", error)
            await asyncio.sleep(max(0.0, self.every - (self._clock() - began)))

    async def look(self) -> None:
        """Look once."""
        async with self._looking:
            known, self._watches = self._watches, {}
            for machine, facts in self._subjects():
                if machine.ended.done():
                    continue
                watch = self._watches[machine] = known.get(machine) or Watch(machine, self._proc)
                watch.known = facts
            watches = tuple(self._watches.values())
            now = self._clock()
            await asyncio.to_thread(self._read, watches, now)
            await self._ask(watches, now)
            wall, boot = time.time(), time.clock_gettime(time.CLOCK_BOOTTIME)
            for watch in watches:
                watch.take(now, wall, boot, self.every)
            self._looked = now
        self._has_looked.set()
        self._has_looked = asyncio.Event()

    async def _ask(self, watches: Iterable[Watch], now: float) -> None:
        """Ask all QEMUs at the same time; who owes an answer from an earlier look is not waited for again."""
        if asked := [task for watch in watches if (task := watch.ask(now)) is not None]:
            await asyncio.wait(asked, timeout=min(_PATIENCE_SECONDS, self.every / 2))

    def _read(self, watches: tuple[Watch, ...], now: float) -> None:
        for watch in watches:
            watch.read()
        due = sorted((watch for watch in watches if watch.is_due(now)), key=lambda watch: watch.weighed)
        new = sum(watch.weighed == _NEW for watch in due)
        for watch in due[: max(new, math.ceil(len(watches) / _IN_TURN))]:
            watch.weigh(now)
        for watch in watches:
            watch.measure_space()
