"""What a VM's network card lets through: libvirt's XML for the filter (nwfilter) of a raw IP network.

Every frame has to pass two sets of rules, in ebtables (spoofing, protocols) and in iptables (addresses, ports). Of the
VM's connections the answers pass, too, by connection tracking.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network
from typing import Final
from xml.etree import ElementTree as ET  # nosec B405 - builds XML, parses none

from agentvm_kernel.vm.nat import NatNetwork, uuid_of

PORTS: Final = (22, 80, 443, 9418)
"""TCP ports that may be connected to, anywhere on the internet."""

NAMES_PORT: Final = 53

REFUSED: Final = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "168.63.129.16/32", "169.254.0.0/16",
            "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15",
            "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
        ),
    )
)  # fmt: skip
"""Where no VM gets: what ``egress/addresses.py`` refuses, too (a test compares them)."""

_SPOOFING: Final = ("no-mac-spoofing", "no-ip-spoofing")
_NAMES, _REFUSED, _ALLOWED, _LAST = "100", "200", "300", "1000"


def filter_xml(network: NatNetwork, own: Iterable[str]) -> str:
    """Return the filter.

    Args:
        network: Whose filter it is.
        own: The host's own addresses.
    """
    root = ET.Element("filter", name=network.name, chain="root")
    ET.SubElement(root, "uuid").text = uuid_of(network.name)
    for name in _SPOOFING:
        ET.SubElement(root, "filterref", filter=name)
    _rule(root, "accept", "out", "-650", "mac", protocolid="ipv4")
    _rule(root, "accept", "in", "-650", "mac", protocolid="ipv4")
    ET.SubElement(root, "filterref", filter="no-arp-spoofing")
    _rule(root, "accept", "inout", "-500", "mac", protocolid="arp")
    ET.SubElement(root, "filterref", filter="no-other-l2-traffic")
    for kind in ("udp", "tcp"):
        target = {"dstipaddr": str(network.gateway), "dstportstart": str(NAMES_PORT)}
        _rule(root, "accept", "out", _NAMES, kind, **target)
    public = (one for one in map(IPv4Network, sorted(set(own))) if not any(one.subnet_of(range_) for range_ in REFUSED))
    for refused in (*REFUSED, *public):
        mask = {"dstipaddr": str(refused.network_address), "dstipmask": str(refused.prefixlen)}
        _rule(root, "drop", "out", _REFUSED, "all", **mask)
    for port in PORTS:
        _rule(root, "accept", "out", _ALLOWED, "tcp", dstportstart=str(port))
    for kind in ("all", "all-ipv6"):
        _rule(root, "drop", "inout", _LAST, kind)
    return ET.tostring(root, encoding="unicode")


def _rule(root: ET.Element, action: str, direction: str, priority: str, kind: str, **match: str) -> None:
    rule = ET.SubElement(root, "rule", action=action, direction=direction, priority=priority)
    ET.SubElement(rule, kind, match)
