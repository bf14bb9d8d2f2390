"""Looks at leased VMs for what is unusual, and tells of it: audit log, notebook, and whoever responds."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Final

from agentvm_kernel.anomalies import Action, AnomalySettings
from agentvm_kernel.egress.record import Connection
from agentvm_kernel.observe.anomaly.detector import Anomaly, Detector
from agentvm_kernel.observe.anomaly.reading import UNTOLD, Contact, Reading
from agentvm_kernel.observe.claims import Claims
from agentvm_kernel.observe.events.anomaly import AnomalyDetected
from agentvm_kernel.observe.fields import Event, claimed
from agentvm_kernel.observe.sample import Sample
from agentvm_kernel.observe.sampler import Sampler
from agentvm_kernel.supervisor.claims import GuestClaims
from agentvm_kernel.supervisor.lease import Lease
from agentvm_kernel.supervisor.messages import Noticed
from agentvm_kernel.supervisor.networks import Networks
from agentvm_kernel.supervisor.present import Present, Roster
from agentvm_kernel.supervisor.responses import Responses
from agentvm_kernel.supervisor.turns import Turns
from agentvm_kernel.vm.hypervisor import Machine

_WAITING: Final = 4096
"""Connections of a VM that are kept until the next look."""


def _waiting() -> deque[Contact]:
    return deque(maxlen=_WAITING)


class Anomalies:
    """Looks at a supervisor's VMs, whenever they have been measured.

    Args:
        roster: The VMs.
        sampler: Measures them.
        networks: Tell what they connect to.
        turns: Tell what they want of CPUs.
        responses: What is done to VMs.
        record: Takes an event into the audit log.
        settings: By which rules.

    Attributes:
        responses: The same.
        claims: What guests say of themselves.
    """

    def __init__(
        self,
        roster: Roster,
        sampler: Sampler,
        networks: Networks,
        turns: Turns,
        responses: Responses,
        record: Callable[[Event], None],
        settings: AnomalySettings,
    ) -> None:
        self.responses = responses
        self.claims = GuestClaims(roster, sampler, responses.is_paused)
        self._roster = roster
        self._sampler = sampler
        self._networks = networks
        self._turns = turns
        self._record = record
        self._settings = settings
        self._detectors: dict[Machine, Detector] = {}
        self._contacts: defaultdict[str, deque[Contact]] = defaultdict(_waiting)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin."""
        self._tasks = [
            asyncio.create_task(self._run(), name="anomalies"),
            asyncio.create_task(self._listen(), name="anomalies-connections"),
        ]

    async def close(self) -> None:
        """End; what has been begun to be done to VMs is done."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self.claims.close()
        await self.responses.close()

    def configure(self, settings: AnomalySettings) -> None:
        """Look by other rules from now on; what they know of VMs begins anew, if they are not the same."""
        if settings != self._settings:
            self._settings = settings
            self._detectors = {}
            self.responses.slow_cpu = settings.slow_cpu

    async def _run(self) -> None:
        while True:
            await self._sampler.next_look()
            self.claims.look()
            self.look()

    async def _listen(self) -> None:
        with self._networks.subscribe() as events:
            async for connection in events:
                # Of whatever VM: the first cell may begin before a VM is looked at for the first time.
                self._contacts[connection.vm].append(_contact(connection))

    def look(self) -> None:
        """Look once at all VMs that are out and run."""
        known, self._detectors = self._detectors, {}
        contacts, self._contacts = self._contacts, defaultdict(_waiting)
        latest = self._sampler.latest
        for one in self._roster:
            if one.lease is None or one.state == "resting":
                continue
            detector = self._detectors[one.machine] = known.get(one.machine) or Detector(self._settings)
            sample = latest.get(one.id)
            if sample is None or self.responses.is_paused(one.machine):
                self._contacts[one.id] = contacts[one.id]
            else:
                reading = _reading(sample)._replace(
                    output=one.lease.output if one.state == "leased" else 0.0,
                    cpu_wanted=100 * self._turns.wanted(one.vm) if one.vm is not None else 0.0,
                    processes=_started(self.claims.of(one.machine)),
                )
                for anomaly in detector.look(reading, contacts[one.id]):
                    self._found(one, one.lease, anomaly)

    def _found(self, one: Present, lease: Lease, anomaly: Anomaly) -> None:
        rule = anomaly.rule
        action = self._settings.action(rule.severity)
        self._record(
            AnomalyDetected(
                **lease.subject | {"vm": one.id}, kind=rule.name, severity=rule.severity, value=round(anomaly.value, 3),
                threshold=rule.threshold, is_claimed=rule.is_claimed, about=claimed(anomaly.about), response=action,
                detail=rule.description,
            )
        )  # fmt: skip
        if action != "audit":
            lease.tell(_noticed(one.id, lease, anomaly, action))
        if one.vm is not None and action in {"slow", "pause", "kill"}:
            self.responses.begin(action, lease, one.vm, rule.name)


def _noticed(vm: str, lease: Lease, anomaly: Anomaly, action: Action) -> Noticed:
    rule = anomaly.rule
    return Noticed(
        vm=vm, run=lease.network.cell.run, rule=rule.name, severity=rule.severity, text=rule.description,
        about=anomaly.about[:300], value=anomaly.value, threshold=rule.threshold, claimed=rule.is_claimed,
        response=action,
    )  # fmt: skip


def _started(claims: Claims | None) -> float:
    return UNTOLD if claims is None or claims.processes_started is None else float(claims.processes_started)


def _reading(sample: Sample) -> Reading:
    return Reading(
        sample.time, cpu_percent=sample.cpu_percent, memory=sample.memory, disk_written=sample.disk_written,
        disk_space=sample.disk_space, network_sent=sample.network_sent, network_received=sample.network_received,
        connections=sample.connections, allowed=sample.allowed, refused=sample.refused, executing=sample.executing,
    )  # fmt: skip


def _contact(connection: Connection) -> Contact:
    return Contact(
        connection.time, connection.id, connection.name or connection.address, connection.port, connection.verdict,
        connection.duration is not None, connection.count,
    )  # fmt: skip
