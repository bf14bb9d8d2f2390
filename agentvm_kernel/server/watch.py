"""Follows the supervisor for as long as pages look, and has them told."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Final

from agentvm_kernel.errors import AgentVMError
from agentvm_kernel.observe.events.anomaly import AnomalyDetected, AnomalyResponse
from agentvm_kernel.observe.events.execution import OutputBlocked, ResourceLimitExceeded
from agentvm_kernel.observe.events.network import LinkRefused, NetworkConnection
from agentvm_kernel.observe.events.snapshot import (
    SnapshotCreated,
    SnapshotRelabelled,
    SnapshotRestored,
    SnapshotsRemoved,
)
from agentvm_kernel.observe.events.supervisor import ConfigurationChanged
from agentvm_kernel.observe.events.vm import LeaseAcquired, LeaseReleased, OfLease
from agentvm_kernel.observe.fields import Event
from agentvm_kernel.server.kernels import Kernel
from agentvm_kernel.server.news import Herald, What
from agentvm_kernel.server.supervision import Supervision
from agentvm_kernel.server.views import Stats
from agentvm_kernel.supervisor.audit_messages import AuditNews

log = logging.getLogger("agentvm.server")

PATIENCE: Final = 60.0
"""Seconds for which a page's wish to be told holds."""

_RETRY: Final = 2.0
"""Seconds until a supervisor is looked for again."""

_KINDS: Final[tuple[tuple[tuple[type[Event], ...], What], ...]] = (
    ((SnapshotCreated, SnapshotRelabelled, SnapshotRestored, SnapshotsRemoved), "snapshots"),
    ((NetworkConnection,), "connections"),
    ((OutputBlocked,), "blocked"),
    (
        (
            LeaseAcquired,
            SnapshotRestored,
            ConfigurationChanged,
            ResourceLimitExceeded,
            AnomalyDetected,
            AnomalyResponse,
            LinkRefused,
        ),
        "machine",
    ),
    ((LeaseReleased,), "gone"),
)


class Watch:
    """Knows which kernels pages look at.

    Args:
        supervision: Asks the supervisor.
        herald: Tells the pages.
    """

    def __init__(self, supervision: Supervision, herald: Herald) -> None:
        self._supervision = supervision
        self._herald = herald
        self._until: dict[str, float] = {}
        self._kernels: dict[str, str] = {}
        self._owners: dict[str, str] = {}
        self._task: asyncio.Task[None] | None = None

    @property
    def is_following(self) -> bool:
        """Whether the supervisor is followed."""
        return self._task is not None

    def look(self, kernels: Iterable[Kernel]) -> None:
        """Note that a page looks at kernels, and will say so again within a minute if it goes on.

        Args:
            kernels: Which.
        """
        self._left()  # whoever is not looked at any more is told of no longer, however long others are
        until = asyncio.get_running_loop().time() + PATIENCE
        for kernel in kernels:
            self._until[kernel.id] = until
            self._kernels[kernel.owner] = kernel.id
        if self._until and self._task is None:
            self._task = asyncio.create_task(self._run(), name="agentvm-watch")

    async def close(self) -> None:
        """Follow nothing any more."""
        self._herald.close()
        task = self._task
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _run(self) -> None:
        """Follow the supervisor, and the next one, until nobody looks any more."""
        try:
            while self._left() > 0:
                following = [asyncio.create_task(self._stats()), asyncio.create_task(self._events())]
                try:
                    while not any(one.done() for one in following) and (left := self._left()) > 0:
                        await asyncio.wait(following, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for one in following:
                        one.cancel()
                    await asyncio.wait(following)
                self._lost(following)
                if (left := self._left()) > 0:
                    await asyncio.sleep(min(_RETRY, left))
        finally:
            self._task = None

    def _left(self) -> float:
        """Return for how many seconds somebody looks; forget at what nobody does any more."""
        now = asyncio.get_running_loop().time()
        self._until = {kernel: until for kernel, until in self._until.items() if until > now}
        self._kernels = {owner: kernel for owner, kernel in self._kernels.items() if kernel in self._until}
        return max(self._until.values(), default=now) - now

    def _lost(self, following: Iterable[asyncio.Task[None]]) -> None:
        """Tell that the VMs of a supervisor that went away are gone; that there is none is nothing new."""
        for task in following:
            error = None if task.cancelled() else task.exception()
            if error is not None and not isinstance(error, AgentVMError):
                log.error("the supervisor cannot be followed", exc_info=error)
        for owner in self._owners.values():
            if owner in self._kernels:
                self._herald.tell(self._kernels[owner], "gone")
        self._owners.clear()

    async def _stats(self) -> None:
        async with (await self._supervision.client()).stats(follow=True) as stats:
            async for one in stats:
                if one.state == "leased" and (kernel := self._kernel(one.lease)):
                    self._herald.tell(kernel, "stats", stats=Stats.of(one).model_dump())

    async def _events(self) -> None:
        client = await self._supervision.client()
        async with client.events() as events:
            self._supervision.remember()
            try:
                self._owners = {one.lease: one.owner for one in (await client.status()).leases}
                for lease in self._owners:
                    if kernel := self._kernel(lease):
                        self._herald.tell(kernel, "machine")
                async for news in events:
                    self._hear(news)
            finally:
                self._supervision.forget()

    def _hear(self, news: AuditNews) -> None:
        if news.missed or isinstance(news.event, OutputBlocked):
            self._supervision.remember()
        if isinstance(news.event, OfLease | ConfigurationChanged):
            self._take(news.event)
        if news.missed:
            self._missed()

    def _take(self, event: OfLease | ConfigurationChanged) -> None:
        if isinstance(event, LeaseAcquired):
            self._owners[event.lease] = event.owner
        if kernel := self._kernel(event.lease):
            for types, what in _KINDS:
                if isinstance(event, types):
                    restored = {"restored": event.snapshot} if isinstance(event, SnapshotRestored) else {}
                    self._herald.tell(kernel, what, **(restored if what == "snapshots" else {}))
        if isinstance(event, LeaseReleased):
            self._owners.pop(event.lease, None)

    def _missed(self) -> None:
        """Have everything asked for again: something has happened that nobody was told of."""
        kinds: tuple[What, ...] = ("machine", "snapshots", "connections", "blocked")
        for kernel in self._until:
            for what in kinds:
                self._herald.tell(kernel, what)

    def _kernel(self, lease: str) -> str:
        """Return the kernel of a lease that somebody looks at; empty for any other."""
        return self._kernels.get(self._owners.get(lease, ""), "")
