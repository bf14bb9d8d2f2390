"""The VM's network card, where the host plugs one in: waits until the kernel has found it, and sets it up.

The host says which card it is and which address is its own: it lets nothing else through.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agentvm_guest.control import Reply
from agentvm_guest.identity import RequestError, read_integer
from agentvm_guest.loop import Loop, Timer
from agentvm_guest.network import CARD, run

# <linux/rtnetlink.h>
_LINK_GROUP = 1

_INTERFACES = Path("/sys/class/net")
_DIGITS = "0123456789abcdef:"


@dataclass(frozen=True)
class Card:
    """What the owner says about the card.

    Attributes:
        mac: Its MAC address.
        address: The VM's address.
        prefix: Length of the network's prefix.
        gateway: The router's address.
    """

    mac: str
    address: str
    prefix: int
    gateway: str


def parse_card(request: dict[str, object]) -> Card:
    """Read a ``card`` request.

    Raises:
        RequestError: naming the field that is not valid.
    """
    mac = request.get("mac")
    if not isinstance(mac, str) or len(mac) != 17 or mac.strip(_DIGITS):
        raise RequestError("mac is not valid")
    address, gateway = _read_address(request, "address"), _read_address(request, "gateway")
    return Card(mac, address, read_integer(request, "prefix", 33), gateway)


def _read_address(request: dict[str, object], field: str) -> str:
    try:
        return str(ipaddress.IPv4Address(str(request.get(field))))
    except ValueError as error:
        raise RequestError(f"{field} is not an IPv4 address") from error


def find(mac: str) -> str | None:
    """Return the interface with a MAC address, if the kernel has found it."""
    for folder in _INTERFACES.iterdir():
        if (folder / "address").read_text().strip() == mac:
            return folder.name
    return None


def set_up(card: Card, interface: str) -> None:
    """Give an interface its name and address, and let it lead to where no other leads.

    Raises:
        OSError: the kernel refused.
    """
    if interface != CARD:
        run(["ip", "link", "set", "dev", interface, "name", CARD])
    Path("/proc/sys/net/ipv6/conf", CARD, "disable_ipv6").write_text("1")
    run(
        ["ip", "-batch", "-"],
        f"address replace {card.address}/{card.prefix} dev {CARD}\n"
        f"link set {CARD} up\n"
        f"route replace default via {card.gateway} dev {CARD} metric 100\n",
    )


class Arrival:
    """Waits for a card.

    Args:
        loop: The agent's loop.
        card: Which one.
        work: Called when it is there, with the name of its interface.
        reply: Told how it went.
        seconds: How long to wait.
    """

    def __init__(self, loop: Loop, card: Card, work: Callable[[Card, str], None], reply: Reply, seconds: float) -> None:
        self._loop = loop
        self._card = card
        self._work = work
        self._reply = reply
        # Listening before the first look: nothing is missed between the two.
        self._changes = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._changes.bind((0, _LINK_GROUP))
        self._changes.setblocking(False)
        self._patience: Timer = loop.call_later(seconds, self._give_up)
        loop.add(self._changes.fileno(), self._look)
        loop.call_soon(self._first_look)

    def _first_look(self) -> None:
        if self._changes.fileno() >= 0:
            self._look()

    def _look(self) -> None:
        # What is said does not matter, nor that some of it may be lost (ENOBUFS).
        with contextlib.suppress(OSError):
            while self._changes.recv(65536):
                continue
        interface = find(self._card.mac)
        if interface is None:
            return
        try:
            self._work(self._card, interface)
        except OSError as error:
            self._end({"ok": False, "error": str(error)})
        else:
            self._end({"ok": True, "mac": self._card.mac, "address": self._card.address})

    def _give_up(self) -> None:
        self._end({"ok": False, "error": "the network card did not come"})

    def _end(self, answer: dict[str, object]) -> None:
        self._patience.cancel()
        self._loop.remove(self._changes.fileno())
        self._changes.close()
        self._reply(answer)
