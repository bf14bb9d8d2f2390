"""One stream of the host's end of a link, on asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from agentvm_kernel.errors import LinkClosedError
from agentvm_kernel.link.stream import SessionStream


class Line(Protocol):
    """What a stream goes over: a `Link`."""

    def check(self) -> None:
        """Raise the link's error if it ended."""

    def read(self, core: SessionStream) -> list[bytes] | None:
        """Take a message from a stream."""

    def pump(self) -> None:
        """Hand what is due to the transport while it takes it."""


class Stream:
    """One stream of a `Link`. Made by `Link.open`, or by the guest where the link's owner takes streams."""

    def __init__(self, link: Line, core: SessionStream) -> None:
        self._link = link
        self._core = core
        self._lock = asyncio.Lock()
        self._received = asyncio.Event()
        self._sent = asyncio.Event()

    @property
    def service(self) -> str:
        """What the stream is for."""
        return self._core.service

    @property
    def is_over(self) -> bool:
        """Whether the other end has closed it."""
        return self._core.ended

    async def send(self, parts: Sequence[bytes]) -> None:
        """Send a message, and wait until the other end's credit has let all of it leave.

        Args:
            parts: The message's parts; none of them is copied before it leaves.

        Raises:
            ProtocolError: the message is longer than the other end takes; the link goes on.
            LinkError: the link's error, once it ended.
        """
        async with self._lock:
            self.post(parts)
            await self.drain()

    def post(self, parts: Sequence[bytes]) -> None:
        """Send a message without waiting: what the other end's credit does not let leave is kept, without bound.

        Raises:
            ProtocolError: as ``send``.
            LinkError: as ``send``.
        """
        self._check()
        self._core.send(parts)
        self._link.pump()

    async def drain(self) -> None:
        """Wait until all that was sent has left.

        Raises:
            LinkError: as ``send``.
        """
        await self.until(lambda: not self._core.queued)

    async def until(self, is_true: Callable[[], bool]) -> None:
        """Wait, as the one that sends, until something is true; it is looked at whenever the stream is woken.

        Raises:
            LinkError: as ``send``.
        """
        self._check()
        while not is_true():
            self._sent.clear()
            await self._sent.wait()
            self._check()

    async def receive(self) -> list[bytes]:
        """Return the next message. Messages that had come before the link ended are still given out.

        Raises:
            LinkError: the link's error, once it ended.
        """
        while True:
            message = self._link.read(self._core)
            if message is not None:
                return message
            self._check()
            self._received.clear()
            await self._received.wait()

    def poll(self) -> list[bytes] | None:
        """Return the next message if it is there."""
        return self._link.read(self._core)

    def close(self) -> None:
        """Close the stream once what was sent has left."""
        self._core.close()
        self._link.pump()

    def wake(self) -> None:
        """Let whoever waits look again; called by `Link`."""
        self._received.set()
        if not self._core.queued:
            self._sent.set()

    def wake_all(self) -> None:
        """Let everybody look again, at the link's end; called by `Link`."""
        self._received.set()
        self._sent.set()

    def _check(self) -> None:
        self._link.check()
        if self._core.ended:
            raise LinkClosedError(f"The guest closed stream {self.service}.")
