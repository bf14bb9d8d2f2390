"""Hears of what goes into the audit log, as it happens: for who shows it live."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Final, NamedTuple, Self

from agentvm_kernel.observe.fields import Event

WAITING: Final = 512
"""Events that wait for a slow listener; it loses the oldest."""


class News(NamedTuple):
    """An event that happened just now.

    Attributes:
        time: When, seconds since 1970.
        event: What.
        missed: How many before it the listener was too slow for.
    """

    time: float
    event: Event
    missed: int


class Listener:
    """What happens from now on, until the log is closed. Made by `AuditLog.listen`.

    A context manager and an asynchronous iterator, for one task of one event loop.

    Args:
        lease: Only what happens to this lease; empty for everything.
        end: Called when nobody listens any more.
    """

    def __init__(self, lease: str, end: Callable[[Listener], None]) -> None:
        self._lease = lease
        self._end = end
        self._loop = asyncio.get_running_loop()
        self._mutex = threading.Lock()
        self._waiting: deque[tuple[float, Event]] = deque()
        self._missed = 0
        self._is_over = False
        self._news = asyncio.Event()

    def put(self, time: float, event: Event) -> None:
        """Take an event; from any thread. Called by the log."""
        if self._lease and getattr(event, "lease", "") != self._lease:
            return
        with self._mutex:
            is_told = bool(self._waiting) or self._is_over
            if len(self._waiting) >= WAITING:
                self._waiting.popleft()
                self._missed += 1
            self._waiting.append((time, event))
        if not is_told:
            self._wake()

    def close(self) -> None:
        """Take no more; from any thread. What waits is still to be had. Called by the log."""
        with self._mutex:
            self._is_over = True
        self._wake()

    def _wake(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._news.set)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> News:
        """Wait for the next event."""
        while True:
            self._news.clear()
            with self._mutex:
                if self._waiting:
                    missed, self._missed = self._missed, 0
                    return News(*self._waiting.popleft(), missed)
                if self._is_over:
                    raise StopAsyncIteration
            await self._news.wait()
