"""Asks guests, gently, what they say of themselves; kept apart from all that is measured."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from agentvm_kernel.errors import AgentVMError
from agentvm_kernel.observe.claims import Claims
from agentvm_kernel.observe.sample import Sample
from agentvm_kernel.observe.sampler import Sampler
from agentvm_kernel.supervisor.present import Present, Roster
from agentvm_kernel.vm.clone import VM
from agentvm_kernel.vm.hypervisor import Machine

_log = logging.getLogger(__name__)

_SECONDS: Final = 2.0
"""Between two questions, at least."""

_WORK_SECONDS: Final = 0.2
"""CPU time since the last question: a guest that has hardly computed has started no processes. To answer takes some."""

_PATIENCE: Final = 10.0


@dataclass
class _Asked:
    """One guest.

    Attributes:
        claims: What it said last.
        time: When it was asked last, seconds since 1970, as samples have it.
        cpu_seconds: CPU time that it had used then.
        task: Asks.
    """

    claims: Claims | None = None
    time: float = float("-inf")
    cpu_seconds: float = float("-inf")
    task: asyncio.Task[None] | None = field(default=None, repr=False)


class GuestClaims:
    """Asks the guests of a supervisor's leases.

    Args:
        roster: The VMs.
        sampler: Measures them.
        is_paused: Whether a VM has been stopped.
    """

    def __init__(self, roster: Roster, sampler: Sampler, is_paused: Callable[[Machine], bool]) -> None:
        self._roster = roster
        self._sampler = sampler
        self._is_paused = is_paused
        self._asked: dict[Machine, _Asked] = {}

    def of(self, machine: Machine) -> Claims | None:
        """Return what a guest said last; ``None`` if it has said nothing yet.

        Args:
            machine: Its QEMU.
        """
        asked = self._asked.get(machine)
        return None if asked is None else asked.claims

    def look(self) -> None:
        """Ask those of which it is time. Called whenever the VMs have been measured."""
        known, self._asked = self._asked, {}
        latest = self._sampler.latest
        for one in self._roster:
            if one.vm is None or one.lease is None:
                continue
            asked = self._asked[one.machine] = known.get(one.machine) or _Asked()
            sample = latest.get(one.id)
            if sample is not None and self._is_running(one) and _is_due(asked, sample):
                asked.time, asked.cpu_seconds = sample.time, sample.cpu_seconds
                asked.task = asyncio.create_task(_ask(one.vm, asked), name="guest-claims")

    async def close(self) -> None:
        """Ask no more."""
        tasks = [asked.task for asked in self._asked.values() if asked.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _is_running(self, one: Present) -> bool:
        """Whether a guest can answer, and nobody is about to save it."""
        is_held = one.state == "resting" or (one.lease is not None and one.lease.turn.locked())
        return not is_held and not self._is_paused(one.machine)


def _is_due(asked: _Asked, sample: Sample) -> bool:
    if asked.task is not None and not asked.task.done():
        return False
    return sample.time - asked.time >= _SECONDS and sample.cpu_seconds - asked.cpu_seconds >= _WORK_SECONDS


async def _ask(vm: VM, asked: _Asked) -> None:
    try:
        asked.claims = Claims.of(await vm.request("facts", _PATIENCE))
    except AgentVMError as error:  # what it said before is as good as anything that a guest says
        _log.debug("%s says nothing of itself: %s", vm.id, error)
