"""Whatever the host's clock is set to, nothing that the supervisor waits for comes sooner or later."""

from __future__ import annotations

import asyncio
import itertools
import time
from pathlib import Path

import pytest
from fake_hypervisor import FakeHypervisor
from supervisor_bed import SETTINGS, first_grant, make_paths, serving

from agentvm_kernel.settings import Pool
from agentvm_kernel.supervisor.client import SupervisorClient
from agentvm_kernel.supervisor.messages import LeaseRequest, LimitsRequest

YEARS = 3e8


@pytest.fixture
def jumping(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is years ahead and years behind in turns."""
    now, jumps = time.time, itertools.cycle((YEARS, -YEARS))
    monkeypatch.setattr(time, "time", lambda: now() + next(jumps))
    monkeypatch.setattr(time, "time_ns", lambda: int(time.time() * 1e9))


@pytest.mark.usefixtures("jumping")
async def test_a_clock_that_jumps_ends_no_vm_no_lease_and_no_supervisor(short_tmp: Path) -> None:
    hypervisor, paths = FakeHypervisor(), make_paths(short_tmp)
    settings = SETTINGS.model_copy(update={"pool": Pool(check_every=0.1), "max_vms": 1, "idle_exit": 3600})
    async with serving(paths, hypervisor, settings) as supervisor, SupervisorClient(paths, start=False) as client:
        async with asyncio.timeout(30), client.lease(LeaseRequest(notebook="clock")) as lease:
            granted = await first_grant(lease)
            await client.set_limits(granted.lease, LimitsRequest(changes={"lifetime": 3600}))
            await supervisor.pool.filled()
            ready = {vm.id for vm in supervisor.pool.stocks.warm}
            async with client.lease(LeaseRequest(notebook="waiting")) as waiting:
                await anext(waiting)
                for _ in range(5):
                    await supervisor.pool.tend()
                    (entry,) = (await client.pool()).waiting
                    assert 0 <= entry.seconds < 30
            assert {vm.id for vm in supervisor.pool.stocks.warm} == ready
            assert 0 <= (await client.status()).uptime < 30
            assert 0 <= granted.acquire_ms < 30_000
            assert [one.vm for one in (await client.status()).leases] == [granted.vm]
            assert supervisor.idle_since() is None
        idle = supervisor.idle_since()
        assert idle is None or abs(supervisor.now() - idle) < 30
