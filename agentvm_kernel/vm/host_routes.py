"""Where this host has addresses, and routes to: what the kernel says in proc(5)."""

from __future__ import annotations

import re
import socket
import struct
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Final

_NET: Final = Path("/proc/net")
_LOCAL: Final = re.compile(r"^ *\|-- ([\d.]+)\n +/32 host LOCAL$", re.MULTILINE)


def own_addresses(folder: Path = _NET) -> set[str]:
    """Return the IPv4 addresses of all interfaces.

    Args:
        folder: Where the kernel shows its tables.
    """
    return set(_LOCAL.findall((folder / "fib_trie").read_text()))


def routed_networks(folder: Path = _NET) -> list[IPv4Network]:
    """Return the networks that the main table has routes to, those of the host's own interfaces among them.

    Args:
        folder: Where the kernel shows its tables.
    """
    rows = [line.split() for line in (folder / "route").read_text().splitlines()[1:]]
    return [IPv4Network((_address(row[1]), str(_address(row[7])))) for row in rows]


def _address(text: str) -> IPv4Address:
    """Read an address that is printed as a number of this machine's own byte order."""
    return IPv4Address(socket.inet_ntoa(struct.pack("=I", int(text, 16))))
