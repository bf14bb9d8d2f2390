"""The five sockets that Jupyter's clients connect to."""

from __future__ import annotations

import asyncio
import errno
import logging
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

import zmq
import zmq.asyncio

from agentvm_kernel.kernel.wire import ClientMessage, Wire, WireError

log = logging.getLogger("agentvm.sockets")

CHANNELS: Final = ("shell", "control", "stdin", "iopub")
_TRACKED: Final = zmq.COPY_THRESHOLD
"""Frames from this size on (64 KiB) are queued without a copy and counted until the last client has them."""

_QUEUED_MESSAGES: Final = 1000
_QUEUED_BYTES: Final = 64 * 1024 * 1024
_RETRY: Final = 0.005
_RETRIES: Final = 1000
"""About five seconds; counted, so that a pause of this process or of the host is not held against its clients."""


@dataclass
class Addresses:
    """Where to bind, and CurveZMQ's keys.

    Attributes:
        transport: ``tcp`` or ``ipc``.
        ip: Address, or the path's beginning with ``ipc``.
        ports: Port by channel name (and ``hb``); 0 is replaced by a free one.
        curve: Public and secret key (Z85) when the connection is encrypted.
    """

    transport: str
    ip: str
    ports: dict[str, int]
    curve: tuple[bytes, bytes] | None = None

    def bind(self, socket: zmq.Socket[object], name: str) -> None:
        """Bind a socket to a channel's address and remember the port."""
        if self.curve:
            socket.curve_publickey, socket.curve_secretkey = self.curve
            socket.curve_server = True
        socket.linger = 1000
        port = self.ports[name]
        if self.transport == "tcp":
            base = f"tcp://{self.ip}"
            self.ports[name] = port or int(socket.bind_to_random_port(base))
            if port:
                socket.bind(f"{base}:{port}")
            return
        while not port:
            taken = {*self.ports.values(), 0}
            port = next(n for n in range(1, 1 << 16) if n not in taken and not Path(f"{self.ip}-{n}").exists())
        self.ports[name] = port
        socket.bind(f"ipc://{self.ip}-{port}")


class Heartbeat(threading.Thread):
    """Echoes on its own thread and context, so that it beats however busy the router is."""

    def __init__(self, addresses: Addresses) -> None:
        super().__init__(name="Heartbeat", daemon=True)
        self._context = zmq.Context()
        self._socket: zmq.Socket[object] = self._context.socket(zmq.ROUTER)
        addresses.bind(self._socket, "hb")

    def run(self) -> None:
        """Echo until the context is terminated."""
        while True:
            try:
                zmq.proxy(self._socket, self._socket)
            except zmq.ZMQError as error:
                if error.errno == errno.EINTR:
                    continue
                self._socket.close()
                return

    def stop(self) -> None:
        """End the thread."""
        self._context.term()
        self.join()


