"""A lease's network in the supervisor: policy, tunnels, log; over fake VMs and fake tunnels."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from audited import audited
from fake_hypervisor import FakeHypervisor, FakeMachine
from kernel_harness import within
from supervisor_bed import SETTINGS, first_grant, make_paths, serving
from typer.testing import CliRunner

from agentvm_kernel.config import Paths
from agentvm_kernel.egress.access import Access
from agentvm_kernel.egress.channel import Opening
from agentvm_kernel.egress.policy import Policy
from agentvm_kernel.egress.record import Connection
from agentvm_kernel.errors import ApiError, ConfigError, LinkError, SupervisorError
from agentvm_kernel.observe import restraint
from agentvm_kernel.profiles import Profile
from agentvm_kernel.settings import Network, Settings
from agentvm_kernel.snapshots.notes import Cell
from agentvm_kernel.supervisor import lease_network
from agentvm_kernel.supervisor.client import Lease, SupervisorClient
from agentvm_kernel.supervisor.core import Supervisor
from agentvm_kernel.supervisor.messages import Blocked, Ended, LeaseRequest
from agentvm_kernel.supervisor.net_command import net_app
from agentvm_kernel.supervisor.network_messages import CassetteRequest, CellRequest, NetworkRequest
from agentvm_kernel.supervisor.operator import Operator
from agentvm_kernel.supervisor.snapshot_messages import SnapshotRequest
from agentvm_kernel.supervisor.witness import Witness

OFFLINE = Profile(vcpus=1, memory_mib=256, disk_gb=4, network="none")


class FakeTunnel:
    """A tunnel without a guest."""

    made: list[FakeTunnel]
    refuse = 0

    def __init__(self, endpoint: Any, epoch: int, serve: Callable[..., Any], settings: Any) -> None:
        self.settings = settings
        self.path, self.epoch, self.serve = Path(endpoint.path), epoch, serve
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.closed = False

    @classmethod
    async def open(
        cls, endpoint: Any, key: bytes, epoch: int, serve: Callable[..., Any], settings: Any, inbox: int | None
    ) -> FakeTunnel:
        if inbox is not None:
            os.close(inbox)
        if cls.refuse:
            cls.refuse -= 1
            raise LinkError("The forwarder does not answer.")
        tunnel = cls(endpoint, epoch, serve, settings)
        cls.made.append(tunnel)
        return tunnel

    async def configure(self, settings: Any) -> None:
        self.settings = settings

    async def close(self) -> None:
        self.closed = True

    @property
    def vm(self) -> str:
        return self.path.parent.name

    @property
    def access(self) -> Access:
        """What the supervisor would have the gateway serve its connections by."""
        found: Access = self.serve.args[0]  # type: ignore[attr-defined]
        return found


class FakeChannel:
    """A connection that says nothing."""

    def __init__(self) -> None:
        self.closed = False

    async def receive(self) -> bytes:
        return b""

    async def send(self, data: bytes) -> None:
        pass

    async def send_eof(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


class Bed:
    """A supervisor, its client, and a lease."""

    def __init__(self, supervisor: Supervisor, client: SupervisorClient, events: Lease, lease: str) -> None:
        self.supervisor, self.client, self.events, self.id = supervisor, client, events, lease

    @property
    def vm(self) -> str:
        return self.supervisor.leases[self.id].vm.id

    def machine(self) -> FakeMachine:
        machine = self.supervisor.leases[self.id].vm.machine
        assert isinstance(machine, FakeMachine)
        return machine

    async def tunnel(self) -> FakeTunnel:
        """The tunnel to the lease's VM, once it is there."""
        await within(lambda: any(one.vm == self.vm and not one.closed for one in FakeTunnel.made))
        return next(one for one in FakeTunnel.made if one.vm == self.vm and not one.closed)

    def decides(self, name: str, port: int = 443) -> bool:
        """What the lease's policy says now, to every VM that it has."""
        network = self.supervisor.leases[self.id].network
        found = {access.policy.decide(name, port).allowed for access in network._accesses.values()}
        (verdict,) = found
        return verdict


@pytest.fixture
def paths(short_tmp: Path) -> Paths:
    return make_paths(short_tmp)


