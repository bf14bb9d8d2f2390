"""A link's state once both ends are proven: streams, credit, fairness, epochs. Used by both ends; reads no socket.

Received bytes go in through `Session.feed`, bytes to send come out of `Session.take`. What has to be sent is kept as
state (a grant of credit is a number, an answer to a ping is the last ping) and becomes frames only when the transport
can take them: an end that sends but does not read cannot make this end queue answers without bound.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Sequence

from agentvm_kernel.errors import ProtocolError
from agentvm_kernel.link.frame import (
    BYE,
    CLOSE,
    CREDIT,
    DATA,
    DATA_CHUNK,
    HEADER,
    MAX_PAYLOAD,
    NAMES,
    OPEN,
    PING,
    PONG,
    Frame,
    FrameDecoder,
    encode_frame,
)
from agentvm_kernel.link.limits import Limits
from agentvm_kernel.link.proof import Terms, printable
from agentvm_kernel.link.stream import SessionStream

_U32 = struct.Struct(">I")
_TAKE = 65536


class Session:
    """The multiplexer of one proven connection.

    Args:
        host: True at the host's end: it numbers its streams evenly, the guest oddly.
        epoch: The epoch of every frame; frames of another are dropped and counted.
        limits: This end's bounds.
        terms: The other end's bounds, from its HELLO.
        accept: Called with the service's name when the other end opens a stream; False refuses it. Without it a stream
            opened by the other end is an error.
    """

    def __init__(
        self,
        *,
        host: bool,
        epoch: int,
        limits: Limits,
        terms: Terms,
        accept: Callable[[str], bool] | None = None,
    ) -> None:
        # Fewer frames are less work at the guest's end. What that end writes goes through its port in small pieces.
        self.chunk = MAX_PAYLOAD if host else DATA_CHUNK
        self.epoch = epoch
        self.limits = limits
        self.terms = terms
        self.dropped = 0
        self.goodbye: str | None = None
        self._next = 2 if host else 1
        self._accept = accept
        self._decoder = FrameDecoder()
        self._streams: dict[int, SessionStream] = {}
        self._active: deque[SessionStream] = deque()
        self._grants: dict[int, int] = {}
        self._closing: dict[SessionStream, None] = {}
        self._ready: list[bytes] = []
        self._ready_size = 0
        self._pong: bytes | None = None
        self._ping: bytes | None = None
        self._awaited: bytes | None = None
        self._bye: bytes | None = None
        self._idle_frames = 0

    @property
    def roomy(self) -> bool:
        """Whether frames may be added to those that wait for the transport."""
        return self._ready_size < _TAKE

    @property
    def granting(self) -> bool:
        """Whether credit waits to be given back."""
        return bool(self._grants)

    @property
    def awaiting_pong(self) -> bool:
        """Whether a ping is unanswered."""
        return self._awaited is not None

    def streams(self) -> list[SessionStream]:
        """Return the streams that are open at one end at least."""
        return list(self._streams.values())

    def open(self, service: str) -> SessionStream:
        """Open a stream.

        Args:
            service: Its name, 1 to 64 ASCII characters.

        Raises:
            ProtocolError: too many streams are open.
        """
        name = service.encode("ascii")
        if len(self._streams) >= self.limits.max_streams:
            raise ProtocolError(f"More than {self.limits.max_streams} streams cannot be open.")
        while self._next in self._streams:
            self._advance()
        stream = self._streams[self._next] = SessionStream(self, self._next, service)
        self._advance()
        self._queue(encode_frame(OPEN, stream.id, self.epoch, name))
        return stream

    def feed(self, data: bytes) -> list[SessionStream]:
        """Take received bytes.

        Returns:
            The streams on which something happened (data, credit, opened, closed); one may be there several times.

        Raises:
            ProtocolError: what was received is not allowed; the session is over. `rest` has the bytes from there on.
        """
        touched: list[SessionStream] = []
        decoder = self._decoder
        decoder.push(data)
        while (frame := decoder.pop()) is not None:
            if frame.epoch != self.epoch:
                self.dropped += 1
                self._count_idle()
            elif frame.type == DATA and (stream := self._streams.get(frame.stream)) is not None:
                stream.accept(frame.payload)
                touched.append(stream)
            else:
                self._count_idle()
                changed = self._handle(frame)
                if changed is not None:
                    touched.append(changed)
        return touched

    def rest(self) -> bytes:
        """Take out received bytes that belong to no frame."""
        return self._decoder.rest()

    def take(self) -> bytes:
        """Return the next bytes to send, some 64 KiB at most, or nothing. Streams take turns, a frame each."""
        frames: list[bytes | memoryview] = [*self._take_answers()]
        size = self._ready_size
        if self._ready:
            frames += self._ready
            self._ready, self._ready_size = [], 0
        while self._active and size < _TAKE:
            stream = self._active.popleft()
            payload = stream.next_payload()
            if payload is not None:
                length = sum(map(len, payload))
                frames.append(HEADER.pack(DATA, 0, stream.id, self.epoch, length))
                frames += payload
                size += length
        if self._closing:
            frames += self._take_closes()
        if self._bye is not None and not self._active:
            frames.append(self._bye)
            self._bye = None
        return b"".join(frames)

    def ping(self, token: bytes) -> None:
        """Send a ping of 8 bytes that the other end cannot guess: only one that reads can answer."""
        self._ping = self._awaited = token

    def last_ping(self, token: bytes) -> bytes:
        """Return a ping to be written at once; its answer tells that the other end has received all before it."""
        self._ping, self._awaited = None, token
        return encode_frame(PING, 0, self.epoch, token)

    def tick(self) -> None:
        """Begin a new interval for counting frames without data; called once per heartbeat."""
        self._idle_frames = 0

    def bye(self, reason: str) -> None:
        """Say goodbye after what is queued."""
        self._bye = encode_frame(BYE, 0, self.epoch, reason.encode()[:256])

    def put(self, number: int, head: bytes, parts: Sequence[bytes], size: int) -> None:
        """Queue a short message as one frame; called by `SessionStream`."""
        self._ready.append(HEADER.pack(DATA, 0, number, self.epoch, size) + head)
        self._ready += parts
        self._ready_size += size

    def grant(self, stream: SessionStream, amount: int) -> None:
        """Give credit back with the next bytes sent; called by `SessionStream`."""
        self._grants[stream.id] = self._grants.get(stream.id, 0) + amount

    def activate(self, stream: SessionStream) -> None:
        """Give a stream with data and credit its turn; called by `SessionStream`."""
        self._active.append(stream)

    def finish(self, stream: SessionStream) -> None:
        """Send CLOSE for a stream; called by `SessionStream`."""
        self._closing[stream] = None

    def _advance(self) -> None:
        self._next = self._next + 2 if self._next < 0xFFFE else 2 - self._next % 2

    def _queue(self, frame: bytes) -> None:
        self._ready.append(frame)
        self._ready_size += len(frame)

    def _count_idle(self) -> None:
        self._idle_frames += 1
        if self._idle_frames > self.limits.idle_frames:
            raise ProtocolError(f"More than {self.limits.idle_frames} frames without data came between two heartbeats.")

    def _handle(self, frame: Frame) -> SessionStream | None:
        kind = frame.type
        if kind == PING:
            self._pong = frame.payload
        elif kind == PONG:
            if frame.payload == self._awaited:
                self._awaited = None
        elif kind == BYE:
            self.goodbye = printable(frame.payload)
        elif kind == OPEN:
            return self._handle_open(frame)
        elif kind in (DATA, CREDIT, CLOSE):
            return self._handle_stream(frame)
        else:
            raise ProtocolError(f"Frame type {NAMES[kind]} is not allowed after the proofs.")
        return None

    def _handle_open(self, frame: Frame) -> SessionStream:
        number = frame.stream
        if self._accept is None:
            raise ProtocolError(f"OPEN of stream {number} is not for this end to ask.")
        if not number or number % 2 == self._next % 2:
            raise ProtocolError(f"OPEN stream number {number} is not one of the other end's.")
        if number in self._streams:
            raise ProtocolError(f"OPEN stream number {number} is in use.")
        if len(self._streams) >= self.limits.max_streams:
            raise ProtocolError(f"OPEN exceeds {self.limits.max_streams} streams.")
        if not (frame.payload.isascii() and frame.payload.decode("ascii").isprintable()):
            raise ProtocolError("OPEN service name is not printable ASCII.")
        stream = self._streams[number] = SessionStream(self, number, frame.payload.decode("ascii"))
        if not self._accept(stream.service):
            stream.close()
        return stream

    def _handle_stream(self, frame: Frame) -> SessionStream:
        stream = self._streams.get(frame.stream)
        if stream is None:
            raise ProtocolError(f"{NAMES[frame.type]} stream number {frame.stream} is not open.")
        if frame.type == CREDIT:
            stream.credit(_U32.unpack(frame.payload)[0])
        else:
            stream.end()
            self._forget(stream)
        return stream

    def _take_answers(self) -> list[bytes]:
        frames: list[bytes] = []
        if self._pong is not None:
            frames.append(encode_frame(PONG, 0, self.epoch, self._pong))
            self._pong = None
        if self._ping is not None:
            frames.append(encode_frame(PING, 0, self.epoch, self._ping))
            self._ping = None
        if self._grants:
            for number, amount in self._grants.items():
                stream = self._streams.get(number)
                if stream is not None and not stream.ended and not stream.closed:
                    stream.allow(amount)
                    frames.append(encode_frame(CREDIT, number, self.epoch, _U32.pack(amount)))
            self._grants = {}
        return frames

    def _take_closes(self) -> list[bytes]:
        frames: list[bytes] = []
        for stream in [stream for stream in self._closing if not stream.queued]:
            frames.append(encode_frame(CLOSE, stream.id, self.epoch))
            del self._closing[stream]
            self._forget(stream)
        return frames

    def _forget(self, stream: SessionStream) -> None:
        if stream.ended and stream.closed and stream not in self._closing:
            self._streams.pop(stream.id, None)
            self._grants.pop(stream.id, None)
