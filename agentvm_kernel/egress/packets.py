"""Packets that the kernel's rules have refused, as it reports them through nfnetlink_log.

Netlink is parsed here by hand: messages and attributes as in <linux/netfilter/nfnetlink_log.h>, packets by RFC 791,
8200 and 9293. What comes is the kernel's word, but for the packet itself, which a guest has made.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

_NETFILTER: Final = 12  # NETLINK_NETFILTER
_PACKET, _CONFIG = 0x0400, 0x0401  # NFNL_SUBSYS_ULOG << 8 | NFULNL_MSG_*
_REQUEST: Final = 1  # NLM_F_REQUEST
_COMMAND, _MODE = 1, 2  # NFULA_CFG_*
_BIND: Final = b"\x01"  # NFULNL_CFG_CMD_BIND
_COPY_PACKET: Final = 2
_HEADER, _PAYLOAD = 1, 9  # NFULA_PACKET_HDR, NFULA_PAYLOAD
_IPV4, _IPV6 = 0x0800, 0x86DD
_SNAPPED: Final = 64
_BUFFER: Final = 64 << 10
_NAMES: Final = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6"}
_WITH_PORTS: Final = frozenset({6, 17})


@dataclass(frozen=True)
class RefusedPacket:
    """A packet.

    Attributes:
        source: The address that it claims to come from.
        address: Whom it was for.
        protocol: ``tcp``, ``udp``, ``icmp``, ``icmpv6``, or the protocol's number.
        port: And which port; 0 where there are none.
    """

    source: str
    address: str
    protocol: str
    port: int


class RefusedPackets:
    """Listens to a group of reports; only root may.

    Args:
        group: Its number.

    Raises:
        OSError: the kernel does not let this process.
    """

    def __init__(self, group: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETFILTER)
        try:
            self._socket.bind((0, 0))
            self._socket.setblocking(False)
            self._configure(group, _COMMAND, _BIND)
            self._configure(group, _MODE, struct.pack(">IBx", _SNAPPED, _COPY_PACKET))
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """Return what to wait on for reports."""
        return self._socket.fileno()

    def read(self) -> list[RefusedPacket]:
        """Return what was reported since the last call; some may be lost when too much came."""
        found: list[RefusedPacket] = []
        while True:
            try:
                data = self._socket.recv(_BUFFER)
            except BlockingIOError:
                return found
            except OSError:  # ENOBUFS: reports were lost, the rules' counters have them
                continue
            found += parse(data)

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()

    def _configure(self, group: int, kind: int, value: bytes) -> None:
        attribute = struct.pack("=HH", 4 + len(value), kind) + value
        body = struct.pack(">BBH", socket.AF_UNSPEC, 0, group) + attribute.ljust(-(-len(attribute) // 4) * 4, b"\0")
        self._socket.send(struct.pack("=IHHII", 16 + len(body), _CONFIG, _REQUEST, 0, 0) + body)


def parse(data: bytes) -> Iterator[RefusedPacket]:
    """Read netlink messages.

    Args:
        data: What was received at once.
    """
    while len(data) >= 16:
        length, kind = struct.unpack_from("=IH", data)
        if length < 16:
            return
        if kind == _PACKET and (packet := _read_message(data[20:length])) is not None:
            yield packet
        data = data[-(-length // 4) * 4 :]


def _read_message(attributes: bytes) -> RefusedPacket | None:
    protocol, payload = 0, b""
    while len(attributes) >= 4:
        length, kind = struct.unpack_from("=HH", attributes)
        if length < 4:
            return None
        value = attributes[4:length]
        if kind == _HEADER:
            (protocol,) = struct.unpack_from(">H", value)
        elif kind == _PAYLOAD:
            payload = value
        attributes = attributes[-(-length // 4) * 4 :]
    return _read_packet(protocol, payload)


def _read_packet(protocol: int, packet: bytes) -> RefusedPacket | None:
    if protocol == _IPV4 and len(packet) >= 20:
        number, rest = packet[9], packet[(packet[0] & 15) * 4 :]
        source, target = str(IPv4Address(packet[12:16])), str(IPv4Address(packet[16:20]))
    elif protocol == _IPV6 and len(packet) >= 40:
        number, rest = packet[6], packet[40:]
        source, target = str(IPv6Address(packet[8:24])), str(IPv6Address(packet[24:40]))
    else:
        return None
    port = int.from_bytes(rest[2:4]) if number in _WITH_PORTS and len(rest) >= 4 else 0
    return RefusedPacket(source, target, _NAMES.get(number, str(number)), port)