@pytest.fixture
def wanted() -> LeaseRequest:
    return LeaseRequest(owner="a test", notebook="n.ipynb")


@pytest.fixture
def settings() -> Settings:
    return SETTINGS


@pytest.fixture
async def bed(
    paths: Paths, settings: Settings, wanted: LeaseRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Bed]:
    monkeypatch.setattr(lease_network, "Tunnel", FakeTunnel)
    FakeTunnel.made, FakeTunnel.refuse = [], 0
    async with (
        serving(paths, FakeHypervisor(), settings) as supervisor,
        SupervisorClient(paths, start=False) as client,
        client.lease(wanted) as events,
    ):
        yield Bed(supervisor, client, events, (await first_grant(events)).lease)
    assert all(tunnel.closed for tunnel in FakeTunnel.made)


def with_network(**fields: object) -> Settings:
    return SETTINGS.model_copy(update={"network": Network.model_validate(fields)})


async def test_a_leased_vm_may_hope_for_a_network_and_has_a_tunnel(bed: Bed) -> None:
    assert (await bed.tunnel()).vm == bed.vm
    assert bed.machine().ops[-1]["network"] == "filtered"
    assert (await bed.client.network(bed.id)).connected
    assert bed.decides("pypi.org")
    assert not bed.decides("a.example")


async def test_a_tunnel_that_is_lost_is_dialled_again(bed: Bed) -> None:
    first = await bed.tunnel()
    FakeTunnel.refuse = 2
    first.lost.set_result("the forwarder was killed")
    await within(lambda: first.closed)
    assert (await bed.tunnel()) is not first


@pytest.mark.parametrize("settings", [with_network(nat=True)])
async def test_a_leased_vm_gets_a_card_and_loses_it_with_its_network(bed: Bed) -> None:
    vm, machine = bed.supervisor.leases[bed.id].vm, bed.machine()
    await within(lambda: any(one["op"] == "card" for one in machine.ops))
    assert (await bed.client.network(bed.id)).card == "10.213.0.9"
    assert bed.supervisor.leases[bed.id].network.find("10.213.0.9") is not None
    assert bed.supervisor.leases[bed.id].network.find("10.213.0.10") is None
    await bed.client.set_network(bed.id, NetworkRequest(mode="isolated"))
    assert (machine.calls[-1], vm.card) == ("unplug", None)
    await bed.client.set_network(bed.id, NetworkRequest(mode="filtered"))
    assert machine.calls[-1] == "plug"
    assert (await bed.client.network(bed.id)).card == "10.213.0.9"


@pytest.mark.parametrize("settings", [with_network(nat=True), with_network(mode="isolated")])
async def test_ready_vms_have_no_card(bed: Bed) -> None:
    witness = bed.supervisor._hypervisor
    assert isinstance(witness, Witness)
    fake = witness._hypervisor
    assert isinstance(fake, FakeHypervisor)
    others = [one for one in fake.machines if one is not bed.machine()]
    assert others
    assert not any("plug" in one.calls for one in others)


async def test_without_nat_nobody_has_a_card(bed: Bed) -> None:
    await bed.tunnel()
    assert "plug" not in bed.machine().calls
    assert (await bed.client.network(bed.id)).card == ""


async def test_a_tunnel_ends_with_its_vm(bed: Bed) -> None:
    tunnel = await bed.tunnel()
    bed.machine().die("powered off")
    await within(lambda: tunnel.closed)
    assert len(FakeTunnel.made) == 1


async def test_allow_holds_at_once_and_for_this_session_only(bed: Bed) -> None:
    async with bed.client.lease(LeaseRequest(owner="another")) as events:
        other = await first_grant(events)
        info = await bed.client.set_network(bed.id, NetworkRequest(allow=("a.example", "*.b.example:8443")))
        assert [rule.pattern for rule in info.rules if rule.source == "session"] == ["a.example", "*.b.example:8443"]
        assert bed.decides("a.example")
        assert bed.decides("x.b.example", 8443)
        assert not bed.supervisor.leases[other.lease].network._policy.decide("a.example", 443).allowed
        await bed.client.set_network(bed.id, NetworkRequest())
        assert not bed.decides("a.example")


