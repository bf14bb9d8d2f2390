"""The order of what the host does against what the guest does.

A client that runs all cells sends them at once. Ordinary requests go straight on, and the guest queues them; those
behind a host magic, and all while there is no VM or its lease is operated on, wait here; so do, with time travel, cells
behind a cell.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from enum import Enum
from typing import Any, Final, Protocol

from agentvm_kernel.kernel.requests import Request

PATIENCE: Final = 5.0
"""Seconds that a magic which throws the VM away waits for a guest that does not answer."""


class Way(Enum):
    """How a request is carried out."""

    GUEST = "forwarded; the guest queues it behind what it has"
    ALONE = "forwarded when the guest is done with what went before; what follows waits until the host is done with it"
    HOST = "carried out by the host, when and while the guest is quiet"


class LaneHost(Protocol):
    """What a lane asks of the router."""

    def has_guest(self) -> bool:
        """Whether there is a VM to which requests may be forwarded now."""

    async def settled(self, lane: Lane) -> None:
        """Return when requests may be forwarded, or it is clear that there will be no VM."""

    def way(self, request: Request) -> Way:
        """How a request is carried out."""

    def discards(self, request: Request) -> bool:
        """Whether it throws the VM away, with all that the guest still runs."""

    async def forward(self, request: Request) -> None:
        """Give it to the guest, or refuse it when there is none."""

    async def run_alone(self, request: Request) -> None:
        """Give it to the guest, and return when the guest, and the host, are done with it."""

    async def perform(self, request: Request) -> bool:
        """Carry out a host magic; return whether it succeeded. Cancelled by an interrupt."""

    async def interrupted(self, request: Request) -> None:
        """Answer a request that an interrupt ended."""

    async def broken(self, request: Request, failure: BaseException) -> None:
        """Answer a request whose host magic failed on something that was not foreseen."""

    async def abort(self, request: Request) -> None:
        """Answer a request that is not carried out because an earlier one failed."""


class Lane:
    """Requests that keep their order: those of one shell, or of the control channel.

    Args:
        host: The router.
    """

    def __init__(self, host: LaneHost) -> None:
        self._host = host
        self._waiting: deque[Request] = deque()
        self._out: list[Request] = []
        self._drainer: asyncio.Task[None] | None = None
        self._magic: asyncio.Task[bool] | None = None
        self._hurry = asyncio.Event()

    @property
    def at_rest(self) -> bool:
        """Whether nothing waits and nothing is at the guest."""
        return self._drainer is None and all(request.finished.is_set() for request in self._out)

    def first_execute(self) -> Request | None:
        """The execute request that waits longest."""
        return next((request for request in self._waiting if request.is_execute), None)

    async def submit(self, request: Request) -> None:
        """Forward a request now, if nothing is before it, else queue it."""
        if self._drainer is None and self._host.has_guest() and self._host.way(request) is Way.GUEST:
            await self._forward(request)
            return
        self._waiting.append(request)
        if self._drainer is None:
            self._drainer = asyncio.create_task(self._drain())

    async def fail_fast(self) -> None:
        """Abort the execute requests that wait: an earlier one failed."""
        executes = [request for request in self._waiting if request.is_execute]
        self._waiting = deque(request for request in self._waiting if not request.is_execute)
        for request in executes:
            await self._host.abort(request)

    async def interrupt(self) -> bool:
        """Interrupt what the host does, or waits for, on behalf of this lane; false if that is nothing."""
        if self._magic is not None:
            self._magic.cancel()
            return True
        if self._host.has_guest():
            # The guest is interrupted; where it does not care (at a breakpoint), what throws it away waits no longer.
            asyncio.get_running_loop().call_later(PATIENCE, self._hurry.set)
            return False
        request = self.first_execute()
        if request is None:
            return False
        self._waiting.remove(request)
        await self._end_interrupted(request)
        return True

    def close(self) -> None:
        """Stop working; what waits stays unanswered."""
        for task in (self._drainer, self._magic):
            if task is not None:
                task.cancel()

    async def _forward(self, request: Request) -> None:
        self._out = [earlier for earlier in self._out if not earlier.finished.is_set()]
        self._out.append(request)
        await self._host.forward(request)

    async def _drain(self) -> None:
        try:
            while self._waiting:
                await self._host.settled(self)
                if not self._waiting:
                    break
                request = self._waiting[0]
                way = self._host.way(request)
                if way is Way.GUEST:
                    await self._forward(self._waiting.popleft())
                elif await self._is_next(request):
                    await (self._carry_out(request) if way is Way.HOST else self._host.run_alone(request))
        finally:
            self._drainer = None

    async def _is_next(self, request: Request) -> bool:
        """Take the first request from the queue once the guest is quiet, if nothing that went before took it away."""
        self._hurry.clear()
        quiet = asyncio.gather(*(earlier.over() for earlier in self._out))
        waits: list[asyncio.Future[Any]] = [quiet]
        if self._host.discards(request):
            waits.append(asyncio.ensure_future(self._hurry.wait()))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        if not self._waiting or self._waiting[0] is not request:
            return False
        self._waiting.popleft()
        return True

    async def _carry_out(self, request: Request) -> None:
        self._magic = asyncio.create_task(self._host.perform(request))
        try:
            await asyncio.wait([self._magic])
            if self._magic.cancelled():
                await self._end_interrupted(request)
                return
            if failure := self._magic.exception():
                await self._host.broken(request, failure)
            if (failure or not self._magic.result()) and request.stop_on_error:
                await self.fail_fast()
        finally:
            self._magic = None

    async def _end_interrupted(self, request: Request) -> None:
        await self._host.interrupted(request)
        if request.stop_on_error:
            await self.fail_fast()


class Lanes:
    """The lanes of a notebook, by name; those that are at rest are forgotten.

    Args:
        host: The router.
    """

    def __init__(self, host: LaneHost) -> None:
        self._host = host
        self._lanes: dict[str, Lane] = {}

    def of(self, request: Request) -> Lane:
        """Return a request's lane."""
        name = request.lane
        if name not in self._lanes:
            self._lanes = {key: lane for key, lane in self._lanes.items() if not lane.at_rest}
            self._lanes[name] = Lane(self._host)
        return self._lanes[name]

    async def interrupt(self) -> bool:
        """Interrupt what the host does, or waits for; false if that is nothing."""
        return any([await lane.interrupt() for lane in list(self._lanes.values())])

    async def fail_fast(self, names: Iterable[str]) -> None:
        """Abort the execute requests that wait in some lanes."""
        for name in names:
            if name in self._lanes:
                await self._lanes[name].fail_fast()

    def close(self) -> None:
        """Carry out nothing more."""
        for lane in self._lanes.values():
            lane.close()
