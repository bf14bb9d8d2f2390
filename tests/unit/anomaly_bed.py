"""A lease whose VM is looked at for anomalies, and measured, only when a test says so."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from audited import audited
from guest_process import MemoryHypervisor
from supervisor_bed import COLD, Leased, leased

from agentvm_kernel.anomalies import Action, AnomalySettings, RuleChange
from agentvm_kernel.settings import MetricsSettings
from agentvm_kernel.supervisor.anomalies import Anomalies

OWN = RuleChange(
    kind="sum", metric="network_sent", threshold=100, window=60, severity="critical", description="sends a lot"
)


class Bed(Leased):
    """A lease, which is only looked at when it is told to."""

    async def look(self) -> None:
        await self.supervisor.stats.sampler.look()
        self.supervisor.anomalies.look()
        await self.supervisor.anomalies.responses.settled()

    def account(self, amount: int) -> None:
        """Let the guest have sent something."""
        self.lease.network._accesses[self.lease.vm].account(None, amount, 0)

    async def send(self, amount: int) -> None:
        """Let the guest send something between two looks."""
        await self.look()
        self.account(amount)
        await self.look()

    def audited(self, event: str) -> list[dict[str, Any]]:
        self.supervisor.audit.flush()
        return audited(self.supervisor.paths.state, event)


@asynccontextmanager
async def bed(folder: Path, action: Action = "note") -> AsyncIterator[Bed]:
    settings = COLD.model_copy(
        update={
            "metrics": MetricsSettings(interval=60),
            "anomalies": AnomalySettings(critical=action, rules={"own": OWN}),
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Anomalies, "_run", _only_when_told)
        async with leased(folder, MemoryHypervisor(), settings) as ours:
            yield Bed(**vars(ours))


async def _only_when_told(_: Anomalies) -> None:
    """A look of the supervisor's own, between two of a test, would ask and count once more."""