@pytest.mark.parametrize("host", ["a_b.example", "*x.example", "a.example:0", "1.2.3.4", ""])
async def test_what_is_no_host_is_refused_and_changes_nothing(bed: Bed, host: str) -> None:
    await bed.client.set_network(bed.id, NetworkRequest(allow=("a.example",)))
    with pytest.raises(ApiError) as raised:
        await bed.client.set_network(bed.id, NetworkRequest(allow=(host,)))
    assert raised.value.code == "name"
    assert bed.decides("a.example")


async def test_off_hangs_up_and_tells_the_guest_and_back(bed: Bed) -> None:
    tunnel = await bed.tunnel()
    info = await bed.client.set_network(bed.id, NetworkRequest(mode="isolated"))
    assert (info.mode, info.connected, tunnel.closed) == ("isolated", False, True)
    assert bed.machine().ops[-1] | {"network": "none"} == bed.machine().ops[-1]
    assert len(FakeTunnel.made) == 1
    await bed.client.set_network(bed.id, NetworkRequest())
    assert (await bed.tunnel()) is not tunnel
    assert bed.machine().ops[-1]["network"] == "filtered"


async def test_a_mode_that_leaves_the_guest_its_network_keeps_the_tunnel(bed: Bed) -> None:
    tunnel = await bed.tunnel()
    await bed.client.set_network(bed.id, NetworkRequest(mode="record-only"))
    assert not tunnel.closed
    assert bed.decides("a.example")


async def test_a_cell_reaches_what_it_names_until_the_next(bed: Bed) -> None:
    await bed.client.set_cell(bed.id, CellRequest(cell=Cell(run=4, code="get()\nx"), allow=("a.example",)))
    assert bed.decides("a.example")
    assert (await bed.tunnel()).access.cell == "4 get()"
    await bed.client.set_cell(bed.id, CellRequest(cell=Cell(run=5, code="other()")))
    assert not bed.decides("a.example")


async def test_rollback_fork_and_adopt_keep_what_the_session_may_reach(bed: Bed) -> None:
    await bed.client.set_network(bed.id, NetworkRequest(allow=("a.example",)))
    first = await bed.tunnel()
    await bed.client.snapshot(bed.id, SnapshotRequest(label="base"))
    await bed.client.rollback(bed.id, "base")
    await within(lambda: first.closed)
    second = await bed.tunnel()
    assert second.vm == bed.vm != first.vm
    assert second.access.vm == bed.vm
    assert second.access.policy.decide("a.example", 443).allowed


@pytest.mark.parametrize("settings", [SETTINGS.model_copy(update={"profiles": {"tiny": OFFLINE}})])
async def test_a_profile_without_a_network_gets_none(bed: Bed) -> None:
    assert bed.machine().ops[-1]["network"] == "none"
    info = await bed.client.network(bed.id)
    assert (info.mode, info.profile, info.connected) == ("isolated", "none", False)
    with pytest.raises(ApiError) as raised:
        await bed.client.set_network(bed.id, NetworkRequest(mode="filtered"))
    assert raised.value.code == "no_network"
    assert FakeTunnel.made == []


@pytest.mark.parametrize("wanted", [LeaseRequest(mode="record-only", allow=("a.example",), deny=("pypi.org",))])
async def test_a_lease_begins_with_what_was_asked_for(bed: Bed) -> None:
    info = await bed.client.network(bed.id)
    assert info.mode == "record-only"
    assert {rule.pattern for rule in info.rules if rule.source == "session"} == {"a.example", "pypi.org"}
    assert not bed.decides("pypi.org")


async def test_a_lease_that_asks_for_what_is_no_host_is_not_granted(bed: Bed) -> None:
    async with bed.client.lease(LeaseRequest(allow=("a_b",))) as events:
        end = await anext(events)
    assert isinstance(end, Ended)
    assert end.code == "name"
    assert len(bed.supervisor.leases) == 1


