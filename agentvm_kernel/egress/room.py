"""How much of what is recorded and replayed may be in memory at once, in all connections of a lease together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from agentvm_kernel.errors import CassetteError

MOST: Final = 64 << 20
"""As much as fits into a recording."""


class Room:
    """What all connections of a lease have.

    Args:
        size: Bytes.
    """

    def __init__(self, size: int = MOST) -> None:
        self._size = self._left = size

    @contextmanager
    def part(self) -> Iterator[Part]:
        """Have a part of it, which is given back at the end."""
        part = Part(self)
        try:
            yield part
        finally:
            part.give_back()

    def take(self, size: int) -> None:
        """Take of it.

        Args:
            size: Bytes.

        Raises:
            CassetteError: there is not so much.
        """
        if size > self._left:
            raise CassetteError(
                f"Exchanges that are recorded or replayed hold {self._size >> 20} MiB of memory already.",
                "Ask for less at once, and read all answers.",
            )
        self._left -= size

    def give_back(self, size: int) -> None:
        """Give back what was taken."""
        self._left += size


class Part:
    """What one connection has of it. Made by `Room.part`."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._held = 0

    def take(self, size: int) -> None:
        """Take more.

        Args:
            size: Bytes.

        Raises:
            CassetteError: there is not so much.
        """
        self._room.take(size)
        self._held += size

    def give_back(self) -> None:
        """Give all of it back."""
        self._room.give_back(self._held)
        self._held = 0
