"""Where a guest agent can be dialled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class UnixEndpoint:
    """The host end of a virtio-serial port: a listening Unix socket of QEMU.

    Attributes:
        path: The socket's path.
    """

    path: str
    kind: Literal["unix"] = "unix"


@dataclass(frozen=True)
class VsockEndpoint:
    """An AF_VSOCK port inside the guest.

    Attributes:
        cid: The VM's context id.
        port: The port on which the guest agent listens.
    """

    cid: int
    port: int
    kind: Literal["vsock"] = "vsock"


Endpoint = UnixEndpoint | VsockEndpoint
