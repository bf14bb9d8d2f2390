"""The agent's event loop: edge-triggered epoll and timers.

Edge-triggered because a virtio-serial port whose host end is not connected reports a hang-up for as long as that lasts:
a level-triggered loop would spin. The driver wakes its pollers whenever data, room or the host's state changes.
"""

from __future__ import annotations

import heapq
import itertools
import select
import time
from collections import deque
from collections.abc import Callable

_READING = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
_WRITING = _READING | select.EPOLLOUT


class Timer:
    """A call that is due later; made by `Loop.call_later`."""

    def __init__(self, action: Callable[[], None]) -> None:
        self._action: Callable[[], None] | None = action

    def cancel(self) -> None:
        """Forget the call."""
        self._action = None

    def run(self) -> None:
        """Make the call unless it was cancelled; called by `Loop`."""
        action, self._action = self._action, None
        if action is not None:
            action()


class Loop:
    """Runs handlers of descriptors and timers, one at a time.

    A handler is called when there is something to read, or room to write where `set_writing` asked for that: without
    asking, every message that the other end takes would wake the loop. A handler has to go on until the descriptor
    would block, or ask with `call_soon` to be called again.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._writing: set[int] = set()
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._soon: deque[Callable[[], None]] = deque()
        self._running = False

    def add(self, fd: int, handler: Callable[[], None]) -> None:
        """Watch a descriptor; what is there to be read already counts as new."""
        self._handlers[fd] = handler
        self._epoll.register(fd, _READING)

    def set_writing(self, fd: int, wanted: bool) -> None:
        """Say whether to watch a descriptor for room to write, too; room that is there already counts as new."""
        if wanted != (fd in self._writing):
            (self._writing.add if wanted else self._writing.discard)(fd)
            self._epoll.modify(fd, _WRITING if wanted else _READING)

    def remove(self, fd: int) -> None:
        """Stop watching; to be called before the descriptor is closed."""
        if self._handlers.pop(fd, None) is not None:
            self._writing.discard(fd)
            self._epoll.unregister(fd)

    def call_soon(self, action: Callable[[], None]) -> None:
        """Call after the handlers that are due now."""
        self._soon.append(action)

    def call_later(self, seconds: float, action: Callable[[], None]) -> Timer:
        """Call after some seconds."""
        timer = Timer(action)
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), timer))
        return timer

    def run(self) -> None:
        """Run until `stop`."""
        self._running = True
        while self._running:
            for fd, _ in self._epoll.poll(self._wait()):
                handler = self._handlers.get(fd)
                if handler is not None:
                    handler()
            while self._timers and self._timers[0][0] <= time.monotonic():
                heapq.heappop(self._timers)[2].run()
            for _ in range(len(self._soon)):
                self._soon.popleft()()

    def stop(self) -> None:
        """Let `run` return."""
        self._running = False

    def close(self) -> None:
        """Give the epoll descriptor back."""
        self._epoll.close()

    def _wait(self) -> float:
        if self._soon:
            return 0
        if not self._timers:
            return -1
        return max(0.0, self._timers[0][0] - time.monotonic())
