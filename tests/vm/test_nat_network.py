"""VMs with a network card, on libvirt's system daemon: what gets out, what does not, and what is left of it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from contextlib import suppress

import pytest
from audited import audited
from card_bed import (
    NAT,
    NEEDS,
    PING,
    SPOOF,
    a_rollback_brings_another_card,
    card,
    gateway,
    names_are_answered,
    nobody_else_is_reached,
    other_addresses_get_nowhere,
    prepare,
    reaches_the_internet,
    they_do_not_reach_each_other,
    traces,
)
from egress_bed import Visitor, visitor
from internet import EVIL, GOOD, HOST, METADATA, NEIGHBOUR, RAW, internet
from kernel_client import wait_until
from system_host import SystemHost
from vms import supervisor_pid

from agentvm_kernel.config import Paths
from agentvm_kernel.errors import AgentVMError
from agentvm_kernel.supervisor.client import SupervisorClient
from agentvm_kernel.supervisor.messages import NetworkMode
from agentvm_kernel.supervisor.network_messages import NetworkInfo, NetworkRequest

pytestmark = NEEDS

BLOCKED = "network_connection_blocked"


@pytest.fixture(scope="module")
def world() -> Iterator[SystemHost]:
    with internet(SystemHost) as ours, ours.daemon():
        yield ours


@pytest.fixture(scope="module")
def paths(world: SystemHost) -> Iterator[Paths]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AGENTVM_URI", "qemu:///system")
        with world.supervised(NAT) as ours:
            yield ours


@pytest.fixture
def vm(paths: Paths, world: SystemHost) -> Iterator[Visitor]:
    with visitor(paths) as ours:
        prepare(ours)
        world.forget()
        yield ours


def refused_packets(world: SystemHost) -> int:
    """What our own rules have counted."""
    said = json.loads(world.run("nft", "--json", "list", "counters"))
    return sum(one["counter"]["packets"] for one in said["nftables"] if "counter" in one)


def test_an_allowed_port_of_a_public_address_is_reached(vm: Visitor, world: SystemHost) -> None:
    mac, _ = card(vm)
    assert mac.startswith("52:54:")
    assert vm.program("curl", "--silent", "--show-error", f"http://{GOOD}/raw").startswith(f"reached {GOOD}/raw")
    for port in (22, 443, 9418):
        assert vm.value(f"tcp({GOOD!r}, {port}, 30)") == "reached"
    assert {(one.address, one.port) for one in world.knocks} == {(GOOD, port) for port in (22, 80, 443, 9418)}
    assert [one.path for one in world.requests(GOOD)] == ["/raw"]
    assert vm.connections == [], "nothing went through the gateway"


def test_names_go_through_the_gateway_all_the_same(vm: Visitor, world: SystemHost) -> None:
    assert vm.program("curl", "--silent", "--show-error", "http://good.example.org/named").startswith("reached")
    said = vm.program("curl", "--silent", "--show-error", "http://evil.example.net/")
    assert "evil.example.net is not allowed" in said
    verdicts = {(one.name, one.verdict) for one in vm.connections}
    assert verdicts == {("good.example.org", "allowed"), ("evil.example.net", "refused")}
    assert world.trespasses == []


def test_everything_else_is_refused_counted_and_written_down(vm: Visitor, world: SystemHost, paths: Paths) -> None:
    before = refused_packets(world)
    targets = [
        (GOOD, 8080), (GOOD, 25), (HOST, 80), ("10.99.0.1", 80), (gateway(vm), 80), (NEIGHBOUR, 80), (METADATA, 80),
        ("100.64.0.7", 443), (HOST, 22),
    ]  # fmt: skip
    for address, port in targets:
        assert vm.value(f"tcp({address!r}, {port})") != "reached"
    datagrams = [(RAW, 53), (EVIL, 443), (HOST, 53), (METADATA, 80)]
    for address, port in datagrams:
        vm.do(f"udp({address!r}, {port})")
    vm.program("sudo", "python3", "-c", PING.format(address=GOOD))
    vm.refused(*targets, *datagrams, (GOOD, 0))
    assert world.knocks == [], "nobody was spoken to"
    assert refused_packets(world) - before >= len(targets) + len(datagrams) + 1
    assert {HOST, NEIGHBOUR, METADATA} <= {one.get("address") for one in audited(paths.state, BLOCKED)}


def test_an_address_of_another_network_gets_nowhere_and_is_counted(vm: Visitor, world: SystemHost) -> None:
    vm.program("sudo", "sh", "-c", "ip address add 45.55.0.77/32 dev agentvm1")
    assert reaches_the_internet(vm), "it does not have to ask for its router any more"
    world.forget()
    before = refused_packets(world)
    vm.fails("python3", "-c", SPOOF.format("45.55.0.77", GOOD))
    assert world.knocks == []
    assert refused_packets(world) > before


def test_libvirts_filter_alone_refuses_the_same(paths: Paths, world: SystemHost) -> None:
    """As for an ordinary user, who cannot set rules."""
    with visitor(paths) as vm:
        prepare(vm)
        for family in ("bridge", "inet"):
            world.run("nft", "delete", "table", family, f"agentvm_{paths.tag}")
        nobody_else_is_reached(vm, world)


def test_another_address_or_mac_than_ones_own_gets_nowhere(vm: Visitor, world: SystemHost) -> None:
    other_addresses_get_nowhere(vm, world)


def test_two_vms_have_cards_of_their_own_and_do_not_reach_each_other(paths: Paths, world: SystemHost) -> None:
    with visitor(paths) as first, visitor(paths) as second:
        for one in (first, second):
            prepare(one)
        they_do_not_reach_each_other(first, second)


def test_a_snapshot_keeps_the_card_and_a_rollback_brings_another(vm: Visitor, world: SystemHost) -> None:
    a_rollback_brings_another_card(vm)


# In a fork: waits for the card.
FOUND = """
import json, time, subprocess
command = ["ip", "-json", "address", "show", "dev", "agentvm1"]
while not (said := json.loads(subprocess.run(command, capture_output=True).stdout or "[]")) or not said[0]["addr_info"]:
    time.sleep(0.1)
