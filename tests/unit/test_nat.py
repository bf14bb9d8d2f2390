"""The raw IP network of VMs: its addresses, its cards, what its filter and rules say."""

from __future__ import annotations

import shutil
import subprocess
from ipaddress import IPv4Network
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from agentvm_kernel.egress import addresses
from agentvm_kernel.errors import HypervisorError
from agentvm_kernel.vm import nat_guard
from agentvm_kernel.vm.host_routes import own_addresses, routed_networks
from agentvm_kernel.vm.nat import CARD_ALIAS, Cards, NatNetwork, choose_subnet
from agentvm_kernel.vm.nat_filter import PORTS, REFUSED, filter_xml

NETWORK = NatNetwork("0123abcd", IPv4Network("10.213.4.0/22"))

ROUTES = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
br0\t0000D50A\t00000000\t0001\t0\t0\t0\t00FCFFFF\t0\t0\t0
"""
TRIE = """\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     |-- 192.0.2.2
        /32 host LOCAL
     |-- 192.0.2.255
        /32 link BROADCAST
     |-- 127.0.0.0
        /8 host LOCAL
Local:
     |-- 45.55.0.1
        /32 host LOCAL
"""


def test_the_subnet_keeps_clear_of_what_the_host_knows() -> None:
    assert choose_subnet([IPv4Network("0.0.0.0/0")]) == IPv4Network("10.213.0.0/22")
    assert choose_subnet([IPv4Network("10.213.2.0/24")]) == IPv4Network("10.213.4.0/22")
    assert choose_subnet([IPv4Network("10.0.0.0/8")]) == IPv4Network("172.29.208.0/22")
    with pytest.raises(HypervisorError, match="No private network is free"):
        choose_subnet(map(IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))


def test_the_hosts_routes_and_addresses_are_read(tmp_path: Path) -> None:
    (tmp_path / "route").write_text(ROUTES)
    (tmp_path / "fib_trie").write_text(TRIE)
    assert routed_networks(tmp_path) == [IPv4Network("0.0.0.0/0"), IPv4Network("10.213.0.0/22")]
    assert own_addresses(tmp_path) == {"192.0.2.2", "45.55.0.1"}


def test_no_two_cards_are_alike_and_addresses_come_back_last() -> None:
    cards = Cards(NETWORK)
    taken = [cards.take() for _ in range(1021)]
    for values in (
        [one.mac for one in taken], [one.address for one in taken], [one.device for one in taken],
    ):  # fmt: skip
        assert len(set(values)) == 1021
    assert NETWORK.gateway not in [one.address for one in taken]
    assert all(len(one.device) <= 15 for one in taken), "IFNAMSIZ"
    assert all(int(one.mac[:2], 16) & 3 == 2 for one in taken), "locally administered, and for one receiver"
    with pytest.raises(HypervisorError, match="in use"):
        cards.take()
    cards.give_back(taken[5])
    cards.give_back(taken[6])
    again = cards.take()
    assert (again.address, again.mac == taken[5].mac) == (taken[5].address, False)


def test_a_card_is_apart_from_others_and_filtered_for_its_own_addresses() -> None:
    card = Cards(NETWORK).take()
    interface = ET.fromstring(NETWORK.card_xml(card))
    port, alias, driver = interface.find("port"), interface.find("alias"), interface.find("driver")
    assert port is not None
    assert alias is not None
    assert driver is not None
    assert (port.get("isolated"), alias.get("name"), driver.get("name")) == ("yes", CARD_ALIAS, "qemu")
    parameters = {one.get("name"): one.get("value") for one in interface.findall("filterref/parameter")}
    assert parameters == {"MAC": card.mac, "IP": card.address}


def test_the_filter_refuses_what_the_gateway_refuses() -> None:
    assert set(REFUSED) == {network for network, _ in addresses._FORBIDDEN_4}


def test_the_filter_lets_names_and_few_ports_through_and_nothing_else() -> None:
    root = ET.fromstring(filter_xml(NETWORK, ["45.55.0.1", "10.99.0.1"]))
    assert {one.get("filter") for one in root.findall("filterref")} == {
        "no-mac-spoofing", "no-ip-spoofing", "no-arp-spoofing", "no-other-l2-traffic",
    }  # fmt: skip
    rules = [(rule, part) for rule in root.findall("rule") for part in rule]
    accepted = [(part.tag, dict(part.attrib)) for rule, part in rules if rule.get("action") == "accept"]
    gateway = {"dstipaddr": "10.213.4.1", "dstportstart": "53"}
    assert [one for one in accepted if one[0] != "mac"] == [
        ("udp", gateway), ("tcp", gateway), *(("tcp", {"dstportstart": str(port)}) for port in PORTS),
    ]  # fmt: skip
    dropped = [part.get("dstipaddr") for rule, part in rules if rule.get("action") == "drop" and part.tag == "all"]
    assert "45.55.0.1" in dropped
    assert "10.99.0.1" not in dropped, "a network that is refused has it already"
    priorities = [int(rule.get("priority") or 0) for rule, part in rules if part.tag != "mac"]
    assert priorities == sorted(priorities)
    last = [part.tag for rule, part in rules if rule.get("priority") == "1000"]
    assert last == ["all", "all-ipv6"]


@pytest.mark.skipif(shutil.which("nft", path="/usr/sbin") is None, reason="nft is not installed")
def test_nft_understands_the_rules() -> None:
    command = ["unshare", "--user", "--map-root-user", "--net", "/usr/sbin/nft", "--check", "--file", "-"]
    done = subprocess.run(command, input=nat_guard.rules(NETWORK), capture_output=True, text=True, check=False)
    if "unshare" in done.stderr:
        pytest.skip(done.stderr)
    assert (done.returncode, done.stderr) == (0, "")
