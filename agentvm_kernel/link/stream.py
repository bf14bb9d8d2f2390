"""One stream's state at one end of a link: its credit both ways, what waits to be sent, what came."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

from agentvm_kernel.errors import LinkClosedError, ProtocolError
from agentvm_kernel.link.limits import Limits
from agentvm_kernel.link.message import MessageReader, encode_head, message_size
from agentvm_kernel.link.proof import Terms


class Carrier(Protocol):
    """What carries the frames of a stream: a `Session`.

    Attributes:
        limits: This end's bounds.
        terms: The other end's bounds.
        chunk: Bytes of content that a frame has at most.
    """

    limits: Limits
    terms: Terms
    chunk: int

    @property
    def roomy(self) -> bool:
        """Whether frames may be added to those that wait for the transport."""

    def put(self, number: int, head: bytes, parts: Sequence[bytes], size: int) -> None:
        """Queue a short message as one frame."""

    def grant(self, stream: SessionStream, amount: int) -> None:
        """Give credit back with the next bytes sent."""

    def activate(self, stream: SessionStream) -> None:
        """Give a stream with data and credit its turn."""

    def finish(self, stream: SessionStream) -> None:
        """Send CLOSE for a stream."""


class SessionStream:
    """One stream's state at one end. Made by `Session`.

    Attributes:
        id: The stream's number.
        service: What it is for.
        ended: The other end has closed it; complete messages may still be there to receive.
        closed: This end has closed it.
    """

    def __init__(self, session: Carrier, number: int, service: str) -> None:
        self.id = number
        self.service = service
        self.ended = False
        self.closed = False
        self._session = session
        self._reader = MessageReader(session.limits)
        self._credit = session.terms.window
        self._allowance = session.limits.window
        self._out: deque[memoryview] = deque()
        self._queued = 0
        self._active = False

    @property
    def queued(self) -> int:
        """Bytes that were sent by the caller and wait for credit or for their turn."""
        return self._queued

    @property
    def writable(self) -> bool:
        """Whether a message sent now could leave at once, at least in part."""
        return self._credit > 0 and not self._queued and not self.closed and self._session.roomy

    @property
    def room(self) -> int:
        """Bytes that the other end's credit lets leave, a message's head included."""
        return self._credit

    @property
    def max_message(self) -> int:
        """Longest message that the other end takes."""
        return self._session.terms.max_message

    @property
    def buffered(self) -> int:
        """Bytes received and not taken by `receive`."""
        return self._reader.buffered

    def send(self, parts: Sequence[bytes]) -> None:
        """Send a message. It is queued without bound: the caller waits until `queued` is 0 before the next.

        Raises:
            ProtocolError: the message is longer than the other end takes; nothing was sent.
            LinkClosedError: the stream is closed.
        """
        if self.closed:
            raise LinkClosedError(f"Stream {self.service} is closed.")
        size = message_size(parts)
        terms = self._session.terms
        if size > terms.max_message:
            raise ProtocolError(f"A message of {size} bytes is over the link's {terms.max_message}.")
        limits = self._session.limits
        most = limits.sent_parts or limits.max_parts
        if not 0 < len(parts) <= most:
            raise ProtocolError(f"A message of {len(parts)} parts is outside 1 to {most}.")
        if self.ended:
            return
        if not self._queued and size <= self._session.chunk and size <= self._credit and self._session.roomy:
            self._credit -= size
            self._session.put(self.id, encode_head(parts), parts, size)
            return
        self._out.append(memoryview(encode_head(parts)))
        self._out.extend(memoryview(part) for part in parts if part)
        self._queued += size
        self._activate()

    def receive(self) -> list[bytes] | None:
        """Return the next complete message, or None.

        Raises:
            ProtocolError: the message's bounds are not allowed.
        """
        reader = self._reader
        message = reader.read()
        # Credit goes back in large portions: a frame per message would double the traffic.
        if reader.taken >= self._session.limits.window >> 2 and not self.ended:
            self._session.grant(self, reader.taken)
            reader.taken = 0
        return message

    def close(self) -> None:
        """Close the stream for both directions once what was sent has left."""
        if not self.closed:
            self.closed = True
            self._session.finish(self)

    def accept(self, payload: bytes) -> None:
        """Take the payload of a DATA frame; called by `Session`."""
        self._allowance -= len(payload)
        if self._allowance < 0:
            raise ProtocolError(f"DATA length {len(payload)} on stream {self.id} is beyond its credit.")
        if self.ended:
            raise ProtocolError(f"DATA on stream {self.id} follows its CLOSE.")
        if not self.closed:
            self._reader.push(payload)

    def credit(self, amount: int) -> None:
        """Take the other end's credit; called by `Session`."""
        self._credit += amount
        if self._credit > self._session.terms.window:
            raise ProtocolError(f"CREDIT amount {amount} on stream {self.id} is more than was sent.")
        self._activate()

    def allow(self, amount: int) -> None:
        """Note that credit was given to the other end; called by `Session`."""
        self._allowance += amount

    def end(self) -> None:
        """Note that the other end closed the stream; called by `Session`."""
        if self.ended:
            raise ProtocolError(f"CLOSE on stream {self.id} came twice.")
        self.ended = True
        self._out.clear()
        self._queued = 0

    def next_payload(self) -> list[memoryview] | None:
        """Return at most a chunk of queued bytes as far as credit goes; called by `Session`."""
        room = min(self._session.chunk, self._credit)
        pieces: list[memoryview] = []
        taken = 0
        while self._out and taken < room:
            piece = self._out.popleft()
            if taken + len(piece) > room:
                self._out.appendleft(piece[room - taken :])
                piece = piece[: room - taken]
            pieces.append(piece)
            taken += len(piece)
        self._queued -= taken
        self._credit -= taken
        self._active = False
        self._activate()
        return pieces or None

    def _activate(self) -> None:
        if self._queued and self._credit > 0 and not self._active:
            self._active = True
            self._session.activate(self)
