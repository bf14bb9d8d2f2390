"""Gives programs a network that ends in the forwarder: an interface that leads nowhere, and rules that redirect.

All TCP connections that do not stay on this machine go to the forwarder, which learns from the kernel where they were
to lead. Everything else that would leave (UDP, ICMP, whatever comes from a raw socket) is rejected with an error, IPv6
has no route. Root in the guest can undo all of it, and has no network then.

What leaves by a network card (see `card`), where the host gives the VM one, is left alone; names lead into the
forwarder all the same.
"""

from __future__ import annotations

import socket
import struct
import subprocess
from pathlib import Path

FORWARDER_PORT = 1018
DNS_PORT = 53

# <linux/netfilter_ipv4.h>
_SO_ORIGINAL_DST = 80

_INTERFACE = "agentvm0"
CARD = "agentvm1"
_LINKS = f"""\
link set {_INTERFACE} mtu 65520 up
address replace 198.18.0.1/15 dev {_INTERFACE}
route replace default dev {_INTERFACE} metric 1024
"""

# A rejected connection attempt of another kind ends at once, too. What was redirected has its new address by then, but
# still its old interface.
_RULES = f"""\
table inet agentvm
delete table inet agentvm
table inet agentvm {{
  chain connections {{
    type nat hook output priority -100;
    oifname "{CARD}" accept
    ip daddr 127.0.0.0/8 accept
    fib daddr type local accept
    meta nfproto ipv4 meta l4proto tcp redirect to :{FORWARDER_PORT}
  }}
  chain rest {{
    type filter hook output priority 0;
    oifname {{ "lo", "{CARD}" }} accept
    ip daddr 127.0.0.0/8 accept
    reject
  }}
}}
"""

# Thousands of short connections must not fill the table of connections: what finds no room there is dropped silently.
_SETTINGS = {
    "netfilter/nf_conntrack_max": "65536",
    "netfilter/nf_conntrack_tcp_timeout_time_wait": "1",
    "netfilter/nf_conntrack_tcp_timeout_close": "1",
    "core/somaxconn": "4096",
    f"ipv6/conf/{_INTERFACE}/disable_ipv6": "1",
}


def set_up() -> None:
    """Make the interface and the rules; again if need be.

    Raises:
        OSError: a program is missing, or the kernel refused.
    """
    if not Path("/sys/class/net", _INTERFACE).exists():
        run(["ip", "link", "add", _INTERFACE, "type", "dummy"])
    run(["nft", "-f", "-"], _RULES)
    for name, value in _SETTINGS.items():
        Path("/proc/sys/net", name).write_text(value)
    run(["ip", "-batch", "-"], _LINKS)


def listen(address: str, port: int, device: bytes = b"") -> tuple[socket.socket, socket.socket]:
    """Return a UDP socket and a listening TCP socket.

    Args:
        address: Where they are bound.
        port: Their port; 0 for any.
        device: The only interface from which they take anything.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for sock in (listener, datagrams):
        if device:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device)
        sock.bind((address, port))
        sock.setblocking(False)
        port = sock.getsockname()[1]
    listener.listen(4096)
    return datagrams, listener


def original_destination(connection: socket.socket) -> tuple[str, int]:
    """Return where a redirected connection was to lead.

    Raises:
        OSError: it was not redirected.
    """
    _family, port, address = struct.unpack_from("!HH4s", connection.getsockopt(socket.SOL_IP, _SO_ORIGINAL_DST, 16))
    if address[0] == 127:
        raise OSError("this machine's own addresses are not redirected")
    return socket.inet_ntoa(address), port


def run(command: list[str], text: str = "") -> None:
    """Run a program to its end.

    Args:
        command: Program and arguments.
        text: Its standard input.

    Raises:
        OSError: it failed.
    """
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"{command[0]} failed: {done.stderr.strip()}")
