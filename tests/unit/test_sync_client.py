"""The client of the supervisor's API without an event loop, against the real API over a hypervisor without VMs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hypervisor import FakeHypervisor
from supervisor_bed import make_paths, serving

from agentvm_kernel.blocking import LoopThread
from agentvm_kernel.config import Paths
from agentvm_kernel.errors import AgentVMError, ApiError
from agentvm_kernel.supervisor.messages import Ended, Granted, LeaseRequest, LimitsRequest
from agentvm_kernel.supervisor.snapshot_messages import SnapshotRequest
from agentvm_kernel.supervisor.sync_client import SyncSupervisorClient


@pytest.fixture
def paths(short_tmp: Path) -> Iterator[Paths]:
    paths = make_paths(short_tmp)
    served = serving(paths, FakeHypervisor())
    with LoopThread() as thread:
        thread.call(served.__aenter__())
        yield paths
        thread.call(served.__aexit__(None, None, None))


def test_a_lease_and_what_can_be_done_with_it(paths: Paths) -> None:
    with SyncSupervisorClient(paths, start=False) as client:
        with client.lease(LeaseRequest(owner="a script")) as events:
            granted = next(event for event in events if isinstance(event, Granted))
            assert [lease.owner for lease in client.status().leases] == ["a script"]
            lease = granted.lease
            assert client.set_limits(lease, LimitsRequest(changes={"processes": 99})).processes == 99
            assert client.limits(lease).processes == 99
            with pytest.raises(ApiError) as caught:
                client.plan_rollback(lease, "nowhere")
            assert caught.value.code == "no_snapshot"
            assert client.snapshots(lease).snapshots == ()
            assert client.prune(lease, 0).removed == ()
            for refused in (client.remove, lambda lease, snapshot: client.relabel(lease, snapshot, "x")):
                with pytest.raises(ApiError, match="no snapshot"):
                    refused(lease, "0" * 12)
            (vm,) = [vm for vm in client.vms().vms if vm.lease == lease]
            client.kill(vm.id)
            ended = next(events)
            assert isinstance(ended, Ended)
            assert "agentvm vm kill" in ended.reason
        assert client.status().leases == ()
        with pytest.raises(ApiError, match="no lease"):
            client.snapshot(lease, SnapshotRequest())
        with pytest.raises(ApiError, match="no lease"):
            client.rollback(lease, "")


def test_the_pool_is_drained_filled_and_configured_anew(paths: Paths) -> None:
    with SyncSupervisorClient(paths, start=False) as client:
        client.drain()
        assert client.pool().drained
        client.fill()
        assert not client.pool().drained
        paths.config.write_text("max_vms = 3")
        assert "max_vms" in client.reload().changed
        client.shutdown()
    with pytest.raises(AgentVMError, match="not open"):
        client.status()
