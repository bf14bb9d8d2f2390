"""Machines smaller than their profile has them: nobody gets a larger one so, and nothing of them is kept for long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fake_hypervisor import FakeHypervisor
from supervisor_bed import FakeStore, first_grant, make_paths, serving

from agentvm_kernel.errors import RequestError
from agentvm_kernel.profiles import Profile, Sizes
from agentvm_kernel.settings import Settings
from agentvm_kernel.supervisor import catalogue
from agentvm_kernel.supervisor.client import SupervisorClient
from agentvm_kernel.supervisor.core import Supervisor
from agentvm_kernel.supervisor.messages import Ended, Granted, LeaseRequest
from agentvm_kernel.supervisor.snapshot_messages import SnapshotRequest
from agentvm_kernel.vm.snapshot import Snapshot

LARGE = Profile(vcpus=4, memory_mib=1024, disk_gb=8, user_memory_mib=900, cell_deadline=77)
SETTINGS = Settings(
    image="minimal", profile="large", accelerator="tcg", transport="serial",
    profiles={"large": LARGE, "tiny": Profile(vcpus=1, memory_mib=256, disk_gb=4)},
)  # fmt: skip


@pytest.fixture
async def bed(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Supervisor, SupervisorClient]]:
    monkeypatch.setattr(catalogue, "ImageStore", FakeStore)
    paths = make_paths(short_tmp)
    async with (
        serving(paths, FakeHypervisor(), SETTINGS) as supervisor,
        SupervisorClient(paths, start=False) as client,
    ):
        yield supervisor, client


def goldens(supervisor: Supervisor) -> set[tuple[object, ...]]:
    folders = [one for one in (supervisor.paths.cache / "golden").iterdir() if not one.name.startswith(".")]
    loaded = [one for folder in folders if (one := Snapshot.load(folder))]
    return {(one.hardware.vcpus, one.hardware.memory_mib, one.hardware.disk_gb) for one in loaded}


async def lease_once(client: SupervisorClient, **sizes: int) -> Granted:
    async with client.lease(LeaseRequest(owner="small", sizes=Sizes(**sizes))) as lease:
        return await first_grant(lease)


def test_a_profile_gives_a_smaller_machine_with_limits_that_fit_it() -> None:
    smaller = LARGE.reduced(Sizes(vcpus=2, memory_mib=512))
    assert (smaller.vcpus, smaller.memory_mib, smaller.disk_gb) == (2, 512, 8)
    assert (smaller.user_memory_mib, smaller.cell_deadline) == (512, 77)
    assert LARGE.reduced(Sizes()) == LARGE == LARGE.reduced(LARGE.sizes)


@pytest.mark.parametrize("sizes", [{"vcpus": 5}, {"memory_mib": 1025}, {"disk_gb": 9}, {"vcpus": 1, "disk_gb": 4096}])
async def test_a_larger_machine_is_refused_by_the_supervisor(
    bed: tuple[Supervisor, SupervisorClient], sizes: dict[str, int]
) -> None:
    supervisor, client = bed
    with pytest.raises(RequestError, match="larger than its profile allows"):
        LARGE.reduced(Sizes(**sizes))
    async with client.lease(LeaseRequest(sizes=Sizes(**sizes))) as lease:
        (event,) = [event async for event in lease]
    assert isinstance(event, Ended)
    assert (event.code, "larger than its profile" in event.reason) == ("request", True)
    assert not supervisor.leases
    assert not (supervisor.paths.cache / "golden").exists(), "nothing was booted for it"


async def test_nothing_of_a_smaller_machine_stays_ready_and_the_users_own_does(
    bed: tuple[Supervisor, SupervisorClient],
) -> None:
    supervisor, client = bed
    await lease_once(client)
    await supervisor.pool.filled()
    (own,) = supervisor.pool.stocks.counts()
    async with client.lease(LeaseRequest(owner="small", sizes=Sizes(vcpus=1, memory_mib=512))) as lease:
        granted = await first_grant(lease)
        assert (granted.vcpus, granted.memory_mib, granted.disk_gb) == (1, 512, 8)
        assert (granted.limits.user_memory_mib, granted.limits.cell_deadline) == (512, 77)
        await supervisor.pool.filled()
        counts = supervisor.pool.stocks.counts()
        (small,) = set(counts) - {own}
        assert counts[small] == {"warm": 0, "blanks": 1}, "one to go back with, none for others"
        assert counts[own] == {"warm": 1, "blanks": 1}
    async with asyncio.timeout(30):
        while supervisor.leases or small in supervisor.pool.stocks.counts():
            await supervisor.pool.tend()
            await asyncio.sleep(0)
    assert supervisor.pool.stocks.counts() == {own: {"warm": 1, "blanks": 1}}


async def test_only_the_last_few_are_kept_on_disk_and_what_is_needed(
    bed: tuple[Supervisor, SupervisorClient],
) -> None:
    supervisor, client = bed
    await lease_once(client)
    await lease_once(client, vcpus=1, memory_mib=256, disk_gb=4)  # the other profile's: not passing
    async with client.lease(LeaseRequest(notebook="kept", sizes=Sizes(memory_mib=300))) as lease:
        granted = await first_grant(lease)
        await client.snapshot(granted.lease, SnapshotRequest(label="kept"))
    async with client.lease(LeaseRequest(owner="out", sizes=Sizes(memory_mib=301))) as lease:
        await first_grant(lease)
        for size in (302, 303, 304, 302, 305, 306):
            await lease_once(client, memory_mib=size)
        assert goldens(supervisor) == {
            (4, 1024, 8), (1, 256, 4), (4, 300, 8), (4, 301, 8), *((4, size, 8) for size in (302, 305, 306)),
        }  # fmt: skip
    await lease_once(client, memory_mib=307)
    assert goldens(supervisor) == {
        (4, 1024, 8), (1, 256, 4), (4, 300, 8), *((4, size, 8) for size in (305, 306, 307))
    }  # fmt: skip
    (kept,) = supervisor.store.tree("kept").snapshots()
    assert kept.notes.label == "kept"