class Sockets:
    """Shell, control, stdin (ROUTER) and iopub (XPUB).

    What is queued to slow clients is bounded for the process: a thousand messages, of which frames of 64 KiB and more
    together at most 64 MiB. A client that has not read for five seconds loses what does not fit; until then the guest
    has to wait.

    Args:
        wire: Verifies and signs.
        addresses: Where to bind.
    """

    def __init__(self, wire: Wire, addresses: Addresses) -> None:
        self.wire = wire
        self.addresses = addresses
        self.dropped = 0
        self._context = zmq.asyncio.Context()
        self._topic = f"kernel.{wire.session.session}.".encode()
        self._sockets: dict[str, zmq.asyncio.Socket] = {}
        self._in_flight: list[tuple[zmq.MessageTracker, int]] = []
        self._impatient = False
        for name in CHANNELS:
            socket = self._context.socket(zmq.XPUB if name == "iopub" else zmq.ROUTER)
            if name == "iopub":
                socket.sndhwm = _QUEUED_MESSAGES
                socket.setsockopt(zmq.XPUB_NODROP, 1)
                socket.setsockopt(zmq.XPUB_VERBOSE, 1)  # else only the first subscriber of a topic is told of
            else:
                socket.router_handover = 1
            addresses.bind(socket, name)
            self._sockets[name] = socket

    async def messages(self, channel: str) -> AsyncIterator[ClientMessage]:
        """Yield the verified messages of a channel; others are logged and dropped."""
        socket = self._sockets[channel]
        while True:
            frames = await socket.recv_multipart()
            try:
                yield self.wire.unpack(frames)
            except WireError as error:
                log.warning("dropped a message on %s: %s", channel, error)

    async def welcome_subscribers(self) -> None:
        """Greet each new iopub subscriber with `iopub_welcome`, as JEP 65 wants."""
        socket = self._sockets["iopub"]
        while True:
            frame = await socket.recv()
            if frame[:1] != b"\x01":
                continue
            try:
                subscription = frame[1:].decode()
            except UnicodeDecodeError:
                continue
            _, frames = self.wire.pack("iopub_welcome", {"subscription": subscription})
            await self._publish([frame[1:], *frames] if subscription else frames)

    def send(self, channel: str, idents: list[bytes], frames: list[bytes]) -> None:
        """Send to one client; a client that is gone, or has a thousand unread messages, misses it."""
        _send_now(self._sockets[channel], [*idents, *frames], copy=_small(frames))

    async def publish(self, msg_type: str, frames: list[bytes]) -> None:
        """Publish on iopub.

        Args:
            msg_type: For the topic.
            frames: From the delimiter on.
        """
        await self._publish([self._topic + msg_type.encode(), *frames])

    async def _publish(self, frames: list[bytes]) -> None:
        """Publish now, or as soon as the slowest client has room.

        libzmq never reports that an XPUB became writable, hence the retries. A client that was given up on for large
        frames is not waited for again until it has taken some.
        """
        size = sum(len(frame) for frame in frames if len(frame) >= _TRACKED)
        for _ in range(_RETRIES):
            if self._try(frames, size):
                self._impatient &= not size
                return
            if size and self._impatient:
                break
            await asyncio.sleep(_RETRY)
        self._impatient |= bool(size)
        self._drop(frames, size)

    def _try(self, frames: list[bytes], size: int) -> bool:
        if size:
            self._in_flight = [(tracker, bytes_) for tracker, bytes_ in self._in_flight if not tracker.done]
            queued = sum(bytes_ for _, bytes_ in self._in_flight)
            if queued and queued + size > _QUEUED_BYTES:
                return False
        try:
            tracker = _send_now(self._sockets["iopub"], frames, copy=not size, track=bool(size))
        except zmq.Again:
            return False
        if tracker is not None:
            self._in_flight.append((tracker, size))
        return True

    def _drop(self, frames: list[bytes], size: int) -> None:
        """Send what is small to the clients that still read; the others lose it.

        Once it dropped for a client, libzmq passes that client over, without an error, until it has read a good part
        of its queue.
        """
        self.dropped += 1
        if size:
            log.warning("a client does not read: an output of %d bytes was dropped", size)
            return
        socket = self._sockets["iopub"]
        socket.setsockopt(zmq.XPUB_NODROP, 0)
        _send_now(socket, frames)
        socket.setsockopt(zmq.XPUB_NODROP, 1)

    def close(self) -> None:
        """Close all sockets; what is queued has a second to leave."""
        for socket in self._sockets.values():
            socket.close()
        self._context.term()


def _send_now(
    socket: zmq.asyncio.Socket, frames: list[bytes], *, copy: bool = True, track: bool = False
) -> zmq.MessageTracker | None:
    """Send without waiting.

    Through the asyncio socket all the same, which then looks for messages that came meanwhile: a send consumes the
    edge of the socket's descriptor.

    Raises:
        zmq.Again: there is no room.
    """
    future = cast(
        "asyncio.Future[zmq.MessageTracker | None]",
        socket.send_multipart(frames, flags=zmq.DONTWAIT, copy=copy, track=track),
    )
    return future.result()


def _small(frames: list[bytes]) -> bool:
    return max(map(len, frames)) < _TRACKED
