"""VMs with a network card: what their cells and libvirt's host say of it, and what holds for whoever owns them."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path

import pytest
from egress_bed import Visitor
from internet import GOOD, HOST, METADATA, NEIGHBOUR, RAW
from kernel_client import wait_until
from system_host import SystemHost

DRIVERS = Path("/usr/lib/x86_64-linux-gnu/libvirt/connection-driver")
NEEDS = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(shutil.which("libvirtd", path="/usr/sbin") is None, reason="libvirtd is not installed"),
    pytest.mark.skipif(
        not all((DRIVERS / f"libvirt_driver_{name}.so").exists() for name in ("network", "nwfilter")),
        reason="libvirt's drivers for networks and their filters are not installed",
    ),
]
"""Marks of tests whose VMs have cards."""

NAT = "\n[network]\nnat = true\n"
_TOOLS = """
import socket
from concurrent.futures import ThreadPoolExecutor
def tcp(address, port, patience=3):
    try:
        with socket.create_connection((address, port), patience):
            return "reached"
    except OSError as error:
        return type(error).__name__
def tcp_to_all(targets):
    with ThreadPoolExecutor(len(targets)) as pool:
        return list(pool.map(lambda target: tcp(*target), targets))
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
_LISTEN = """
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
_LOOK_UP = """
def look_up(server):
    name = b"".join(bytes((len(part),)) + part for part in (b"good", b"example", b"org", b""))
    question = bytes((18, 52, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0)) + name + bytes((0, 1, 0, 1))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        sock.sendto(question, (server, 53))
        return socket.inet_ntoa(sock.recv(1000)[-4:])
"""


def prepare(vm: Visitor) -> None:
    """Wait until a VM has its card, and give it the tools."""
    wait_until(lambda: card(vm)[1] != "", "the VM has a network card")
    vm.do(_TOOLS)


def card(vm: Visitor) -> tuple[str, str]:
    """The MAC and the IP address of a VM's card; empty while it has none."""
    said = json.loads(vm.program("sh", "-c", "ip -json address show dev agentvm1 2>/dev/null || echo '[]'"))
    if not said or not said[0]["addr_info"]:
        return "", ""
    return said[0]["address"], said[0]["addr_info"][0]["local"]


def gateway(vm: Visitor) -> str:
    """The host's end of the VM's network."""
    route = json.loads(vm.program("ip", "-json", "route", "show", "default", "dev", "agentvm1"))
    return str(route[0]["gateway"])


def _router(vm: Visitor) -> str:
    """The MAC address of the host's end, when the VM has asked for it."""
    known = json.loads(vm.program("ip", "-json", "neigh", "show", "to", gateway(vm), "dev", "agentvm1"))
    return str(known[0]["lladdr"])


def reaches_the_internet(vm: Visitor) -> bool:
    """Whether an allowed port of a public address answers."""
    return bool(vm.value(f"tcp({GOOD!r}, 80, 30)") == "reached")


def names_are_answered(vm: Visitor, world: SystemHost) -> None:
    """Ask the network's own name server."""
    world.forget()
    vm.do(_LOOK_UP)
    assert vm.value(f"look_up({gateway(vm)!r})") == GOOD
    assert world.names.asked == ["A good.example.org"]


def nobody_else_is_reached(vm: Visitor, world: SystemHost) -> None:
    """Try what libvirt's filter has to refuse: other ports and protocols, the host, its neighbours."""
    targets = [
        (GOOD, 8080), (HOST, 80), ("10.99.0.1", 80), (gateway(vm), 80), (NEIGHBOUR, 80), (METADATA, 80), (HOST, 22),
    ]  # fmt: skip
    recorder = world.host.inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with recorder:
        recorder.bind((HOST, 9000))
        recorder.setblocking(False)
        world.forget()
        outcomes = zip(targets, vm.value(f"tcp_to_all({targets!r})"), strict=True)
        assert [target for target, outcome in outcomes if outcome == "reached"] == []
        vm.do(f"udp({RAW!r}, 53); udp({HOST!r}, 9000)")
        vm.program("sudo", "python3", "-c", PING.format(address=GOOD))
        with pytest.raises(BlockingIOError):
            recorder.recv(100)
    assert world.knocks == []
    assert reaches_the_internet(vm)


def other_addresses_get_nowhere(vm: Visitor, world: SystemHost) -> None:
    """Let a VM use an IP address, then a MAC address, that is not its own."""
    mac, address = card(vm)
    other = address.rpartition(".")[0] + ".200"
    vm.program("sudo", "sh", "-c", f"ip address add {other}/22 dev agentvm1")
    # So its router's MAC address is known: that it may not ask for it falsely is another filter's work.
    assert reaches_the_internet(vm)
    world.forget()
    vm.fails("python3", "-c", SPOOF.format(other, GOOD))
    assert world.knocks == [], "not even the first packet got out"
    keep = f"ip neigh replace {gateway(vm)} lladdr {_router(vm)} nud permanent dev agentvm1"
    vm.program("sudo", "sh", "-c", f"ip link set agentvm1 address {mac[:-2]}fe && {keep}")
    assert vm.value(f"tcp({GOOD!r}, 80)") != "reached"
    assert world.knocks == []


def they_do_not_reach_each_other(first: Visitor, second: Visitor) -> None:
    """Let one VM speak to another one, which listens."""
    cards = card(first), card(second)
    for ours, theirs in zip(*cards, strict=True):
        assert ours != theirs
    for one in (first, second):
        assert reaches_the_internet(one)
    second.do(_LISTEN)
    mac, address = cards[1]
    # Root knows where the other one is, and does not have to ask; the host would pass on what it gets for another one.
    for there in (mac, _router(first)):
        first.program("sudo", "ip", "neigh", "replace", address, "lladdr", there, "dev", "agentvm1")
        assert first.value(f"tcp({address!r}, 9418)") != "reached"
        first.do(f"udp({address!r}, 9418)")
        assert second.value("heard()") == 0
    second.do("socket.create_connection(('127.0.0.1', 9418)).close(); udp('127.0.0.1', 9418)")
    assert second.value("heard()") == 2, "it would have heard"


def a_rollback_brings_another_card(vm: Visitor) -> None:
    """Take a snapshot, through which the card and its connections last, and go back to it twice."""
    before = card(vm)
    vm.do(f"kept = socket.create_connection(({GOOD!r}, 80))")
    taken = vm.session.snapshot("with-a-card")
    wait_until(lambda: card(vm) == before, "the VM has its card again")
    vm.do(f"kept.sendall(b'GET /kept HTTP/1.0\\r\\nHost: {GOOD}\\r\\n\\r\\n')")
    assert vm.value("kept.recv(15).decode()") == "HTTP/1.0 200 OK", "connections outlive a snapshot"
    macs, addresses = {before[0]}, {before[1]}
    for _ in range(2):  # by then the first one's address is free again
        vm.session.rollback(taken)
        prepare(vm)
        mac, address = card(vm)
        assert mac not in macs
        assert address not in addresses
        macs.add(mac)
        addresses.add(address)
        assert reaches_the_internet(vm)


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
