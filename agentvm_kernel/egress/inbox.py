"""The host's end of a VM's inbox: lays there what programs download, and tells them where it lies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
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
        # The kernel lets whoever writes wait while a disk has much to do: this VM's downloads then, and nobody else.
        self._writer = ThreadPoolExecutor(1, "inbox")
        self._writing: set[asyncio.Task[None]] = set()
        self._reading = asyncio.create_task(self._read_answers())

    async def close(self) -> None:
        """Use it no more; returns when nothing is being written."""
        self._is_there = False
        self._reading.cancel()
        await asyncio.gather(self._reading, *self._writing, return_exceptions=True)
        self._writer.shutdown()

    def take(self, size: int, share: Share) -> Reference | None:
        """Return a slot for something.

        Args:
            size: Its bytes; at most as much as a slot takes.
            share: Whose it is.

        Returns:
            Where it is to lie; ``None`` if there is no room: then it has to go another way.
        """
        if not self._is_there:
            return None
        if not self._free:
            for token in [token for token, lent in self._lent.items() if lent.share.stream.is_over]:
                self._return(token)
        if not self._free:
            return None
        reference = Reference(self._free.pop(), size, secrets.token_bytes(TOKEN))
        self._lent[reference.token] = _Lent(reference.slot, share)
        share.lent += 1
        return reference

    def write(self, reference: Reference, pieces: Sequence[bytes], then: Callable[[bool], None]) -> None:
        """Lay something into its slot.

        Args:
            reference: The slot.
            pieces: What is put there, one behind the other.
            then: Called when it lies there, or with False if it cannot: the slot is free again then.
        """
        task = asyncio.create_task(self._write(reference, pieces, then))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def _write(self, reference: Reference, pieces: Sequence[bytes], then: Callable[[bool], None]) -> None:
        parts, size = [reference.token.ljust(HEAD, b"\0"), *pieces], 0
        write = partial(os.pwritev, self._descriptor, parts, reference.offset)
        try:
            size = await asyncio.get_running_loop().run_in_executor(self._writer, write)
        except OSError as error:
            _log.warning("the inbox of a VM cannot be written: %s", error)
        is_there = size == HEAD + reference.size  # less where the host's disk is full
        if not is_there:
            self._return(reference.token)
        then(is_there)

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
        self._is_writing = False
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
        self._pass_on_if_due()
        await self.stream.until(lambda: self._size <= _FULL)
        await self.stream.drain()

    async def finish(self) -> None:
        """Send an end behind what was gathered.

        Raises:
            LinkError: as ``send``.
        """
        await self.stream.until(lambda: not self._is_writing)
        self._pass_on()
        await self.stream.until(lambda: not self._is_writing)
        await self.stream.send([b""])

    def close(self) -> None:
        """Forget what was gathered."""
        self._gathered, self._size = [], 0

    def go_on(self) -> None:
        """Take note that a slot of its own is free, or filled; whoever waits for room looks again."""
        self._pass_on_if_due()
        self.stream.wake()

    def _pass_on_if_due(self) -> None:
        if not self._is_writing and (not self.lent or (self._size > _FULL and self.lent < _MOST)):
            self._pass_on()

    def _pass_on(self) -> None:
        pieces, size = self._gathered, self._size
        self.close()
        if self._inbox is None or size < _SHORTEST or (reference := self._inbox.take(size, self)) is None:
            self._post(*([piece] for piece in pieces))
            return
        self._is_writing = True
        self._inbox.write(reference, pieces, partial(self._note, reference, pieces))

    def _note(self, reference: Reference, pieces: list[bytes], is_there: bool) -> None:
        """Go on once something lies in the inbox, or cannot."""
        self._is_writing = False
        self._post(*([[reference.encode(), b""]] if is_there else ([piece] for piece in pieces)))
        self.go_on()

    def _post(self, *messages: list[bytes]) -> None:
        with contextlib.suppress(LinkError):  # whoever waits is told
            for message in messages:
                self.stream.post(message)
