"""What is done to a VM in which something unusual goes on: slowed down, kept and stopped, ended; and taken back."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final
from weakref import WeakSet

from agentvm_kernel.anomalies import Action
from agentvm_kernel.errors import AgentVMError, VMEndedError
from agentvm_kernel.observe.events.anomaly import AnomalyResponse
from agentvm_kernel.observe.fields import Event
from agentvm_kernel.supervisor.history import History
from agentvm_kernel.supervisor.lease import Lease
from agentvm_kernel.supervisor.messages import Ended
from agentvm_kernel.supervisor.operator_messages import Resumed
from agentvm_kernel.supervisor.snapshot_messages import SnapshotRequest
from agentvm_kernel.supervisor.turns import Turns
from agentvm_kernel.vm.clone import VM
from agentvm_kernel.vm.hypervisor import Machine
from agentvm_kernel.vm.limits import enforce

_log = logging.getLogger(__name__)

_LABEL: Final = 40
"""Characters of a rule's name in a snapshot's label."""


class Responses:
    """Does it, one thing after the other for each lease.

    Args:
        history: Keeps VMs.
        turns: Has others give way to them.
        end_fork: Ends a lease's fork of some number.
        record: Takes an event into the audit log.
        slow_cpu: Cores that one gets which is slowed down.

    Attributes:
        slow_cpu: The same; may change.
    """

    def __init__(
        self,
        history: History,
        turns: Turns,
        end_fork: Callable[[Lease, int], None],
        record: Callable[[Event], None],
        slow_cpu: float,
    ) -> None:
        self.slow_cpu = slow_cpu
        self._history = history
        self._turns = turns
        self._end_fork = end_fork
        self._record = record
        self._slowed: WeakSet[Machine] = WeakSet()
        self._paused: WeakSet[Machine] = WeakSet()
        self._tasks: set[asyncio.Task[None]] = set()

    def is_paused(self, machine: Machine) -> bool:
        """Whether a VM has been stopped."""
        return machine in self._paused

    def is_slowed(self, machine: Machine) -> bool:
        """Whether a VM has been slowed down."""
        return machine in self._slowed

    def begin(self, action: Action, lease: Lease, vm: VM, rule: str) -> None:
        """Do something to a VM, in the background.

        Args:
            action: ``slow``, ``pause`` or ``kill``.
            lease: The lease that has it.
            vm: It; a fork is ended where the lease's own VM would be kept and stopped.
            rule: Why.
        """
        task = asyncio.create_task(self._respond(action, lease, vm, rule), name=f"anomaly-{action}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settled(self) -> None:
        """Wait until what was begun is done."""
        if self._tasks:
            await asyncio.wait(list(self._tasks))

    async def close(self) -> None:
        """End when what was begun is done."""
        await self.settled()

    async def _respond(self, action: Action, lease: Lease, vm: VM, rule: str) -> None:
        try:
            match action:
                case "slow":
                    detail = await self._slow(vm, lease)
                case "pause" if vm is lease.vm:
                    detail = await self._pause(lease, vm, rule)
                case _:
                    detail = await self._kill(lease, vm, rule)
        except AgentVMError as error:
            _log.warning("the response %s to %s in %s failed: %s", action, rule, vm.id, error)
            self._note(action, lease, vm, rule, f"failed: {error.message}")
        else:
            self._note(action, lease, vm, rule, detail)

    def _note(self, response: str, lease: Lease, vm: VM, rule: str, detail: str) -> None:
        self._record(AnomalyResponse(**lease.subject | {"vm": vm.id}, kind=rule, response=response, detail=detail))

    async def _slow(self, vm: VM, lease: Lease) -> str:
        cores = self.slow_cpu
        async with lease.turn:
            self._slowed.add(vm.machine)
            self._turns.hold(vm)
            await vm.machine.give_way(True)
            await enforce(vm.machine, lease.limits.model_copy(update={"cpu": cores}))
        return f"goes behind all others, with {cores:g} of a core where the host can limit it"

    async def _pause(self, lease: Lease, vm: VM, rule: str) -> str:
        async with lease.turn:
            if vm is not lease.vm:  # it was replaced meanwhile
                raise VMEndedError("The VM has been replaced.")
            if vm.machine in self._paused:
                return "was stopped already"
            kept = await self._keep(lease, rule)
            await vm.pause()
            self._paused.add(vm.machine)
        return kept

    async def _keep(self, lease: Lease, rule: str) -> str:
        label = f"anomaly-{rule[:_LABEL]}-{time.strftime('%H%M%S', time.gmtime())}"
        request = SnapshotRequest(
            label=label,
            text=f"Kept because of the anomaly {rule}.",
            busy=lease.executions.are_running,
            cell=lease.network.cell,
        )
        try:
            info = await self._history.take(lease, request)
        except (AgentVMError, OSError) as error:  # to stop it matters more
            return f"stopped, and could not be kept: {error}"
        return f"kept as the snapshot {info.id} ({label}), and stopped"

    async def _kill(self, lease: Lease, vm: VM, rule: str) -> str:
        if vm is not lease.vm:
            async with lease.turn:
                numbers = [number for number, fork in lease.forks.items() if fork.vm is vm]
                for number in numbers:
                    self._end_fork(lease, number)
            return "the fork was ended"
        hint = "Restart the kernel, or run %vm restart, for a fresh VM; `agentvm audit` tells more."
        await lease.end(Ended(code="anomaly", reason=f"The VM was ended because of the anomaly {rule}.", hint=hint))
        return "ended"

    async def resume(self, lease: Lease, vm: VM) -> Resumed:
        """Take back that a VM is slowed down or stopped.

        Args:
            lease: The lease that has it.
            vm: It.

        Raises:
            AgentVMError: it cannot run on.
        """
        async with lease.turn:
            was_paused, was_slowed = vm.machine in self._paused, vm.machine in self._slowed
            if was_slowed:
                await enforce(vm.machine, lease.limits)
                await vm.machine.give_way(False)
                self._turns.let_go(vm)
                self._slowed.discard(vm.machine)
            if was_paused:
                await vm.wake()
                self._paused.discard(vm.machine)
        if was_paused or was_slowed:
            self._note("resume", lease, vm, "", "runs on" if was_paused else "is not slowed down any more")
        return Resumed(was_paused=was_paused, was_slowed=was_slowed)
