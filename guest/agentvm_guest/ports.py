"""What the agent talks through: virtio-serial ports, vsock and (for tests) Unix sockets."""

from __future__ import annotations

import os
import socket
from pathlib import Path

_READ = 65536


class Port:
    """A non-blocking byte channel.

    Args:
        fd: Its descriptor, owned by the port from here on.
        lasting: True for a virtio-serial port, which outlives its host end's connections: a hang-up is passing.
    """

    def __init__(self, fd: int, *, lasting: bool) -> None:
        self.fd = fd
        self.lasting = lasting
        os.set_blocking(fd, False)

    def read(self) -> bytes | None:
        """Return received bytes; None when there are none; nothing (``b""``) when the host end is not connected."""
        try:
            return os.read(self.fd, _READ)
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


def open_virtio_port(name: str) -> Port:
    """Open a virtio-serial port. Only one descriptor can be open: a second open fails."""
    device = find_virtio_port(name)
    return Port(os.open(device, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC), lasting=True)


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
