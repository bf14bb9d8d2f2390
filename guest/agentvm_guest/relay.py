"""Carries Jupyter messages between a link's streams and ipykernel's sockets, without looking into them.

A message is taken from one side only when the other has room: a host that does not read leaves ipykernel's output in
ipykernel's own queue, and when that is full, the cell waits (see `launcher`).
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable

from agentvm_guest.zmtp import OverLong, ZmtpError, ZmtpSocket
from agentvm_kernel.link.message import message_size
from agentvm_kernel.link.stream import SessionStream

DELIMITER = b"<IDS|MSG>"
SERVICES = ("shell", "control", "stdin", "iopub")
# Header, parent header, metadata, content.
_MIN_PARTS = 4


def encode_request(parts: list[bytes]) -> list[bytes]:
    """Return the frames of a message to ipykernel: delimiter, empty signature, the message."""
    return [DELIMITER, b"", *parts]


def strip_frames(frames: list[bytes]) -> list[bytes] | None:
    """Return a message of ipykernel's without topic, delimiter and signature; None when it is none."""
    try:
        parts = frames[frames.index(DELIMITER) + 2 :]
    except ValueError:
        return None
    return parts if len(parts) >= _MIN_PARTS else None


def replace_over_long(message: OverLong, limit: int, *, iopub: bool) -> list[bytes]:
    """Return what is sent in place of a message that is longer than the link takes.

    On iopub that is a line on stderr under the same parent; on the other channels the same message with an error as its
    content, because somebody waits for it.
    """
    parts = message.parts
    if DELIMITER in parts[:2]:
        parts = parts[parts.index(DELIMITER) + 2 :]
    # Header and parent are missing only where they themselves were over-long, which nobody can be waiting for.
    header, parent = parts[:2] if len(parts) >= 2 else (json.dumps(make_header("error")).encode(), b"{}")
    text = f"A message of {message.size} bytes was left out: the limit is {limit} bytes.\n"
    if iopub:
        content: dict[str, object] = {"name": "stderr", "text": text}
        header = json.dumps(make_header("stream")).encode()
    else:
        content = {"status": "error", "ename": "MessageTooLong", "evalue": text.strip(), "traceback": []}
    return [header, parent, b"{}", json.dumps(content).encode()]


def make_header(kind: str) -> dict[str, str]:
    """Return a message header of the agent's own."""
    return {
        "msg_id": uuid.uuid4().hex,
        "session": "agentvm",
        "username": "agentvm",
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "msg_type": kind,
        "version": "5.5",
    }


class Bridge:
    """One channel: a stream of the link and a socket of ipykernel's.

    Args:
        service: The channel's name.
        set_writing: Asks the loop to say when the socket has room again.

    Attributes:
        readable: Whether ipykernel may have sent something that was not taken.
    """

    def __init__(self, service: str, set_writing: Callable[[int, bool], None]) -> None:
        self.service = service
        self.socket: ZmtpSocket | None = None
        self.stream: SessionStream | None = None
        self.readable = True
        self._set_writing = set_writing

    @property
    def waiting(self) -> bool:
        """Whether more may be there for a host that listens."""
        return self.readable and self.socket is not None and self.stream is not None

    def on_socket(self) -> None:
        """Note that the socket has something to read, or room."""
        self.readable = True
        if self.socket is None:
            return
        self.socket.wake()
        if self.socket.blocked:
            self.socket.flush()
            self.from_host()

    def from_host(self) -> None:
        """Move messages from the link to ipykernel while it takes them."""
        socket, stream = self.socket, self.stream
        if socket is None or stream is None:
            return
        while not socket.blocked and (parts := stream.receive()) is not None:
            socket.send(encode_request(parts))
        self._set_writing(socket.fd, socket.blocked)

    def to_host(self) -> None:
        """Move messages from ipykernel to the link while there is credit and room.

        Raises:
            ZmtpError: ipykernel's end is gone.
        """
        socket, stream = self.socket, self.stream
        if socket is None or stream is None:
            return
        while stream.writable:
            message = socket.read()
            if message is None:
                self.readable = False
                break
            parts = message if isinstance(message, OverLong) else strip_frames(message)
            if parts is not None:
                stream.send(self._fit(parts, stream.max_message))

    def _fit(self, parts: list[bytes] | OverLong, limit: int) -> list[bytes]:
        if not isinstance(parts, OverLong):
            size = message_size(parts)
            if size <= limit:
                return parts
            parts = OverLong(size, parts[:2])
        return replace_over_long(parts, limit, iopub=self.service == "iopub")


class Relay:
    """The four channels.

    Args:
        set_writing: Asks the loop to say when a socket has room again.
        on_broken: Called when ipykernel does not speak ZMTP any more although it may still run.
    """

    def __init__(self, set_writing: Callable[[int, bool], None], on_broken: Callable[[str], None]) -> None:
        self._bridges = {service: Bridge(service, set_writing) for service in SERVICES}
        self._on_broken = on_broken

    def connect(self, sockets: dict[str, ZmtpSocket]) -> dict[int, Callable[[], None]]:
        """Take ipykernel's sockets; returns the handler of each descriptor."""
        for service, socket in sockets.items():
            self._bridges[service].socket = socket
        return {bridge.socket.fd: bridge.on_socket for bridge in self._bridges.values() if bridge.socket is not None}

    def disconnect(self) -> None:
        """Forget the sockets: ipykernel is gone."""
        for bridge in self._bridges.values():
            bridge.socket = None

    def attach(self, stream: SessionStream) -> bool:
        """Take a stream that the host opened; False when its channel has another already."""
        bridge = self._bridges[stream.service]
        if bridge.stream is None:
            bridge.stream = stream
        return bridge.stream is stream

    def detach(self, stream: SessionStream | None = None) -> None:
        """Forget a stream, or all when the link ended."""
        for bridge in self._bridges.values():
            if stream is None or bridge.stream is stream:
                bridge.stream = None

    def from_host(self, stream: SessionStream) -> None:
        """Move what a stream has received."""
        self._bridges[stream.service].from_host()

    def to_host(self) -> bool:
        """Move what ipykernel has sent; returns whether more may be there, for want of credit or room."""
        more = False
        for bridge in self._bridges.values():
            if not bridge.readable:
                continue
            try:
                bridge.to_host()
            except ZmtpError as error:
                self.disconnect()
                self._on_broken(f"{bridge.service}: {error}")
                return False
            more |= bridge.waiting
        return more
