"""A lease: a session's exclusive right to a VM, whichever VM that is after a rollback."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, field

from agentvm_kernel.config import Profile
from agentvm_kernel.errors import AgentVMError
from agentvm_kernel.observe.audit import AuditLog
from agentvm_kernel.snapshots.tree import Tree
from agentvm_kernel.supervisor.messages import Ended, Granted, LeaseRequest
from agentvm_kernel.vm.clone import VM


@dataclass
class Fork:
    """A clone of a lease's VM.

    Attributes:
        vm: The VM.
        is_resting: Its work is done; it is paused and waits to be adopted.
        settled: Set once it rests or was told to end.
    """

    vm: VM
    is_resting: bool = False
    settled: asyncio.Event = field(default_factory=asyncio.Event)


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


class Lease:
    """A session's right to a VM.

    Attributes:
        terms: What stays the same.
        vm: The VM that it has now.
        granted: What the session was told of it.
        forks: Clones of the VM, by number.
        forking: Who makes them: the last that was asked to.
        turn: Held by who changes the VM or saves it: one at a time.
        failure: Why the last snapshot could not be kept, if nobody has been told yet.
    """

    def __init__(self, terms: Terms, vm: VM, granted: Granted, audit: AuditLog) -> None:
        self.terms = terms
        self.forks: dict[int, Fork] = {}
        self.forking: object = None
        self.turn = asyncio.Lock()
        self.failure: AgentVMError | None = None
        self._audit = audit
        self._guest_reason = ""
        self._refusals = 0
        self.take(vm, granted)

    @property
    def current(self) -> str:
        """Id of the snapshot that the VM descends from; empty for the golden one."""
        return "" if self.vm.snapshot.parent is None else self.vm.snapshot.id

    def take(self, vm: VM, granted: Granted) -> None:
        """Have this VM from now on."""
        self.vm, self.granted = vm, granted
        self._guest_reason = ""
        vm.on_event = self._on_guest_event

    async def ended(self) -> Ended:
        """Wait until the VM that the lease has is gone, and say why."""
        while True:
            vm = self.vm
            reason = await asyncio.shield(vm.ended)
            if vm is self.vm:
                return Ended(
                    code="vm_ended",
                    reason=f"{self._guest_reason or reason[:1].upper() + reason[1:]}.",
                    hint="Restart the kernel, or run %vm restart, for a fresh VM.",
                )

    def _on_guest_event(self, event: dict[str, object]) -> None:
        """Take note of what the guest says of itself; nothing here may grow with what it sends."""
        match event.get("event"):
            case "agent_died":
                self._guest_reason = f"The guest agent inside the VM was killed (signal {event.get('signal')!s:.8})"
            case "link_refused":
                self._refusals += 1
                if self._refusals & (self._refusals - 1) == 0:  # 1, 2, 4, 8 …: a flood must not fill the log
                    self._audit.record(
                        "link_refused", vm=self.vm.id, reason=str(event.get("reason")), count=self._refusals
                    )
