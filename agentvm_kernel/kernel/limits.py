"""The limits that hold in a notebook: its profile's, and what its user has changed."""

from __future__ import annotations

from collections.abc import Mapping

from agentvm_kernel.profiles import Limits
from agentvm_kernel.supervisor.messages import Granted

Changes = Mapping[str, float | None]


class HeldLimits:
    """What is known of them here; the supervisor's and the guest's are set by the supervisor.

    Changes outlive the lease: they are asked for again with the next.

    Attributes:
        profile: Name of the profile.
        given: The profile's limits.
        now: What holds.
        changes: What the user has changed.
    """

    def __init__(self) -> None:
        self.profile = ""
        self.given = self.now = Limits()
        self.changes: dict[str, float | None] = {}

    def granted(self, granted: Granted) -> None:
        """Take note of a fresh lease, which begins with the profile's limits."""
        self.profile = granted.profile
        self.given = self.now = granted.limits

    def changed(self, changes: Changes, now: Limits) -> None:
        """Take note of a change that the supervisor has confirmed.

        Args:
            changes: What was asked for.
            now: What holds since.
        """
        kept = self.changes | dict(changes)
        given = self.given.model_dump()
        self.changes = {name: value for name, value in kept.items() if given[name] != value}
        self.now = now

    def back(self) -> dict[str, float | None]:
        """Return the changes that take all others back."""
        given = self.given.model_dump()
        return {name: given[name] for name in self.changes}

    def source(self, name: str) -> str:
        """Say where a limit comes from, in a few words."""
        return "set by %limits" if name in self.changes else f"of profile {self.profile}"
