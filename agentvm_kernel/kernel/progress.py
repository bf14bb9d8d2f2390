"""Shows, below the cell that waits for it, what the machine is at and how far it is."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from agentvm_kernel.kernel.answers import OF_PROGRESS, Answers
from agentvm_kernel.kernel.machine import Machine
from agentvm_kernel.kernel.requests import Request

_INTERVAL: Final = 0.5
"""Seconds before the first message and between two. A client that is still connecting waits for a silence of 0.2 s on
iopub (`wait_for_ready`), so this must stay well above."""

_BAR: Final = 24


class ProgressDisplay:
    """One display, updated in place, gone when the wait is over.

    Args:
        answers: Publishes.
        machine: Knows task, stage and share.
    """

    def __init__(self, answers: Answers, machine: Machine) -> None:
        self._answers = answers
        self._machine = machine

    @asynccontextmanager
    async def shown(self, subject: Callable[[], Request | None]) -> AsyncIterator[None]:
        """Show progress within this context, whenever the machine is at something.

        Args:
            subject: Returns the execute request under which to show it; nothing is published before there is one.
        """
        task = asyncio.create_task(self._run(subject))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _run(self, subject: Callable[[], Request | None]) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        shown: tuple[Request, str] | None = None
        display = {"display_id": secrets.token_hex(16)}
        try:
            while True:
                await asyncio.sleep(_INTERVAL)
                request = subject()
                if request is None or request.silent or not self._machine.task:
                    continue
                text = progress_text(self._machine.task, self._machine.stage, self._machine.done, loop.time() - start)
                if shown == (request, text):
                    continue
                first = shown is None or shown[0] is not request
                await self._answers.busy(request)
                await self._answers.publish(
                    "display_data" if first else "update_display_data",
                    {"data": {"text/plain": text}, "metadata": {}, "transient": display},
                    request,
                    metadata=dict(OF_PROGRESS),
                )
                shown = request, text
        finally:
            if shown and not shown[0].replied:
                await self._answers.publish("clear_output", {"wait": False}, shown[0])


def progress_text(task: str, stage: str, done: float | None, seconds: float) -> str:
    """Return the line that is shown.

    Args:
        task: What is going on.
        stage: Which part of it; may be empty.
        done: Its share, 0 to 1, where known.
        seconds: Since when the cell has been waiting.
    """
    text = f"{task}: {stage}" if stage else task
    if done is not None:
        share = min(max(done, 0.0), 1.0)
        filled = round(share * _BAR)
        text += f" [{'#' * filled}{'.' * (_BAR - filled)}] {share:.0%}"
    return f"{text} ({seconds:.0f} s)"
