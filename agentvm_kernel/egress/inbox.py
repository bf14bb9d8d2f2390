"""The host's end of a VM's inbox: lays there what programs download, and tells them where it lies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from agentvm_kernel.egress.channel import PIECE
from agentvm_kernel.errors import LinkError
from agentvm_kernel.link.asyncio_stream import Stream
from agentvm_kernel.link.inbox import CAPACITY, HEAD, SLOTS, TOKEN, Reference

_log = logging.getLogger(__name__)

_SHORTEST: Final = 16 << 10
"""Bytes for which the way over the disk is the shorter one."""

_FULL: Final = CAPACITY - PIECE
_MOST: Final = 2
"""Slots that one connection has: while the guest reads one, the other is filled."""


@dataclass(frozen=True)
class _Lent:
    slot: int
    share: Share


class Inbox:
    """The inbox of a VM, while a tunnel to it is there.

    Args:
        descriptor: The file behind it, open for writing; the caller's to close, after the inbox.
        answers: The stream on which the guest tells what it has taken.
    """

    def __init__(self, descriptor: int, answers: Stream) -> None:
        self._descriptor = descriptor
        self._answers = answers
        self._is_there = False
        self._free = list(range(SLOTS))
        self._lent: dict[bytes, _Lent] = {}
        self._reading = asyncio.create_task(self._read_answers())

    async def close(self) -> None:
        """Use it no more."""
        self._is_there = False
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)

    def put(self, pieces: Sequence[bytes], share: Share) -> Reference | None:
        """Lay something into a slot.

        Args:
            pieces: What is put there, one behind the other; at most as much as a slot takes.
            share: Whose it is.

        Returns:
            Where it lies; ``None`` if there is no room: then it has to go another way.
        """
        slot = self._take()
        if slot is None:
            return None
        token = secrets.token_bytes(TOKEN)
        size, reference = 0, Reference(slot, sum(map(len, pieces)), token)
        try:
            size = os.pwritev(self._descriptor, [token.ljust(HEAD, b"\0"), *pieces], reference.offset)
        except OSError as error:
            _log.warning("the inbox of a VM cannot be written: %s", error)
        if size != HEAD + reference.size:  # the host's disk is full
            self._free.append(slot)
            return None
        self._lent[token] = _Lent(slot, share)
        share.lent += 1
        return reference

    def _take(self) -> int | None:
        if not self._is_there:
            return None
        if not self._free:
            for token in [token for token, lent in self._lent.items() if lent.share.stream.is_over]:
                self._return(token)
        return self._free.pop() if self._free else None

    def _return(self, token: bytes) -> Share | None:
        """Note that the guest has taken something, or never will; whose it was, if it is known."""
        lent = self._lent.pop(token, None)
        if lent is None:
            return None
        self._free.append(lent.slot)
        lent.share.lent -= 1
        return lent.share

    async def _read_answers(self) -> None:
        """Take the guest's answers, up to their end: first that it has an inbox, then what was taken out of it."""
        try:
            await self._answers.receive()
            self._is_there = True
            while True:
                (token,) = await self._answers.receive()
                self._go_on(token)
        except LinkError:
            self._is_there = False
            for token in list(self._lent):
                self._go_on(token)

    def _go_on(self, token: bytes) -> None:
        if (share := self._return(token)) is not None:
            share.go_on()


class Share:
    """One connection's share of the inbox.

    What comes while the guest still has something of this connection's to read is gathered, so that it goes on its way
    in larger pieces the faster it comes; what comes when there is nothing is not kept waiting.

    Args:
        inbox: The VM's inbox, if it has one.
        stream: The connection's stream.

    Attributes:
        stream: The connection's stream.
        lent: Slots that the guest has still to read.
    """

    def __init__(self, inbox: Inbox | None, stream: Stream) -> None:
        self.stream = stream
        self.lent = 0
        self._inbox = inbox
        self._gathered: list[bytes] = []
        self._size = 0

    async def send(self, data: bytes) -> None:
        """Send to the guest; returns once there is room for more.

        Args:
            data: At most `PIECE` bytes.

        Raises:
            LinkError: the guest has reset the connection, or the link has ended.
        """
        self._gathered.append(data)
        self._size += len(data)
        if self._is_due:
            self._pass_on()
        await self.stream.until(lambda: self._size <= _FULL)
        await self.stream.drain()

    async def finish(self) -> None:
        """Send an end behind what was gathered.

        Raises:
            LinkError: as ``send``.
        """
        self._pass_on()
        await self.stream.send([b""])

    def close(self) -> None:
        """Forget what was gathered."""
        self._gathered, self._size = [], 0

    def go_on(self) -> None:
        """Take note that a slot of its own is free again."""
        if self._is_due:
            with contextlib.suppress(LinkError):  # whoever sends next is told
                self._pass_on()
        self.stream.wake()

    @property
    def _is_due(self) -> bool:
        """Whether what was gathered should go on its way."""
        return not self.lent or (self._size > _FULL and self.lent < _MOST)

    def _pass_on(self) -> None:
        pieces, size = self._gathered, self._size
        self.close()
        if size >= _SHORTEST and self._inbox is not None and (reference := self._inbox.put(pieces, self)) is not None:
            self.stream.post([reference.encode(), b""])
            return
        for piece in pieces:
            self.stream.post([piece])
