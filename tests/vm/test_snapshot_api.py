"""Labels, removal and pruning over the API, with real machines: what is left can be gone back to, and all are told."""

from __future__ import annotations

import asyncio

import pytest

from agentvm_kernel.config import Paths
from agentvm_kernel.errors import ApiError
from agentvm_kernel.experiment import AsyncSession
from agentvm_kernel.supervisor.client import SupervisorClient

pytestmark = pytest.mark.timeout(600)

NOTEBOOK = "/tests/snapshot-api.ipynb"
STATE = "state, open('/home/agent/state').read()"


async def test_what_is_left_after_removing_and_pruning_can_be_gone_back_to(vm_paths: Paths) -> None:
    async with (
        AsyncSession(image="minimal", profile="test", notebook=NOTEBOOK, paths=vm_paths) as session,
        SupervisorClient(vm_paths, start=False) as client,
        client.events() as everything,
    ):
        (lease,) = [one.lease for one in (await client.status()).leases if one.notebook == NOTEBOOK]
        taken = []
        async with client.events(lease) as events:
            for number in range(5):
                await session.run(f"state = '{number}'; open('/home/agent/state', 'w').write(state)")
                taken.append((await session.snapshot()).id)
            assert (await client.relabel(lease, taken[0], "first")).label == "first"
            assert (await client.remove(lease, taken[1])).freed > 0
            with pytest.raises(ApiError, match="goes on from"):
                await client.remove(lease, taken[4])
            assert (await client.prune(lease, 2)).removed == (taken[2],)
            tree = await client.snapshots(lease)
            assert [(one.id, one.parent) for one in tree.snapshots] == [
                (taken[0], ""), (taken[3], taken[0]), (taken[4], taken[3]),
            ]  # fmt: skip
            for to, state in (("first", "0"), (taken[4], "4"), (taken[3], "3")):
                await session.rollback(to)
                assert (await session.run(STATE)).result == f"('{state}', '{state}')"
            heard = []
            async with asyncio.timeout(30):
                while len([name for name in heard if name == "snapshot_restored"]) < 3:
                    heard.append((await anext(events)).event.event)
        kinds = [name for name in heard if name.startswith("snapshot")]
        assert kinds == [
            *["snapshot_created"] * 5, "snapshot_relabelled", "snapshots_removed", "snapshots_removed",
            *["snapshot_restored"] * 3,
        ]  # fmt: skip
        async with asyncio.timeout(30):
            seen = {(await anext(everything)).event.event for _ in range(len(heard))}
        assert "execution_completed" in seen
