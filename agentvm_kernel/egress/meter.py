"""Counts what passes through a guest's connection and keeps it within its budgets."""

from __future__ import annotations

import asyncio

from agentvm_kernel.egress.access import Access
from agentvm_kernel.egress.channel import Channel
from agentvm_kernel.egress.policy import Rule


class Meter:
    """A `Channel` around a `Channel`.

    Args:
        channel: The guest's connection.
        access: Whose it is.

    Attributes:
        rule: The rule by which it passes; None before that is decided.
        host: The host, once it is connected to.
        sent: Bytes from the guest.
        received: Bytes to the guest.
    """

    def __init__(self, channel: Channel, access: Access) -> None:
        self.rule: Rule | None = None
        self.host = ""
        self.sent = 0
        self.received = 0
        self._channel = channel
        self._access = access
        self._ahead = b""
        self._due = 0.0

    def unread(self, data: bytes) -> None:
        """Let the next ``receive`` return this first, uncounted.

        Args:
            data: What was received and is to be read again.
        """
        self._ahead = data + self._ahead

    async def receive(self) -> bytes:
        """Return what the guest sent next; empty when it has ended its direction. Cancelling it loses nothing.

        Raises:
            LinkError: the guest has reset the connection, or the link has ended.
            BudgetError: a budget is spent.
        """
        if self._ahead:
            data, self._ahead = self._ahead, b""
            return data
        loop = asyncio.get_running_loop()
        if self._due > loop.time():
            await asyncio.sleep(self._due - loop.time())
        data = await self._channel.receive()
        self._due = loop.time() + self._account(len(data), 0)
        self.sent += len(data)
        return data

    async def send(self, data: bytes) -> None:
        """Send to the guest.

        Raises:
            LinkError: as ``receive``.
            BudgetError: a budget is spent.
        """
        seconds = self._account(0, len(data))
        if seconds:
            await asyncio.sleep(seconds)
        await self._channel.send(data)
        self.received += len(data)

    def _account(self, sent: int, received: int) -> float:
        if self.host:
            self._access.touch(self.host)
        return self._access.account(self.rule, sent, received)

    async def send_eof(self) -> None:
        """End this direction.

        Raises:
            LinkError: as ``receive``.
        """
        await self._channel.send_eof()

    def close(self) -> None:
        """Let go of the connection."""
        self._channel.close()
