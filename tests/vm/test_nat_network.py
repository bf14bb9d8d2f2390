"""VMs with a network card, on libvirt's system daemon: what gets out, what does not, and what is left of it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from audited import audited
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

DRIVERS = Path("/usr/lib/x86_64-linux-gnu/libvirt/connection-driver")
pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(shutil.which("libvirtd", path="/usr/sbin") is None, reason="libvirtd is not installed"),
    pytest.mark.skipif(
        not all((DRIVERS / f"libvirt_driver_{name}.so").exists() for name in ("network", "nwfilter")),
        reason="libvirt's drivers for networks and their filters are not installed",
    ),
]

BLOCKED = "network_connection_blocked"
NAT = "\n[network]\nnat = true\n"
TOOLS = """
import socket
def tcp(address, port, patience=3):
    try:
        with socket.create_connection((address, port), patience):
            return "reached"
    except OSError as error:
        return type(error).__name__
def udp(address, port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"hello", (address, port))
"""
# An echo request, which only root may send so (RFC 792); its checksum is right.
PING = """
import socket
sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
sock.sendto(bytes((8, 0, 0xf7, 0xff, 0, 0, 0, 0)), ({address!r}, 0))
"""
SPOOF = "import socket; s = socket.socket(); s.settimeout(3); s.bind(({!r}, 0)); s.connect(({!r}, 80))"
# What a server in the VM heard, TCP and UDP: nothing may come to it.
LISTEN = """
listening = [socket.socket(socket.AF_INET, kind) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)]
for one in listening:
    one.bind(("0.0.0.0", 9418))
    one.setblocking(False)
listening[0].listen()
def heard():
    found = 0
    for take in (listening[0].accept, lambda: listening[1].recv(100)):
        try:
            take()
            found += 1
        except BlockingIOError:
            pass
    return found
"""
# A question for an address (RFC 1035), and the last four bytes of the answer, which are the address.
LOOK_UP = """
def look_up(server):
    name = b"".join(bytes((len(part),)) + part for part in (b"good", b"example", b"org", b""))
    question = bytes((18, 52, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0)) + name + bytes((0, 1, 0, 1))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        sock.sendto(question, (server, 53))
        return socket.inet_ntoa(sock.recv(1000)[-4:])
"""


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


def prepare(vm: Visitor) -> None:
    """Wait until a VM has its card, and give it the tools."""
    wait_until(lambda: card(vm)[1] != "", "the VM has a network card")
    vm.do(TOOLS)


def card(vm: Visitor) -> tuple[str, str]:
    """The MAC and the IP address of a VM's card; empty while it has none."""
    said = json.loads(vm.program("sh", "-c", "ip -json address show dev agentvm1 2>/dev/null || echo '[]'"))
    if not said or not said[0]["addr_info"]:
        return "", ""
    return said[0]["address"], said[0]["addr_info"][0]["local"]


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
    assert vm.value(f"tcp({GOOD!r}, 80, 30)") == "reached", "it does not have to ask for its router any more"
    world.forget()
    before = refused_packets(world)
    vm.fails("python3", "-c", SPOOF.format("45.55.0.77", GOOD))
    assert world.knocks == []
    assert refused_packets(world) > before


def gateway(vm: Visitor) -> str:
    route = json.loads(vm.program("ip", "-json", "route", "show", "default", "dev", "agentvm1"))
    return str(route[0]["gateway"])


def test_libvirts_filter_alone_refuses_the_same(paths: Paths, world: SystemHost) -> None:
    """As for an ordinary user, who cannot set rules."""
    recorder = world.host.inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with recorder, visitor(paths) as vm:
        prepare(vm)
        recorder.bind((HOST, 9000))
        recorder.setblocking(False)
        for family in ("bridge", "inet"):
            world.run("nft", "delete", "table", family, f"agentvm_{paths.tag}")
        world.forget()
        targets = [
            (GOOD, 8080), (HOST, 80), ("10.99.0.1", 80), (gateway(vm), 80), (NEIGHBOUR, 80), (METADATA, 80), (HOST, 22),
        ]  # fmt: skip
        for address, port in targets:
            assert vm.value(f"tcp({address!r}, {port})") != "reached"
        vm.do(f"udp({RAW!r}, 53); udp({HOST!r}, 9000)")
        vm.program("sudo", "python3", "-c", PING.format(address=GOOD))
        with pytest.raises(BlockingIOError):
            recorder.recv(100)
        assert world.knocks == []
        assert vm.value(f"tcp({GOOD!r}, 80, 30)") == "reached"


