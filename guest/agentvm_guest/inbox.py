"""The guest's end of the inbox: reads from its disk what the host refers to."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path

from agentvm_kernel.link.inbox import HEAD, SERIAL, SLOT, TOKEN, Reference

_BLOCK = Path("/sys/block")


class Piece:
    """What lies in a slot, as it was read. Made by `Inbox.read`, and given back to it.

    Attributes:
        reference: What referred to it.
        content: Its bytes; they are not there any more once it was given back.
    """

    def __init__(self, reference: Reference, room: mmap.mmap) -> None:
        self.reference = reference
        self.room = room
        self.content = memoryview(room)[HEAD : HEAD + reference.size]


class Inbox:
    """The disk.

    Args:
        fd: The disk, open for direct reading: what the guest's kernel would keep of it could be old.

    Attributes:
        on_taken: Called with the token of each piece that was taken.
    """

    def __init__(self, fd: int) -> None:
        self.on_taken: Callable[[bytes], None] = lambda _token: None
        self._fd = fd
        self._rooms: list[mmap.mmap] = []

    def read(self, reference: Reference) -> Piece:
        """Return what lies in a slot.

        Args:
            reference: What the host sent.

        Raises:
            OSError: it cannot be read, or what lies there is something else: it was meant for the machine of which
                this one is a clone.
        """
        room = self._rooms.pop() if self._rooms else mmap.mmap(-1, SLOT)
        try:
            length = -(-(HEAD + reference.size) // HEAD) * HEAD
            with memoryview(room) as whole, whole[:length] as part:
                got = os.preadv(self._fd, [part], reference.offset)
            if got < HEAD + reference.size or room[:TOKEN] != reference.token:
                raise OSError("what lies in the inbox is not for this machine")
        except OSError:
            self._rooms.append(room)
            raise
        return Piece(reference, room)

    def give_back(self, piece: Piece, *, taken: bool) -> None:
        """Let the memory of a piece be used for the next.

        Args:
            piece: One that was read.
            taken: Whether whom it was for has taken it.
        """
        piece.content.release()
        self._rooms.append(piece.room)
        if taken:
            self.on_taken(piece.reference.token)


def open_inbox(path: Path | None = None) -> Inbox | None:
    """Return the inbox, if this machine has one that can be read.

    Args:
        path: Where it is, for tests; by default it is the disk with its serial number.
    """
    path = path or _find()
    if path is None:
        return None
    try:
        return Inbox(os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC))
    except OSError:
        return None


def _find() -> Path | None:
    for serial in _BLOCK.glob("vd*/serial"):
        if serial.read_text().strip() == SERIAL:
            return Path("/dev", serial.parent.name)
    return None
