"""The raw IP network in libvirt: its network, its filter, and our own rules in front of it."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Final

from agentvm_kernel.errors import HostError, HypervisorError
from agentvm_kernel.vm import nat_guard
from agentvm_kernel.vm.host_routes import own_addresses, routed_networks
from agentvm_kernel.vm.libvirt_connection import LibvirtConnection
from agentvm_kernel.vm.nat import Cards, NatNetwork, choose_subnet, name_of
from agentvm_kernel.vm.nat_filter import filter_xml

_log = logging.getLogger(__name__)

PACKAGES: Final = (
    "libvirt-daemon-driver-network libvirt-daemon-driver-nwfilter libvirt-daemon-config-nwfilter dnsmasq-base iptables"
    " nftables"
)
_BUILDING_BLOCK: Final = "no-mac-spoofing"
_BRIDGE_CALLS: Final = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
_TRIES: Final = 5


class LibvirtNat:
    """A supervisor's network, from `open` to `close`.

    Args:
        connection: An open connection to the system daemon.
        tag: Tells this supervisor's network from others'.

    Attributes:
        network: What it is.
        cards: Gives out cards.
        is_guarded: Our own rules are set, too.
    """

    def __init__(self, connection: LibvirtConnection, tag: str) -> None:
        self._connection = connection
        self._tag = tag
        self._own: set[str] = set()
        self._renewing = asyncio.Lock()
        self.network: NatNetwork
        self.cards: Cards
        self.is_guarded = False

    async def open(self) -> None:
        """Make the network, its filter and its rules; what a killed predecessor left of them goes.

        Raises:
            HostError: libvirt or the kernel lacks something.
            HypervisorError: libvirt refused.
        """
        await check(self._connection)
        await self._remove()
        self.network = NatNetwork(self._tag, choose_subnet(routed_networks()))
        self.cards = Cards(self.network)
        try:
            await self._connection.call(self._connection.handle.networkCreateXML, self.network.xml())
            await self.renew_filter()
            await self._guard()
        except BaseException:
            await self._remove()
            raise
        _log.info("VMs have network cards: %s on %s", self.network.subnet, self.network.bridge)

    async def _guard(self) -> None:
        """Set our own rules where they can be set; libvirt's filter refuses the same without them."""
        if not nat_guard.is_possible():
            return
        try:
            await nat_guard.set_up(self.network)
        except HypervisorError as error:
            _log.warning("what network cards are refused is neither counted nor written down: %s", error)
        else:
            self.is_guarded = True

    async def close(self) -> None:
        """Remove all of it; no VM has a card any more."""
        await self._remove()

    @property
    def reports(self) -> int | None:
        """The group that gets what was refused; ``None`` without our own rules."""
        return nat_guard.group_of(self.network) if self.is_guarded else None

    async def renew_filter(self) -> None:
        """Let the filter know the host's addresses as they are now; called before each card.

        Raises:
            HypervisorError: libvirt did not take it.
        """
        async with self._renewing:  # so that no older set of addresses comes after a newer one
            own = own_addresses()
            if own != self._own:
                await self._define(filter_xml(self.network, own))
                self._own = own

    async def _define(self, xml: str) -> None:
        """Define the filter.

        Libvirt sets a new definition's rules for each card that there is. If one goes while it does that, because its
        VM ends, libvirt takes back all that it has set, keeps the old definition and fails, without saying why. What
        has gone does not disturb it once more.
        """
        for number in range(1, _TRIES + 1):
            try:
                await self._connection.call(self._connection.handle.nwfilterDefineXML, xml)
            except HypervisorError as error:
                if number == _TRIES:
                    raise
                _log.info("the filter of %s is set again: %s", self.network.name, error)
            else:
                return

    async def _remove(self) -> None:
        handle, name = self._connection.handle, name_of(self._tag)
        for network in await self._connection.call(handle.listAllNetworks):
            if network.name() == name:
                await self._connection.call(network.destroy)
        for known in await self._connection.call(handle.listAllNWFilters):
            if known.name() == name:
                await self._connection.call(known.undefine)
        self._own = set()
        if self.is_guarded:
            await nat_guard.tear_down(self._tag)
            self.is_guarded = False


async def check(connection: LibvirtConnection) -> None:
    """See that libvirt and the kernel have what a network needs.

    Args:
        connection: An open connection.

    Raises:
        HostError: they have not.
    """
    handle = connection.handle
    try:
        await connection.call(handle.listAllNetworks)
        await connection.call(handle.nwfilterLookupByName, _BUILDING_BLOCK)
    except HypervisorError as error:
        raise HostError(
            f"Libvirt can make no filtered network: {error.message}.",
            f"Install {PACKAGES} and restart libvirtd, or remove nat from [network] of the configuration.",
        ) from error
    # Libvirt itself only warns, in its log; the filter's rules about addresses and ports would hold nobody up.
    if not _BRIDGE_CALLS.exists() or _BRIDGE_CALLS.read_text().strip() != "1":
        raise HostError(
            "The kernel does not show bridged packets to iptables, so VMs' cards would not be filtered.",
            "As root: modprobe br_netfilter; sysctl net.bridge.bridge-nf-call-iptables=1",
        )
