"""One TCP connection of a guest's program, as the gateway sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from agentvm_kernel.link.frame import MAX_PAYLOAD

PIECE: Final = MAX_PAYLOAD - 8
"""Bytes that fill a frame: they go through both ends of the link without being put together from pieces."""


@dataclass(frozen=True)
class Opening:
    """What a guest says about a connection that it opens: its own words, bounded in length, not validated.

    Attributes:
        name: The name that the program looked up; None where it used an address.
        address: The address that it connected to.
        port: The port that it connected to.
    """

    name: str | None
    address: str
    port: int


class Channel(Protocol):
    """One TCP connection of a guest's program. Made by the tunnel, one user at each direction."""

    async def receive(self) -> bytes:
        """Return what the guest sent next; empty when it has ended its direction.

        Cancelling it loses nothing.

        Raises:
            LinkError: the guest has reset the connection, or the link has ended.
        """

    async def send(self, data: bytes) -> None:
        """Send to the guest; returns once there is room for more.

        Args:
            data: Not empty.

        Raises:
            LinkError: the guest has reset the connection, or the link has ended.
        """

    async def send_eof(self) -> None:
        """End this direction: the guest's program reads an end after what was sent.

        Raises:
            LinkError: as ``send``.
        """

    def close(self) -> None:
        """Let go of the connection: an ordinary end if both directions have ended, else a reset in the guest."""
