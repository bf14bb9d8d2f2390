"""Turns at the CPU: VMs that use much of it let those go first that want it for a moment.

Without this a cell of a tenth of a second beside four busy VMs on two cores takes five times as long; and who computes
for minutes hardly notices that others go first.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final
from weakref import WeakSet

from agentvm_kernel.errors import AgentVMError
from agentvm_kernel.vm.clone import VM
from agentvm_kernel.vm.cputime import wanted_cpu

_log = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 1.0
# How much the last second counts: who wants the CPU all the time gives way after four.
_WEIGHT: Final = 0.4
# Who works in between has a moment's rest even while others take most of the CPU; who computes has none, however
# little it gets.
_BUSY: Final = 0.85
_CALM: Final = 0.75


@dataclass
class _Habit:
    """What a VM does with the CPU.

    Attributes:
        wanted: Seconds that each of its threads has wanted one so far.
        looked: When that was, on the monotonic clock.
        busy: Which share of the time it has lately wanted one.
        newest: The same between the last two looks.
        gives_way: Others go first.
    """

    wanted: dict[int, float]
    looked: float
    busy: float = 0.0
    newest: float = 0.0
    gives_way: bool = False

    def update(self, wanted: dict[int, float], now: float) -> None:
        """Take note of what its threads have wanted by now: the busiest, since at times they wait for each other."""
        most = max((seconds - self.wanted.get(thread, seconds) for thread, seconds in wanted.items()), default=0.0)
        self.newest = min(1.0, most / (now - self.looked))
        self.busy += _WEIGHT * (self.newest - self.busy)
        self.wanted, self.looked = wanted, now

    @property
    def is_due(self) -> bool:
        """Whether it should give way and does not, or the other way round."""
        return self.busy < _CALM if self.gives_way else self.busy > _BUSY


class Turns:
    """Looks every second who gives way to whom.

    Args:
        vms: Returns the VMs that are out.
    """

    def __init__(self, vms: Callable[[], Collection[VM]]) -> None:
        self._vms = vms
        self._habits: dict[VM, _Habit] = {}
        self._held: WeakSet[VM] = WeakSet()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._run(), name="turns")

    async def close(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def wanted(self, vm: VM) -> float:
        """Return in which share of the last second a VM's busiest thread wanted a CPU."""
        habit = self._habits.get(vm)
        return 0.0 if habit is None else habit.newest

    def hold(self, vm: VM) -> None:
        """Leave it to the caller whether a VM gives way."""
        self._held.add(vm)

    def let_go(self, vm: VM) -> None:
        """Look again whether it should; it does not now."""
        self._held.discard(vm)
        self._habits.pop(vm, None)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Look once."""
        vms = tuple(self._vms())
        wanted = await asyncio.to_thread(lambda: [wanted_cpu(vm.pid) for vm in vms])
        now = time.monotonic()
        known, self._habits = self._habits, {}
        for vm, seconds in zip(vms, wanted, strict=True):
            habit = self._habits[vm] = known.get(vm) or _Habit(seconds, now - _LOOK_SECONDS)
            habit.update(seconds, now)
            if habit.is_due and vm not in self._held:
                await self._turn(vm, habit)

    async def _turn(self, vm: VM, habit: _Habit) -> None:
        habit.gives_way = not habit.gives_way
        try:
            await vm.machine.give_way(habit.gives_way)
        except AgentVMError as error:  # it is gone, or the host does not let us
            _log.info("%s keeps its turn at the CPU: %s", vm.id, error)