@pytest.mark.parametrize("settings", [with_network(directives=False)])
async def test_where_cells_may_not_change_it_only_less_can_be_had(bed: Bed) -> None:
    for request in (NetworkRequest(allow=("a.example",)), NetworkRequest(mode="record-only")):
        with pytest.raises(ApiError) as raised:
            await bed.client.set_network(bed.id, request)
        assert raised.value.code == "network_locked"
    with pytest.raises(ApiError, match="does not let cells"):
        await bed.client.set_cell(bed.id, CellRequest(allow=("a.example",)))
    await bed.client.set_network(bed.id, NetworkRequest(deny=("pypi.org",)))
    with pytest.raises(ApiError):
        await bed.client.set_network(bed.id, NetworkRequest())
    await bed.client.set_network(bed.id, NetworkRequest(mode="isolated", deny=("pypi.org",)))


@pytest.mark.parametrize(
    "settings", [with_network(defaults=False, allow=["a.example"], deny=["b.a.example"], connections=7, max_bytes=9)]
)
async def test_the_configuration_holds_for_all_and_a_reload_for_those_that_are_there(bed: Bed) -> None:
    assert bed.decides("a.example")
    assert not bed.decides("pypi.org")
    await bed.client.set_network(bed.id, NetworkRequest(allow=("b.a.example",)))
    assert not bed.decides("b.a.example")
    info = await bed.client.network(bed.id)
    assert (info.max_connections, info.max_bytes) == (7, 9)
    bed.supervisor.paths.config.write_text('[network]\ndeny = ["a.example"]\nallow = ["c.example"]\n')
    Operator(bed.supervisor).reload()
    assert bed.decides("pypi.org")
    assert bed.decides("c.example")
    assert not bed.decides("a.example")
    bed.supervisor.paths.config.write_text('[network]\nallow = ["a_b"]\n')
    with pytest.raises(ConfigError, match="network"):
        Operator(bed.supervisor).reload()
    bed.supervisor.paths.config.write_text('[network]\nreachable = ["nowhere"]\n')
    with pytest.raises(ConfigError, match="reachable"):
        Operator(bed.supervisor).reload()
    assert bed.decides("c.example")


async def refused(bed: Bed, name: str, port: int = 443) -> None:
    """Let a program in the lease's VM open a connection that is refused."""
    channel = FakeChannel()
    await (await bed.tunnel()).serve(Opening(name, "198.18.0.7", port), channel)
    assert channel.closed


async def test_a_refusal_is_told_once_for_each_cell_logged_and_audited(bed: Bed) -> None:
    await bed.client.set_cell(bed.id, CellRequest(cell=Cell(run=4, code="get()")))
    for name in ("a.example", "a.example", "b.example"):
        await refused(bed, name)
    told = [await anext(bed.events) for _ in range(2)]
    assert all(isinstance(event, Blocked) for event in told)
    assert [(event.run, event.name, event.port) for event in told if isinstance(event, Blocked)] == [
        (4, "a.example", 443),
        (4, "b.example", 443),
    ]
    await bed.client.set_cell(bed.id, CellRequest(cell=Cell(run=5, code="again()")))
    await refused(bed, "a.example")
    again = await anext(bed.events)
    assert isinstance(again, Blocked)
    assert again.run == 5
    async with bed.client.connections(bed.id) as events:
        logged = [one async for one in events]
    assert [(one.name, one.cell, one.verdict) for one in logged][-1] == ("a.example", "5 again()", "refused")
    assert (await bed.client.network(bed.id)).refused == 4
    bed.supervisor.audit.flush()
    blocked = audited(bed.supervisor.paths.state, "network_connection_blocked")
    assert [one["name"]["claimed"] for one in blocked] == ["a.example", "a.example", "b.example", "a.example"]
    assert [one["run"] for one in blocked] == [4, 4, 4, 5]
    assert {(one["lease"], one["notebook"]) for one in blocked} == {(bed.id, "n.ipynb")}


async def test_a_flood_of_connections_does_not_fill_the_audit_log_and_is_told(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restraint, "_BURST", 3)
    monkeypatch.setattr(restraint, "_RATE", 0.0)
    for number in range(5):
        await refused(bed, f"host-{number}.example")
    await bed.supervisor.release(bed.supervisor.leases[bed.id])
    bed.supervisor.audit.flush()
    assert len(audited(bed.supervisor.paths.state, "network_connection_blocked")) == 3
    (told,) = audited(bed.supervisor.paths.state, "connections_left_out")
    assert (told["verdict"], told["count"], told["lease"]) == ("blocked", 2, bed.id)