"""


def test_forks_have_cards_of_their_own(vm: Visitor, world: SystemHost) -> None:
    own = card(vm)
    show = f"show([said[0]['address'], said[0]['addr_info'][0]['local'], tcp({GOOD!r}, 80, 30)])"
    results = vm.session.fork(2, f"{FOUND}\n{show}", timeout=120)
    seen = [json.loads(one.cell.stdout.rpartition("\n@")[2]) for one in results]
    assert [reached for _, _, reached in seen] == ["reached", "reached"]
    assert len({own[0], *(mac for mac, _, _ in seen)}) == 3
    assert len({own[1], *(address for _, address, _ in seen)}) == 3


def test_an_adopted_fork_has_the_network_that_holds_by_then(vm: Visitor, world: SystemHost, paths: Paths) -> None:
    lease = lease_of(vm)
    knock = f"while True:\n        tcp({GOOD!r}, 80, 0.2)"
    start = f"import threading\ndef knock():\n    {knock}\nthreading.Thread(target=knock, daemon=True).start()"
    (fork,) = vm.session.fork(1, f"{FOUND}\nassert tcp({GOOD!r}, 80, 30) == 'reached'\n{start}", timeout=120)
    assert fork.kept, fork.cell
    asyncio.run(change(paths, lease, "isolated"))
    world.forget()
    vm.session.adopt(1)
    wait_until(lambda: card(vm) == ("", ""), "the VM has no network card")
    assert world.knocks == [], "not even before it was taken away"
    asyncio.run(change(paths, lease, "filtered"))
    wait_until(lambda: (GOOD, 80) in {(one.address, one.port) for one in world.knocks}, "it gets through again")


def test_an_adopted_fork_has_the_tunnel_that_was_turned_off_and_on(
    vm: Visitor, world: SystemHost, paths: Paths
) -> None:
    lease = lease_of(vm)
    vm.session.fork(1, "1")
    asyncio.run(change(paths, lease, "isolated"))
    asyncio.run(change(paths, lease, "filtered"))
    vm.session.adopt(1)
    assert vm.program("curl", "--silent", "--show-error", "http://good.example.org/again").startswith("reached")


def test_the_networks_own_name_server_answers(vm: Visitor, world: SystemHost) -> None:
    names_are_answered(vm, world)
    assert vm.connections == []


def test_without_a_network_there_is_no_card(vm: Visitor, world: SystemHost, paths: Paths) -> None:
    lease = lease_of(vm)
    mine = card(vm)
    assert asyncio.run(change(paths, lease, "isolated")).card == ""
    assert card(vm) == ("", "")
    vm.do(f"tcp({GOOD!r}, 80)")
    assert world.knocks == []
    assert asyncio.run(change(paths, lease, "filtered")).card == mine[1]
    prepare(vm)
    assert reaches_the_internet(vm)


def lease_of(vm: Visitor) -> str:
    """The lease's id, as it is written down with each connection."""
    return vm.session.connections()[0].session


async def change(paths: Paths, lease: str, mode: NetworkMode) -> NetworkInfo:
    async with SupervisorClient(paths, start=False) as client:
        return await client.set_network(lease, NetworkRequest(mode=mode, allow=("good.example.org",)))


def test_nothing_of_it_is_left(world: SystemHost, paths: Paths) -> None:
    with world.supervised(NAT) as other:
        marks = (f"avm{other.tag}", f"avc{other.tag}", f"agentvm-nat-{other.tag}", f"agentvm_{other.tag}")
        with visitor(other) as vm:
            prepare(vm)
            assert reaches_the_internet(vm)
            subnets = world.run("ip", "-4", "-brief", "address")
            assert {"10.213.0.1/22", "10.213.4.1/22"} <= set(subnets.split()), "beside the other supervisor's"
            seen = traces(world)
            assert all(mark in seen for mark in marks)
    seen = traces(world)
    assert [mark for mark in marks if mark in seen] == []


def test_what_a_killed_supervisor_has_left_goes_with_the_next_one(world: SystemHost, paths: Paths) -> None:
    with world.supervised(NAT) as other:
        marks = (f"avm{other.tag}", f"agentvm-nat-{other.tag}", f"agentvm_{other.tag}")
        with suppress(AgentVMError), visitor(other) as vm:
            prepare(vm)
            os.kill(supervisor_pid(other), signal.SIGKILL)
        assert all(mark in traces(world) for mark in marks)
        with world.supervisor(other):
            assert world.virsh("net-list").count(f"agentvm-nat-{other.tag}") == 1
            with visitor(other) as vm:
                prepare(vm)
                assert reaches_the_internet(vm)
        seen = traces(world)
        assert [mark for mark in marks if mark in seen] == []
