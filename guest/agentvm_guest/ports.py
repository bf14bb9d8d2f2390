"""What the agent talks through: virtio-serial ports, vsock and (for tests) Unix sockets."""

from __future__ import annotations

import os
import socket
from pathlib import Path

_READ = 65536
# What virtio-serial receives in: one call can take many of its buffers, each into one of these.
_BUFFER = 4096


class Port:
    """A non-blocking byte channel.

    Args:
        fd: Its descriptor, owned by the port from here on.
        lasting: True for a virtio-serial port, which outlives its host end's connections: a hang-up is passing.
        at_once: Most bytes of a virtio-serial port that one read takes.
    """

    def __init__(self, fd: int, *, lasting: bool, at_once: int = _READ) -> None:
        self.fd = fd
        self.lasting = lasting
        self._space = bytearray(at_once)
        whole = memoryview(self._space)
        self._buffers = [whole[start : start + _BUFFER] for start in range(0, at_once, _BUFFER)]
        os.set_blocking(fd, False)

    def read(self) -> bytes | None:
        """Return received bytes; None when there are none; nothing (``b""``) when the host end is not connected."""
        try:
            if not self.lasting:
                return os.read(self.fd, _READ)
            return bytes(memoryview(self._space)[: os.readv(self.fd, self._buffers)])
        except BlockingIOError:
            return None
        except OSError:
            # A vsock connection is reset when its VM is loaded from a snapshot: an end like any other.
            return b""

    def drained_by(self, data: bytes) -> bool:
        """Return whether a read that gave this shows that there is no more: a socket's does, a port gives pieces."""
        return not self.lasting and len(data) < _READ

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Write as much as goes; 0 when nothing does or the other end is gone, which `read` reports."""
        try:
            return os.write(self.fd, data)
        except OSError:
            return 0

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)


def find_virtio_port(name: str, root: Path = Path("/sys/class/virtio-ports")) -> Path:
    """Return the device of a virtio-serial port by its name; ``/dev/virtio-ports`` would need udev.

    Raises:
        FileNotFoundError: there is no such port.
    """
    for entry in sorted(root.glob("*/name")):
        if entry.read_text().strip() == name:
            return Path("/dev") / entry.parent.name
    raise FileNotFoundError(f"There is no virtio-serial port named {name}.")


def open_virtio_port(name: str, at_once: int = _READ) -> Port:
    """Open a virtio-serial port. Only one descriptor can be open: a second open fails.

    Args:
        name: The port's name.
        at_once: See `Port`.
    """
    device = find_virtio_port(name)
    return Port(os.open(device, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC), lasting=True, at_once=at_once)


def listen_vsock(port: int) -> socket.socket:
    """Listen for the host on an AF_VSOCK port."""
    listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    listener.bind((socket.VMADDR_CID_ANY, port))
    return _listen(listener)


def listen_unix(path: str) -> socket.socket:
    """Listen on a Unix socket, in place of a virtio-serial port, where the agent is tested outside of a VM."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    return _listen(listener)


def accept(listener: socket.socket) -> Port | None:
    """Return the next connection, or None when there is none."""
    try:
        connection, _ = listener.accept()
    except OSError:
        return None
    return Port(connection.detach(), lasting=False)


def _listen(listener: socket.socket) -> socket.socket:
    listener.listen(16)
    listener.setblocking(False)
    return listener
