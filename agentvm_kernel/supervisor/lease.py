"""A lease: a session's exclusive right to a VM, whichever VM that is after a rollback."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from agentvm_kernel.errors import AgentVMError, VMError
from agentvm_kernel.observe.audit import AuditLog
from agentvm_kernel.observe.events.execution import ResourceLimitExceeded
from agentvm_kernel.observe.events.network import LinkRefused
from agentvm_kernel.observe.fields import Subject, claimed
from agentvm_kernel.observe.metrics import Metrics
from agentvm_kernel.snapshots.notes import Way
from agentvm_kernel.supervisor.admission import Slot
from agentvm_kernel.supervisor.executions import Executions
from agentvm_kernel.supervisor.lease_network import LeaseNetwork
from agentvm_kernel.supervisor.messages import Ended, Granted, Message
from agentvm_kernel.supervisor.terms import Terms
from agentvm_kernel.vm.clone import VM
from agentvm_kernel.vm.sharing import Share


class StoppedError(VMError):
    """The VM is stopped because of an anomaly."""

    code = "stopped"


@dataclass
class Fork:
    """A clone of a lease's VM.

    Attributes:
        vm: The VM.
        slot: Its right to be.
        is_resting: Its work is done; it is paused and waits to be adopted.
        is_lent: It is a clone of an older snapshot, without a network, that somebody looks into.
        settled: Set once it rests or was told to end.
    """

    vm: VM
    slot: Slot
    is_resting: bool = False
    is_lent: bool = False
    settled: asyncio.Event = field(default_factory=asyncio.Event)


class Lease:
    """A session's right to a VM.

    Attributes:
        terms: What stays the same.
        vm: The VM that it has now.
        way: Which runs lay behind that VM when it began.
        granted: What the session was told of it.
        forks: Clones of the VM, by number.
        forking: Who makes them: the last that was asked to.
        turn: Held by who changes the VM or saves it: one at a time.
        failure: Why the last snapshot could not be kept, if nobody has been told yet.
        slot: Its right to have a VM.
        limits: What holds for what runs in its VM.
        began: When it began, on the event loop's clock.
        tell: Tells its session.
        network: What it may reach.
        share: The folder of the host that its VM shares, and the one that takes its place; ``None`` for none.
        executions: What ran in it, and how it ended.
        output: Bytes that its cells have put out, as its session says.
        is_travelling: A snapshot is taken after every cell, as its session says.
        is_stopped: Says whether its VM is stopped because of an anomaly.
    """

    def __init__(
        self,
        terms: Terms,
        vm: VM,
        granted: Granted,
        audit: AuditLog,
        metrics: Metrics,
        slot: Slot,
        tell: Callable[[Message], None],
        network: LeaseNetwork,
    ) -> None:
        self.terms = terms
        self.network = network
        self.share: Share | None = None
        self.executions = Executions(lambda: self.subject, audit.record, metrics)
        self.slot = slot
        self.tell = tell
        self.limits = granted.limits
        self.began = asyncio.get_running_loop().time()
        self._timer: asyncio.TimerHandle | None = None
        self._expiry: asyncio.Task[None] | None = None
        self.forks: dict[int, Fork] = {}
        self.forking: object = None
        self.turn = asyncio.Lock()
        self.failure: AgentVMError | None = None
        self._metrics = metrics
        self.output = 0
        self.is_travelling = False
        self.is_stopped: Callable[[], bool] = lambda: False
        self._audit = audit
        self._guest_reason = ""
        self._verdict: Ended | None = None
        self._refusals = 0
        self.take(vm, granted)

    def check_runs(self) -> None:
        """See to it that its guest can answer.

        Raises:
            StoppedError: the VM is stopped.
        """
        if self.is_stopped():
            raise StoppedError(
                "The VM is stopped because of an anomaly.", "%vm resume, or `agentvm vm resume ID`, lets it run on."
            )

    @property
    def current(self) -> str:
        """Id of the snapshot that the VM descends from; empty for the golden one."""
        return "" if self.vm.snapshot.parent is None else self.vm.snapshot.id

    @property
    def subject(self) -> Subject:
        """What the audit log says of it in every event."""
        return {"vm": self.vm.id, "lease": self.terms.id, "notebook": self.terms.session}

    def take(self, vm: VM, granted: Granted, way: Way = ()) -> None:
        """Have this VM, with these runs behind it, from now on."""
        self.vm, self.granted, self.way = vm, granted, way
        self._guest_reason = ""
        vm.on_event = self._on_guest_event

    async def ended(self) -> Ended:
        """Wait until the VM that the lease has is gone, and say why."""
        while True:
            vm = self.vm
            reason = await asyncio.shield(vm.ended)
            if vm is self.vm:
                return self._verdict or Ended(
                    code="vm_ended",
                    reason=f"{self._guest_reason or reason[:1].upper() + reason[1:]}.",
                    hint="Restart the kernel, or run %vm restart, for a fresh VM.",
                )

    async def end(self, verdict: Ended) -> None:
        """End its VM.

        Args:
            verdict: What its session is told.
        """
        async with self.turn:
            self._verdict = verdict
            await self.vm.machine.end()

    def restart_lifetime(self) -> None:
        """Let the VM end when the lease is as old as its limits allow."""
        self.clear_lifetime()
        if self.limits.lifetime is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(self.began + self.limits.lifetime, self._expire)

    def clear_lifetime(self) -> None:
        """Let it live for as long as it likes."""
        if self._timer is not None:
            self._timer.cancel()

    def _expire(self) -> None:
        seconds = self.limits.lifetime
        self._audit.record(ResourceLimitExceeded(**self.subject, limit="lifetime"))
        self._metrics.limit_violation("lifetime")
        verdict = Ended(
            code="limit", reason=f"The VM was ended: it had been leased for {seconds:g} s, its lifetime.",
            hint="Restart the kernel, or run %vm restart, for a fresh VM; %limits lifetime=… changes the limit.",
        )  # fmt: skip
        self._expiry = asyncio.create_task(self.end(verdict))

    def _on_guest_event(self, event: dict[str, object]) -> None:
        """Take note of what the guest says of itself; nothing here may grow with what it sends."""
        match event.get("event"):
            case "agent_died":
                self._guest_reason = f"The guest agent inside the VM was killed (signal {event.get('signal')!s:.8})"
            case "link_refused":
                self._refusals += 1
                if self._refusals & (self._refusals - 1) == 0:  # 1, 2, 4, 8 …: a flood must not fill the log
                    reason = claimed(str(event.get("reason")))
                    self._audit.record(LinkRefused(**self.subject, reason=reason, count=self._refusals))
