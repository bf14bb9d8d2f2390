"""Brings what the supervisor measures and decides, for as long as somebody looks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from agentvm_kernel.errors import AgentVMError
from agentvm_kernel.kernel.chronicle import Chronicle, Event
from agentvm_kernel.kernel.machine import Machine
from agentvm_kernel.kernel.roles import Tenure
from agentvm_kernel.widgets.history import History

log = logging.getLogger("agentvm.monitor")

_PATIENCE: Final = 2.0


class Feed:
    """Follows the VM under a notebook, through rollbacks and restarts.

    Args:
        machine: The VM.
        chronicle: Tells when there is another.
        history: Is kept up to date.
        changed: Called when something came.
    """

    def __init__(
        self, machine: Machine, chronicle: Chronicle, history: History, changed: Callable[[object], None]
    ) -> None:
        self._machine = machine
        self._chronicle = chronicle
        self._history = history
        self._changed = changed

    @asynccontextmanager
    async def followed(self) -> AsyncIterator[None]:
        """Follow it within the context."""
        task = asyncio.create_task(self._follow(), name="monitor-feed")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def look(self) -> None:
        """Bring the history up to date once, if that does not take long: a cell may wait for it."""
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._look()
        except TimeoutError:
            log.info("the VM's measures do not come in time")
        except AgentVMError as error:
            log.info("the VM's measures cannot be had: %s", error.message)

    async def _look(self) -> None:
        tenure = self._machine.present()
        async with tenure.supervisor.stats(tenure.lease) as stats:
            async for one in stats:
                self._take(self._history.measured(one))
        async with tenure.supervisor.connections(tenure.lease) as connections:
            async for connection in connections:
                self._take(self._history.connected(connection) and connection)

    async def _follow(self) -> None:
        another = asyncio.Event()

        def noted(event: Event) -> None:
            if event.kind == "vm":
                another.set()

        self._chronicle.listeners.append(noted)
        try:
            while True:
                another.clear()
                following = asyncio.create_task(self._follow_present(), name="monitor-lease")
                try:
                    await another.wait()
                finally:
                    following.cancel()
                    await asyncio.wait([following])
        finally:
            self._chronicle.listeners.remove(noted)

    async def _follow_present(self) -> None:
        try:
            await self._follow_lease(self._machine.present())
        except AgentVMError as error:
            log.info("the VM's measures end: %s", error.message)

    async def _follow_lease(self, tenure: Tenure) -> None:
        """Take what comes of a lease until it ends.

        Raises:
            AgentVMError: the supervisor went away.
        """
        connections = asyncio.create_task(self._connections(tenure))
        try:
            async with tenure.supervisor.stats(tenure.lease, follow=True) as stats:
                async for one in stats:
                    self._take(self._history.measured(one))
        finally:
            connections.cancel()
            await asyncio.wait([connections])

    async def _connections(self, tenure: Tenure) -> None:
        try:
            async with tenure.supervisor.connections(tenure.lease, follow=True) as events:
                async for connection in events:
                    self._take(self._history.connected(connection) and connection)
        except AgentVMError as error:
            log.info("the VM's connections cannot be followed: %s", error.message)

    def _take(self, news: object) -> None:
        if news:
            self._changed(news)