def test_another_address_or_mac_than_ones_own_gets_nowhere(vm: Visitor, world: SystemHost) -> None:
    mac, address = card(vm)
    other = address.rpartition(".")[0] + ".200"
    vm.program("sudo", "sh", "-c", f"ip address add {other}/22 dev agentvm1")
    # So its router's MAC address is known: that it may not ask for it falsely is another filter's work.
    assert vm.value(f"tcp({GOOD!r}, 80, 30)") == "reached"
    world.forget()
    vm.fails("python3", "-c", SPOOF.format(other, GOOD))
    assert world.knocks == [], "not even the first packet got out"
    known = json.loads(vm.program("ip", "-json", "neigh", "show", "to", gateway(vm), "dev", "agentvm1"))[0]["lladdr"]
    keep = f"ip neigh replace {gateway(vm)} lladdr {known} nud permanent dev agentvm1"
    vm.program("sudo", "sh", "-c", f"ip link set agentvm1 address {mac[:-2]}fe && {keep}")
    assert vm.value(f"tcp({GOOD!r}, 80)") != "reached"
    assert world.knocks == []


def test_two_vms_have_cards_of_their_own_and_do_not_reach_each_other(paths: Paths, world: SystemHost) -> None:
    with ExitStack() as stack:
        vms = [stack.enter_context(visitor(paths)) for _ in range(2)]
        for one in vms:
            prepare(one)
        first, second = (card(one) for one in vms)
        assert first[0] != second[0]
        assert first[1] != second[1]
        for one in vms:
            assert one.value(f"tcp({GOOD!r}, 80, 30)") == "reached"
        vms[1].do(LISTEN)
        # Root knows where the other one is, and does not have to ask.
        vms[0].program("sudo", "ip", "neigh", "replace", second[1], "lladdr", second[0], "dev", "agentvm1")
        assert vms[0].value(f"tcp({second[1]!r}, 9418)") != "reached"
        vms[0].do(f"udp({second[1]!r}, 9418)")
        assert vms[1].value("heard()") == 0
        vms[1].do("socket.create_connection(('127.0.0.1', 9418)).close(); udp('127.0.0.1', 9418)")
        assert vms[1].value("heard()") == 2, "it would have heard"


def test_a_snapshot_keeps_the_card_and_a_rollback_brings_another(vm: Visitor, world: SystemHost) -> None:
    before = card(vm)
    vm.do(f"kept = socket.create_connection(({GOOD!r}, 80))")
    taken = vm.session.snapshot("with-a-card")
    wait_until(lambda: card(vm) == before, "the VM has its card again")
    vm.do(f"kept.sendall(b'GET /kept HTTP/1.0\\r\\nHost: {GOOD}\\r\\n\\r\\n')")
    assert vm.value("kept.recv(15).decode()") == "HTTP/1.0 200 OK", "connections outlive a snapshot"
    macs, addresses = {before[0]}, {before[1]}
    for _ in range(2):
        vm.session.rollback(taken)
        prepare(vm)
        mac, address = card(vm)
        assert mac not in macs
        assert address not in addresses
        macs.add(mac)
        addresses.add(address)
        assert vm.value(f"tcp({GOOD!r}, 80, 30)") == "reached"


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
    vm.do(LOOK_UP)
    assert vm.value(f"look_up({gateway(vm)!r})") == GOOD
    assert world.names.asked == ["A good.example.org"]
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
    assert vm.value(f"tcp({GOOD!r}, 80, 30)") == "reached"


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
            assert vm.value(f"tcp({GOOD!r}, 80, 30)") == "reached"
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
                assert vm.value(f"tcp({GOOD!r}, 80, 30)") == "reached"
        seen = traces(world)
        assert [mark for mark in marks if mark in seen] == []


def traces(world: SystemHost) -> str:
    """All that a network is seen by: interfaces, rules, libvirt's lists, processes."""
    commands = (
        ("ip", "link"), ("nft", "list", "ruleset"), ("iptables-save",), ("ebtables-save",),
        ("virsh", "-c", "qemu:///system", "net-list", "--all"), ("virsh", "-c", "qemu:///system", "nwfilter-list"),
    )  # fmt: skip
    said = [world.run(*command) for command in commands]
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            said.append(entry.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return "\n".join(said)
