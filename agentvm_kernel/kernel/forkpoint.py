"""Tells when the VM is saved from which forks go on, so that the notebook's own can be written to again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

from agentvm_kernel.supervisor.fork_messages import ForkEnded, ForkGranted, ForkRequest
from agentvm_kernel.supervisor.messages import Progress

ForkEvent = Progress | ForkGranted | ForkEnded


class ForkSupervisor(Protocol):
    """What running forks takes of the supervisor."""

    def forks(self, lease: str, request: ForkRequest) -> AbstractAsyncContextManager[AsyncIterator[ForkEvent]]:
        """Clone a lease's VM several times; when the context is left, the forks end that do not rest."""

    async def rest_fork(self, lease: str, fork: int) -> None:
        """Keep a fork whose work is done."""

    async def end_fork(self, lease: str, fork: int) -> None:
        """End a fork."""


class ForkPoint:
    """A supervisor in front of the real one.

    Args:
        supervisor: The real one.

    Attributes:
        saved: The id of the snapshot that the forks are clones of, once the first is there; empty if there is none.
    """

    def __init__(self, supervisor: ForkSupervisor) -> None:
        self.saved: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._supervisor = supervisor

    @asynccontextmanager
    async def forks(self, lease: str, request: ForkRequest) -> AsyncIterator[AsyncIterator[ForkEvent]]:
        """See `ForkSupervisor`."""
        async with self._supervisor.forks(lease, request) as events:
            yield self._observed(events)

    async def _observed(self, events: AsyncIterator[ForkEvent]) -> AsyncIterator[ForkEvent]:
        async for event in events:
            if not isinstance(event, Progress) and not self.saved.done():
                self.saved.set_result(event.granted.snapshot if isinstance(event, ForkGranted) else "")
            yield event

    async def rest_fork(self, lease: str, fork: int) -> None:
        """See `ForkSupervisor`."""
        await self._supervisor.rest_fork(lease, fork)

    async def end_fork(self, lease: str, fork: int) -> None:
        """See `ForkSupervisor`."""
        await self._supervisor.end_fork(lease, fork)
