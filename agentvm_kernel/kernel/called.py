"""What can be known of a host magic before it is carried out."""

from __future__ import annotations

from typing import Protocol


class Called(Protocol):
    """A host magic as it was called in a cell."""

    @property
    def at_once(self) -> bool:
        """Whether it is carried out while a cell runs, instead of behind it."""

    @property
    def discards(self) -> bool:
        """Whether it throws the VM away, so that it does not wait long for one that hangs."""

    @property
    def ends_waiting(self) -> bool:
        """Whether it does not wait for a VM that is on its way, but ends the waiting for one."""
