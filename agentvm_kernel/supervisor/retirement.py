"""VMs and blanks on their way out: ended in the background, a few at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from agentvm_kernel.observe.events.vm import VMDestroyed
from agentvm_kernel.observe.fields import Event
from agentvm_kernel.supervisor.heap import Heap
from agentvm_kernel.vm.blank import Blank
from agentvm_kernel.vm.clone import VM

# Libvirt ends a domain in a tenth of a second, and has few threads.
_AT_ONCE: Final = 4


class Retirement:
    """Ends VMs and blanks.

    Args:
        record: Takes an event into the audit log.
    """

    def __init__(self, record: Callable[[Event], None]) -> None:
        self._record = record
        self._reasons: dict[str, str] = {}
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        self._heap = Heap()

    def begin(self, things: Iterable[VM | Blank]) -> None:
        """End them in the background."""
        for thing in things:
            task = asyncio.create_task(self.end(thing))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def end(self, thing: VM | Blank) -> None:
        """End one, and wait until it has ended."""
        async with self._places:
            await thing.end()
        name = thing.machine.spec.folder.name
        self._record(VMDestroyed(vm=name, reason=self._reasons.pop(name, "")))
        self._heap.trim_soon()

    def give_reason(self, vm: str, reason: str) -> None:
        """Have the audit log say why a VM was ended.

        Args:
            vm: The VM's id; it is there yet.
            reason: Why.
        """
        self._reasons[vm] = reason

    async def close(self) -> None:
        """Wait until all have ended.

        Raises:
            AgentVMError: one did not end as it should; all were tried.
        """
        try:
            await asyncio.gather(*self._tasks)
        finally:
            self._heap.close()
