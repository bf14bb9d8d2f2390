"""Ends cells that run longer than their deadline: an interrupt first, then the VM with them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from agentvm_kernel.errors import CellDeadlineError, LinkError
from agentvm_kernel.kernel.answers import Answers
from agentvm_kernel.kernel.debugging import Debugging
from agentvm_kernel.kernel.machine import Machine, State
from agentvm_kernel.kernel.requests import Request, RequestTable

log = logging.getLogger("agentvm.deadline")

GRACE: Final = 5.0
"""Seconds that an interrupted cell has to end."""

_TICK: Final = 0.25
_LONGEST_TICK: Final = 1.0
"""A pause of this process or of the host is not held against a cell."""


class Watchdog:
    """Counts the time that cells run, while any does.

    A cell's time begins when what went before it on its lane has been replied to, by the host's clock, whatever the
    guest says. It stands still while the VM is held (for a snapshot), while the cell waits for `input()`, and while a
    debugger has stopped it: then it is the user, or the host, who takes their time.

    Args:
        table: What the guest has been asked.
        machine: The VM under the notebook.
        answers: The host's voice.
        debugging: Whether a debugger has stopped the guest.
        snapshot: Returns the id of the snapshot that the VM descends from; empty for none.
    """

    def __init__(
        self,
        table: RequestTable,
        machine: Machine,
        answers: Answers,
        debugging: Debugging,
        snapshot: Callable[[], str],
    ) -> None:
        self._table = table
        self._machine = machine
        self._answers = answers
        self._debugging = debugging
        self._snapshot = snapshot
        self._task: asyncio.Task[None] | None = None

    def wake(self) -> None:
        """Watch, until no cell runs any more; called when one may have begun."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._watch(), name="deadline")

    async def close(self) -> None:
        """Stop watching.

        Raises:
            Exception: what it failed on, if it did.
        """
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            if not self._task.cancelled():
                self._task.result()

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        before = loop.time()
        while current := self._table.current():
            await asyncio.sleep(_TICK)
            now = loop.time()
            seconds, before = min(now - before, _LONGEST_TICK), now
            if self._machine.held or self._machine.state is not State.READY or self._debugging.stopped:
                continue
            for request in current:
                if not request.inputs:
                    await self._count(request, seconds)

    async def _count(self, request: Request, seconds: float) -> None:
        request.ran += seconds
        limit = self._machine.limits.now.cell_deadline
        if request.overdue_at is None:
            if request.ran >= limit:
                request.overdue_at = request.ran
                await self._interrupt(request, limit)
        elif request.ran >= request.overdue_at + GRACE:
            await self._throw_away(request, limit)

    async def _interrupt(self, request: Request, limit: float) -> None:
        guest = self._machine.guest
        if guest is None or request not in self._table.current():
            return
        source = f"the deadline {self._machine.limits.source('cell_deadline')}"
        text = f"This cell ran longer than {limit:g} s, {source}; change it with %limits timeout=SECONDS.\n"
        await self._answers.publish("stream", {"name": "stderr", "text": text}, request)
        if request.in_subshell:
            return  # ipykernel can interrupt the main thread only, which may be innocent
        try:
            await guest.agent.interrupt()
        except LinkError as error:
            log.info("the overdue cell could not be interrupted: %s", error.message)

    async def _throw_away(self, request: Request, limit: float) -> None:
        if request not in self._table.current():
            return
        source = f"the deadline {self._machine.limits.source('cell_deadline')}"
        snapshot = self._snapshot()
        error = CellDeadlineError(
            f"This cell ran longer than {limit:g} s, {source}, and could not be stopped. Its VM was thrown away with"
            " all variables and files in it; a fresh one is on its way.",
            f"%rollback {snapshot} goes back to the last snapshot."
            if snapshot
            else "There is no snapshot of it: %snapshot takes one, %timetravel on one after every cell.",
        )
        if request.magic:  # a cell that a snapshot froze, shown under the magic that went back to it: no reply can tell
            text = f"{error.message}\n{error.hint}\n"
            await self._answers.publish("stream", {"name": "stderr", "text": text}, request)
        await self._machine.restart(error)
