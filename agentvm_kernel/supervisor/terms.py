"""The terms of a lease: what was asked for, and what stays the same as long as it lasts."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from agentvm_kernel.profiles import Profile
from agentvm_kernel.snapshots.tree import Tree
from agentvm_kernel.supervisor.messages import LeaseRequest


@dataclass
class Terms:
    """What stays the same as long as a lease lasts.

    Attributes:
        id: The lease's id.
        request: What was asked for.
        tree: Where its snapshots go.
        flavour: Flavour of the image.
        profile: Name of the profile.
        resources: What the profile gives.
    """

    request: LeaseRequest
    tree: Tree
    flavour: str
    profile: str
    resources: Profile
    id: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def session(self) -> str:
        """Among whom VMs are shared out fairly: notebooks."""
        return self.request.notebook or self.request.owner
