"""Which addresses are never connected to, whatever name led to them."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Final

from agentvm_kernel.errors import AgentVMError, ConfigError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_FORBIDDEN_4: Final = tuple(
    (IPv4Network(network), what)
    for network, what in (
        ("0.0.0.0/8", "an address without a meaning"),
        ("10.0.0.0/8", "a private network"),
        ("100.64.0.0/10", "a provider's network"),
        ("127.0.0.0/8", "the host itself"),
        ("168.63.129.16/32", "a metadata service"),
        ("169.254.0.0/16", "the local link or a metadata service"),
        ("172.16.0.0/12", "a private network"),
        ("192.0.0.0/24", "a reserved network"),
        ("192.0.2.0/24", "a documentation network"),
        ("192.88.99.0/24", "a reserved network"),
        ("192.168.0.0/16", "a private network"),
        ("198.18.0.0/15", "a network for benchmarks"),
        ("198.51.100.0/24", "a documentation network"),
        ("203.0.113.0/24", "a documentation network"),
        ("224.0.0.0/4", "a multicast group"),
        ("240.0.0.0/4", "a reserved network"),
    )
)
"""IANA's registry of special-purpose IPv4 addresses (RFC 6890), multicast, and Azure's metadata service."""

_GLOBAL_6: Final = IPv6Network("2000::/3")
"""All that is routed on the internet (IANA's IPv6 address space)."""

_FORBIDDEN_6: Final = tuple(
    (IPv6Network(network), what)
    for network, what in (
        ("2001::/23", "a reserved network"),  # Teredo (2001::/32) among it, which carries IPv4 addresses
        ("2001:db8::/32", "a documentation network"),
        ("2002::/16", "a 6to4 network"),  # carries IPv4 addresses, and nobody runs it any more (RFC 7526)
        ("3fff::/20", "a documentation network"),
    )
)

_EMBEDDING: Final = (IPv6Network("::ffff:0:0/96"), IPv6Network("64:ff9b::/96"))
"""IPv6 addresses that stand for the IPv4 address in their last 32 bits: mapped (RFC 4291), NAT64 (RFC 6052)."""


class ForbiddenAddressError(AgentVMError):
    """A name leads to an address that is never connected to.

    Args:
        name: The name.
        address: The address; not in the message, because guests read that and are not to learn the host's network.
        what: What the address is.
    """

    code = "forbidden_address"

    def __init__(self, name: str, address: str, what: str) -> None:
        super().__init__(
            f"{name} leads to {what}.",
            "Whoever runs this host can make it reachable: see reachable in [network] of the configuration.",
        )
        self.address = address


def parse_reachable(texts: Iterable[str]) -> tuple[Network, ...]:
    """Return the networks that the configuration makes reachable.

    Args:
        texts: Addresses and networks, like ``10.1.2.3`` or ``fd00:1::/64``.

    Raises:
        ConfigError: one of them is none.
    """
    networks = []
    for text in texts:
        try:
            networks.append(ip_network(text))
        except ValueError as error:
            raise ConfigError(
                f"[network] reachable: {text!r} is no address or network.", "Use 10.1.2.3 or 10.1.2.0/24."
            ) from error
    return tuple(networks)


class Forbidden:
    """Tells which addresses are never connected to.

    Args:
        reachable: Exceptions from the configuration. The host's own addresses and loopback are excepted only where
            they stand there alone (``127.0.0.1``), never as part of a network.
    """

    def __init__(self, reachable: Iterable[Network] = ()) -> None:
        self._reachable = tuple(reachable)

    def check(self, name: str, address: str) -> None:
        """Check an address that a name leads to.

        Args:
            name: The name, for the message.
            address: The address, with or without a scope.

        Raises:
            ForbiddenAddressError: it is never connected to.
        """
        what = self.why(ip_address(address.partition("%")[0]))
        if what is not None:
            raise ForbiddenAddressError(name, address, what)

    def why(self, address: Address) -> str | None:
        """Return what an address is that is never connected to; None for others.

        Args:
            address: The address.
        """
        if isinstance(address, IPv6Address) and any(address in network for network in _EMBEDDING):
            address = IPv4Address(int(address) & 0xFFFFFFFF)
        exceptions = [network for network in self._reachable if address in network]
        if any(network.num_addresses == 1 for network in exceptions):
            return None
        if address.is_loopback or is_own(address):
            return "an address of the host's own"
        return None if exceptions else _kind(address)


def _kind(address: Address) -> str | None:
    if isinstance(address, IPv4Address):
        return next((what for network, what in _FORBIDDEN_4 if address in network), None)
    if address not in _GLOBAL_6:
        return "an address that is not of the internet"
    return next((what for network, what in _FORBIDDEN_6 if address in network), None)


def is_own(address: Address) -> bool:
    """Return whether an address is one of this host's interfaces', now.

    Args:
        address: The address.

    The kernel is asked which address it would come from: to itself, it is the same one. Nothing is sent.
    """
    family = socket.AF_INET if isinstance(address, IPv4Address) else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((str(address), 9))
        except OSError as error:
            # No route to it, or none of that family: it is certainly not the host's own.
            if error.errno in {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.EACCES, errno.EINVAL}:
                return False
            raise
        return ip_address(probe.getsockname()[0].partition("%")[0]) == address