def test_what_is_left_out_is_counted_and_room_comes_back() -> None:
    now = 0.0
    held = restraint.Restraint(lambda: now)
    assert [held.admits("a") for _ in range(2003)] == [True] * 2000 + [False] * 3
    assert held.admits("b")
    now = 1.0
    assert [held.admits("a") for _ in range(6)] == [True] * 5 + [False]
    assert (held.take_left_out("a"), held.take_left_out("a"), held.take_left_out("c")) == (4, 0, 0)


async def test_connections_can_be_followed_of_one_lease_and_of_all(bed: Bed) -> None:
    await refused(bed, "before.example")
    async with bed.client.connections(follow=True) as every, bed.client.connections(bed.id, follow=True) as mine:
        for events in (every, mine):
            assert (await next_name(events)) == "before.example"
        await refused(bed, "after.example")
        for events in (every, mine):
            assert (await next_name(events)) == "after.example"


async def next_name(events: AsyncIterator[Connection]) -> str:
    async with asyncio.timeout(20):
        return (await anext(events)).name


@pytest.mark.parametrize("settings", [with_network(allow=["a.example", "*.b.example"], inspect=["*.b.example"])])
async def test_inspected_hosts_are_those_that_are_named_and_allowed(bed: Bed) -> None:
    def inspected() -> set[str]:
        return {str(rule.pattern) for rule in policy().rules if rule.inspect}

    def policy() -> Policy:
        return bed.supervisor.leases[bed.id].network._policy

    assert inspected() == {"*.b.example"}
    tunnel = await bed.tunnel()
    assert tunnel.settings.authority.startswith("-----BEGIN CERTIFICATE-----")
    await bed.client.set_network(bed.id, NetworkRequest(inspect=("a.example", "c.example")))
    assert inspected() == {"a.example", "*.b.example"}
    assert not policy().decide("c.example", 443).allowed


async def test_a_guest_is_told_of_an_authority_only_where_it_signs(bed: Bed) -> None:
    tunnel = await bed.tunnel()
    assert (tunnel.settings.authority, tunnel.settings.environment) == (None, {})
    await bed.client.set_network(bed.id, NetworkRequest(inspect=("pypi.org",)))
    assert "CERTIFICATE" in tunnel.settings.authority


async def test_cassettes_are_recorded_and_replayed_beside_the_notebook(bed: Bed, tmp_path: Path) -> None:
    def asked(action: Any, name: str = "") -> CassetteRequest:
        return CassetteRequest(action=action, name=name, folder=str(tmp_path))

    access = (await bed.tunnel()).access
    assert "recording, 0 so far" in (await bed.client.play_cassette(bed.id, asked("record", "one"))).cassette
    assert access.cassette is not None
    assert access.cassette.recording
    assert access.cassette.path.parent == tmp_path
    with pytest.raises(ApiError) as raised:
        await bed.client.play_cassette(bed.id, asked("record", "one"))
    assert raised.value.code == "cassette"
    assert access.cassette.recording
    assert (await bed.client.play_cassette(bed.id, asked("off"))).cassette == ""
    assert access.cassette is None
    assert "replaying, 0 left" in (await bed.client.play_cassette(bed.id, asked("replay", "one"))).cassette
    with pytest.raises(ApiError):
        await bed.client.play_cassette(bed.id, asked("replay", "../one"))


async def test_the_command_shows_sessions_and_their_connections(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    await refused(bed, "a.example")
    for name, value in bed.supervisor.paths.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COLUMNS", "200")

    async def said(*words: str) -> str:
        result = await asyncio.to_thread(CliRunner().invoke, net_app, words)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.stdout

    assert "n.ipynb" in await said("status")
    assert json.loads(await said("status", "--json"))["refused"] == 1
    for words in (("log",), ("log", "n.ipynb"), ("log", bed.vm)):
        line = await said(*words)
        assert "a.example:443" in line
        assert "refused" in line
    assert json.loads(await said("log", "--json"))["name"] == "a.example"
    with pytest.raises(SupervisorError, match="0 sessions"):
        await said("log", "other.ipynb")
