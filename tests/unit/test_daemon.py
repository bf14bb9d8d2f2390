"""The supervisor's process and API, over a hypervisor without VMs."""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from audited import audited
from fake_hypervisor import FakeHypervisor
from supervisor_bed import first_grant, make_paths, serving

from agentvm_kernel.config import Paths
from agentvm_kernel.errors import AgentVMError, ApiError, SupervisorError
from agentvm_kernel.supervisor import api, daemon
from agentvm_kernel.supervisor.client import SupervisorClient
from agentvm_kernel.supervisor.core import Supervisor
from agentvm_kernel.supervisor.daemon import AlreadyRunningError, only_one, prepare_folders
from agentvm_kernel.supervisor.messages import Ended, Granted, LeaseRequest, Progress
from agentvm_kernel.vm.spec import Transport
from agentvm_kernel.vm.transport import choose_transport


@pytest.fixture
def paths(short_tmp: Path) -> Paths:
    return make_paths(short_tmp)


@pytest.fixture
def hypervisor() -> FakeHypervisor:
    return FakeHypervisor()


@pytest.fixture
async def supervisor(paths: Paths, hypervisor: FakeHypervisor) -> AsyncIterator[Supervisor]:
    async with serving(paths, hypervisor) as supervisor:
        yield supervisor
    assert not hypervisor.running


@pytest.fixture
async def client(paths: Paths, supervisor: Supervisor) -> AsyncIterator[SupervisorClient]:
    async with SupervisorClient(paths, start=False) as client:
        yield client


async def test_a_lease_shows_progress_then_the_grant_then_the_end(
    client: SupervisorClient, hypervisor: FakeHypervisor
) -> None:
    events = []
    async with client.lease(LeaseRequest(owner="a test")) as lease:
        async for event in lease:
            events.append(event)
            if isinstance(event, Granted):
                machine = next(machine for machine in hypervisor.machines if machine.pid == event.pid)
                machine.die("the VM powered itself off")
    stages = [event.stage for event in events if isinstance(event, Progress)]
    assert stages[0] == "installing packages"
    assert any("booting" in stage for stage in stages)
    granted, ended = events[-2:]
    assert isinstance(granted, Granted)
    assert granted.profile == "tiny"
    assert isinstance(ended, Ended)
    assert ended.reason == "The VM powered itself off."


async def test_closing_the_connection_releases_the_vm(
    client: SupervisorClient, supervisor: Supervisor, hypervisor: FakeHypervisor
) -> None:
    async with client.lease(LeaseRequest()) as lease:
        granted = await first_grant(lease)
        machine = next(machine for machine in hypervisor.machines if machine.pid == granted.pid)
        assert len(supervisor.leases) == 1
    await asyncio.wait_for(asyncio.shield(machine.ended), 10)
    assert not supervisor.leases


async def test_the_guest_agents_death_is_the_reason_shown(client: SupervisorClient, hypervisor: FakeHypervisor) -> None:
    async with client.lease(LeaseRequest()) as lease:
        granted = await first_grant(lease)
        machine = next(machine for machine in hypervisor.machines if machine.pid == granted.pid)
        machine.say({"event": "agent_died", "signal": 9})
        await machine.flush()
        machine.die("the VM powered itself off")
        ended = await anext(lease)
    assert isinstance(ended, Ended)
    assert "guest agent" in ended.reason
    assert "9" in ended.reason


async def test_refused_links_are_audited_but_a_flood_is_not(
    client: SupervisorClient, supervisor: Supervisor, hypervisor: FakeHypervisor, paths: Paths
) -> None:
    async with client.lease(LeaseRequest()) as lease:
        granted = await first_grant(lease)
        machine = next(machine for machine in hypervisor.machines if machine.pid == granted.pid)
        for _ in range(1000):
            machine.say({"event": "link_refused", "reason": "wrong proof"})
        await machine.flush()
        machine.die("x")
        await anext(lease)
    supervisor.audit.flush()
    refused = audited(paths.state, "link_refused")
    assert 1 <= len(refused) <= 10
    assert refused[0]["vm"] == granted.vm


async def test_status_tells_leases_but_no_key(client: SupervisorClient) -> None:
    async with client.lease(LeaseRequest(owner="somebody")) as lease:
        granted = await first_grant(lease)
        status = await client.status()
    assert granted.key not in status.model_dump_json()
    assert [entry.owner for entry in status.leases] == ["somebody"]


async def test_an_unknown_profile_is_one_clear_event(client: SupervisorClient) -> None:
    async with client.lease(LeaseRequest(profile="huge")) as lease:
        event = await anext(lease)
    assert isinstance(event, Ended)
    assert event.code == "config"
    assert "light" in event.hint


async def test_a_bad_request_is_refused(client: SupervisorClient) -> None:
    with pytest.raises((ApiError, SupervisorError)):
        await client._request("POST", "/v1/leases", LeaseRequest.model_construct(image="../../etc"))


async def test_another_user_is_refused(client: SupervisorClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "peer_uid", lambda _connection: os.geteuid() + 1)
    with pytest.raises(SupervisorError):
        await client.status()


def test_only_one_supervisor_runs(paths: Paths) -> None:
    prepare_folders(paths)
    with only_one(paths), pytest.raises(AlreadyRunningError), only_one(paths):
        pass


def test_folders_are_private(paths: Paths) -> None:
    prepare_folders(paths)
    allowed = 0o711 if os.geteuid() == 0 else 0o700
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in (paths.cache, paths.state, paths.runtime)} == {allowed}


def test_the_log_is_private_however_often_it_is_begun_anew(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others may pass through the state folder of root."""
    prepare_folders(paths)
    found: list[logging.Handler] = []
    monkeypatch.setattr(logging, "basicConfig", lambda **given: found.extend(given["handlers"]))
    daemon._configure_log(paths, False)
    (handler,) = found
    for _ in range(2):
        handler.emit(logging.makeLogRecord({"msg": "x" * 600_000}))
        handler.emit(logging.makeLogRecord({"msg": "x" * 600_000}))
    handler.close()
    logs = [path for path in paths.state.iterdir() if path.name.startswith(paths.log.name)]
    assert len(logs) > 1
    assert {stat.S_IMODE(path.stat().st_mode) for path in logs} == {0o600}


def test_a_path_too_long_for_sockets_is_refused_with_a_remedy(paths: Paths) -> None:
    long = replace(paths, runtime=paths.state / ("x" * 100))
    with pytest.raises(SupervisorError) as caught:
        prepare_folders(long)
    assert "AGENTVM_STATE_DIR" in caught.value.hint


def test_transport_follows_the_device(tmp_path: Path) -> None:
    device = tmp_path / "vhost-vsock"
    assert choose_transport("auto", device) is Transport.SERIAL
    with pytest.raises(AgentVMError, match="cannot be opened"):
        choose_transport("vsock", device)
    device.touch()
    assert choose_transport("auto", device) is Transport.VSOCK
    assert choose_transport("serial", device) is Transport.SERIAL
