"""The raw IP network that VMs of the system daemon may have: its names, its addresses, its cards.

No card is part of a snapshot. A VM gets one after it was cloned, with an address that no other VM has, and is without
it while it is saved; see docs/nat.md.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Final
from xml.etree import ElementTree as ET  # nosec B405 - builds XML, parses none

from agentvm_kernel.errors import HypervisorError

CARD_ALIAS: Final = "ua-agentvm-card"  # libvirt takes a user's alias only with this prefix

_PREFIX: Final = 22
# Private networks that neither clouds, container engines nor libvirt's default network use by themselves.
_RANGES: Final = tuple(map(IPv4Network, ("10.213.0.0/16", "172.29.208.0/20", "192.168.212.0/22")))


@dataclass(frozen=True)
class Card:
    """A network card.

    Attributes:
        mac: Its MAC address.
        address: The only IP address that may be used with it.
        prefix: Length of the network's prefix.
        gateway: The host's end of the network: it routes, and answers for names.
        device: The host's end of the card.
    """

    mac: str
    address: str
    prefix: int
    gateway: str
    device: str

    def fields(self) -> dict[str, object]:
        """Return the fields of the guest agent's card request."""
        return {"mac": self.mac, "address": self.address, "prefix": self.prefix, "gateway": self.gateway}


@dataclass(frozen=True)
class NatNetwork:
    """A supervisor's network.

    Attributes:
        tag: Tells this supervisor's from others': 8 hexadecimal digits.
        subnet: Its addresses; the first one is the host's.
    """

    tag: str
    subnet: IPv4Network

    @property
    def name(self) -> str:
        """Its name, and its filter's."""
        return name_of(self.tag)

    @property
    def bridge(self) -> str:
        """The bridge's name."""
        return f"avm{self.tag}"

    @property
    def gateway(self) -> IPv4Address:
        """The host's address."""
        return self.subnet[1]

    @property
    def devices(self) -> str:
        """What the names of its cards' host ends, and of nothing else, begin with."""
        return f"avc{self.tag}"

    def xml(self) -> str:
        """Return libvirt's XML: NAT, names, and no DHCP, because each VM is told its address."""
        network = ET.Element("network")
        ET.SubElement(network, "name").text = self.name
        ET.SubElement(network, "uuid").text = uuid_of(self.name)
        ET.SubElement(network, "forward", mode="nat")
        ET.SubElement(network, "bridge", name=self.bridge, stp="off", delay="0")
        ET.SubElement(network, "ip", address=str(self.gateway), prefix=str(self.subnet.prefixlen))
        return ET.tostring(network, encoding="unicode")

    def card_xml(self, card: Card) -> str:
        """Return libvirt's XML for a card.

        Args:
            card: One of this network's.
        """
        interface = ET.Element("interface", type="network")
        ET.SubElement(interface, "mac", address=card.mac)
        ET.SubElement(interface, "source", network=self.name)
        ET.SubElement(interface, "target", dev=card.device)
        ET.SubElement(interface, "model", type="virtio")
        # QEMU itself, contained as it is, not vhost-net in the host's kernel.
        ET.SubElement(interface, "driver", name="qemu")
        ET.SubElement(interface, "port", isolated="yes")
        # Without it QEMU would look for a boot ROM, which its own user may not be able to read.
        ET.SubElement(interface, "rom", enabled="no")
        ET.SubElement(interface, "alias", name=CARD_ALIAS)
        reference = ET.SubElement(interface, "filterref", filter=self.name)
        for name, value in (("MAC", card.mac), ("IP", card.address)):
            ET.SubElement(reference, "parameter", name=name, value=value)
        return ET.tostring(interface, encoding="unicode")


class Cards:
    """Gives out cards, no address twice at the same time, and none again before all others were given out.

    Args:
        network: Their network.
    """

    def __init__(self, network: NatNetwork) -> None:
        self._network = network
        self._free = [str(address) for address in network.subnet.hosts() if address != network.gateway]
        self._free.reverse()

    def take(self) -> Card:
        """Return a card with an address and a MAC address of its own.

        Raises:
            HypervisorError: all addresses are in use.
        """
        if not self._free:
            raise HypervisorError(f"All addresses of {self._network.subnet} are in use.")
        network = self._network
        address = self._free.pop()
        number = int(IPv4Address(address)) - int(network.subnet.network_address)
        # One of those that anybody may give out (RFC 7042), with the address's number in it, so that no two are equal.
        mac = bytes((0x52, 0x54, *secrets.token_bytes(2), *number.to_bytes(2)))
        return Card(
            mac.hex(":"), address, network.subnet.prefixlen, str(network.gateway), f"{network.devices}{number:03x}"
        )

    def give_back(self, card: Card) -> None:
        """Take note that a card is gone."""
        self._free.insert(0, card.address)


def name_of(tag: str) -> str:
    """Return the name of a supervisor's network.

    Args:
        tag: Tells it from others'.
    """
    return f"agentvm-nat-{tag}"


def uuid_of(name: str) -> str:
    """Return the UUID that libvirt is to know something by: the same for the same name, so that it can be redefined.

    Args:
        name: Its name.
    """
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, name))


def choose_subnet(taken: Iterable[IPv4Network]) -> IPv4Network:
    """Return a private network that overlaps with none that the host knows.

    Args:
        taken: What the host has addresses in or routes to; the default route does not count.

    Raises:
        HypervisorError: all candidates overlap.
    """
    known = [network for network in taken if network.prefixlen > 0]
    for candidates in _RANGES:
        for subnet in candidates.subnets(new_prefix=_PREFIX):
            if not any(subnet.overlaps(network) for network in known):
                return subnet
    raise HypervisorError("No private network is free for VMs: the host has routes to all candidates.")
