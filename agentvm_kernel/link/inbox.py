"""The inbox: a disk on which the host lays what is too much for a port, which gives a guest 4 KiB at a time.

Only the host writes on it, and only the guest reads. A message over the link refers to what lies in a slot; when the
guest has taken it, its answer lets the host use the slot again. Each time has a token of its own, which lies in front
of what it belongs to: a clone that goes on where its original waited for a slot has a disk of its own, and must not
take for its answer what lies there.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from agentvm_kernel.errors import ProtocolError

SERVICE: Final = "inbox"
SERIAL: Final = "agentvm-inbox"
SLOTS: Final = 16
SLOT: Final = 1 << 20
HEAD: Final = 512
"""Bytes in front of what lies in a slot, of which the first are the token: a sector, as disks are read by sectors."""

CAPACITY: Final = SLOT - HEAD
SIZE: Final = SLOTS * SLOT
TOKEN: Final = 8

_FORMAT: Final = struct.Struct(f">BI{TOKEN}s")


@dataclass(frozen=True)
class Reference:
    """What lies in a slot.

    Attributes:
        slot: The slot's number.
        size: Bytes, without the head.
        token: Tells this time from all others, of all machines.
    """

    slot: int
    size: int
    token: bytes

    @property
    def offset(self) -> int:
        """Where on the disk the slot begins."""
        return self.slot * SLOT

    def encode(self) -> bytes:
        """Return what is sent over the link."""
        return _FORMAT.pack(self.slot, self.size, self.token)


def decode(data: bytes) -> Reference:
    """Return the reference that came over the link.

    Args:
        data: What came.

    Raises:
        ProtocolError: it is none.
    """
    if len(data) != _FORMAT.size:
        raise ProtocolError(f"A reference into the inbox has {len(data)} bytes, not {_FORMAT.size}.")
    reference = Reference(*_FORMAT.unpack(data))
    if reference.slot >= SLOTS or not 0 < reference.size <= CAPACITY:
        raise ProtocolError(f"A reference of {reference.size} bytes in slot {reference.slot} is outside the inbox.")
    return reference
