"""Network namespaces of the tests' own. They have no names: they are gone when nobody uses them any more, whatever
becomes of the tests, and nothing of the machine's own network, or of its /run/netns and /etc/netns, is touched.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import TypeVar

_T = TypeVar("_T")
_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000
_PATIENCE = 30.0

_ETH_P_ALL, _ETH_P_IP, _ETH_P_IPV6 = 0x0003, 0x0800, 0x86DD
_SOL_PACKET, _PACKET_IGNORE_OUTGOING = 263, 23
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE = 26, 33
_HEADERS = 128
_NEIGHBOURS = frozenset(range(130, 138)) | {143}  # ICMPv6 that the kernels of a link say to each other (RFC 4861, 3810)

# Mounted over the machine's own, for what runs inside only. A machine without hosts or nsswitch.conf (a new chroot) has
# nothing to hide.
_ETC = ("resolv.conf", "hosts", "nsswitch.conf")
_MOUNT = """for file in $1/*; do
    target="/etc/${file##*/}"
    if [ -e "$target" ]; then mount --bind "$file" "$target" || exit 1; fi
done
shift; exec "$@"
"""


class Namespace:
    """A network namespace with its loopback up.

    Args:
        name: What the tests call it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        with ThreadPoolExecutor(1) as pool:
            self._descriptor = pool.submit(_unshare).result()
        self.ip("link", "set", "lo", "up")

    def close(self) -> None:
        os.close(self._descriptor)

    @property
    def path(self) -> str:
        """What nsenter(1) and ip(8) know it by, as long as this process has it."""
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    def inside(self, work: Callable[[], _T]) -> _T:
        """Do something in it, in a thread of its own; sockets made there belong to it for ever."""

        def enter() -> _T:
            _check(_LIBC.setns(self._descriptor, _CLONE_NEWNET))
            return work()

        with ThreadPoolExecutor(1) as pool:
            return pool.submit(enter).result()

    def ip(self, *arguments: str) -> None:
        """Run ip(8) in it."""
        subprocess.run(self.command("ip", *arguments), check=True, timeout=_PATIENCE)

    def command(self, *argv: str, etc: Path | None = None) -> list[str]:
        """The command that runs another one in it, under the same pid.

        Args:
            argv: The other command.
            etc: A folder with files that it sees in /etc instead of the machine's.
        """
        enter = ["nsenter", f"--net={self.path}"]
        if etc is not None:
            # Not `ip netns exec`: it mounts a new /sys, without the cgroups.
            enter += ["unshare", "--mount", "--propagation", "slave", "sh", "-c", _MOUNT, "sh", str(etc)]
        return [*enter, *argv]

    def join(self, other: Namespace, ours: tuple[str, ...], theirs: tuple[str, ...]) -> None:
        """Lay a cable to another one.

        Args:
            other: Which one.
            ours: Addresses of this end, with their prefix lengths.
            theirs: Addresses of the other end.
        """
        here, there = f"to-{other.name}"[:15], f"to-{self.name}"[:15]
        self.ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", other.path)
        for namespace, device, addresses in ((self, here, ours), (other, there, theirs)):
            for address in addresses:
                # Without it an IPv6 address is not used before it is known to be nobody else's.
                nodad = ("nodad",) if ":" in address else ()
                namespace.ip("address", "add", address, "dev", device, *nodad)
            namespace.ip("link", "set", device, "up")


def etc_folder(folder: Path, nameserver: str) -> Path:
    """Make a folder for `Namespace.command`: names come from one server only."""
    contents = (
        f"nameserver {nameserver}\noptions timeout:2 attempts:2\n",
        "127.0.0.1 localhost\n::1 localhost\n",
        "passwd: files\ngroup: files\nhosts: files dns\n",
    )
    folder.mkdir()
    for name, text in zip(_ETC, contents, strict=True):
        (folder / name).write_text(text)
    return folder


@dataclass(frozen=True)
class Knock:
    """That somebody wanted something of somebody: the first packet of a TCP connection, or any other packet.

    Attributes:
        place: Name of the namespace that the packet came to.
        protocol: ``tcp``, ``udp``, ``icmp`` or the protocol's number.
        address: Whom it was for.
        port: And which port; 0 where there are none.
    """

    place: str
    protocol: str
    address: str
    port: int


class Wiretap:
    """Sees every packet that comes to a namespace, whether or not anybody listens there.

    Args:
        namespace: Which one.
        device: Only this device's packets, if given.
    """

    def __init__(self, namespace: Namespace, device: str = "") -> None:
        self._place = namespace.name
        self.socket = namespace.inside(lambda: _packet_socket(device))

    def read(self) -> list[Knock]:
        """What has come since the last call."""
        found = []
        while True:
            try:
                packet, (_, kind, *_rest) = self.socket.recvfrom(_HEADERS)
            except BlockingIOError:
                return found
            knock = _knock(self._place, kind, packet)
            if knock is not None:
                found.append(knock)

    def close(self) -> None:
        self.socket.close()


def _unshare() -> int:
    _check(_LIBC.unshare(_CLONE_NEWNET))
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _packet_socket(device: str) -> socket.socket:
    tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL))
    tap.setblocking(False)
    tap.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    tap.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 16 << 20)
    # One instruction of BPF, "accept, cut off after the headers": a download must not fill the buffer.
    program = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, _HEADERS))
    tap.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", 1, ctypes.addressof(program)))
    if device:
        tap.bind((device, _ETH_P_ALL))
    return tap


def _knock(place: str, kind: int, packet: bytes) -> Knock | None:
    """What a packet wants, by RFC 791, 8200, 9293 and 768; nothing, if it belongs to what has begun before."""
    if kind == _ETH_P_IP:
        number, target, body = packet[9], IPv4Address(packet[16:20]), packet[(packet[0] & 15) * 4 :]
    elif kind == _ETH_P_IPV6:
        number, target, body = packet[6], IPv6Address(packet[24:40]), packet[40:]
    else:
        return None
    if number == socket.IPPROTO_TCP:
        flags = body[13]
        return Knock(place, "tcp", str(target), _port(body)) if flags & 0x12 == 0x02 else None
    if number == socket.IPPROTO_UDP:
        return Knock(place, "udp", str(target), _port(body))
    if number in {socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6}:
        chatter = number == socket.IPPROTO_ICMPV6 and body[0] in _NEIGHBOURS
        return None if chatter else Knock(place, "icmp", str(target), 0)
    # IPv6 asks for multicast groups with a hop-by-hop header in front (number 0).
    return None if target.is_multicast else Knock(place, str(number), str(target), 0)


def _port(body: bytes) -> int:
    return int.from_bytes(body[2:4])
