"""The filter of network cards follows the host's addresses, though VMs end while libvirt sets it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from ipaddress import IPv4Network

import pytest

from agentvm_kernel.errors import HypervisorError
from agentvm_kernel.vm import libvirt_nat
from agentvm_kernel.vm.libvirt_nat import LibvirtNat
from agentvm_kernel.vm.nat import NatNetwork

FIRST, SECOND = "45.55.0.1", "45.55.0.99"


class Daemon:
    """A libvirt that fails when a card vanishes while it defines a filter.

    Attributes:
        vanishing: How many of the next calls that happens in.
        calls: How often it was asked.
        filters: The definitions that it has taken.
        under_way: Calls that have not returned.
        at_once: The most there ever were of them.
    """

    def __init__(self) -> None:
        self.handle = self
        self.vanishing = self.calls = self.under_way = self.at_once = 0
        self.filters: list[str] = []

    async def call(self, function: Callable[[str], None], xml: str) -> None:
        self.calls += 1
        self.under_way += 1
        self.at_once = max(self.at_once, self.under_way)
        await asyncio.sleep(0)
        self.under_way -= 1
        function(xml)

    def nwfilterDefineXML(self, xml: str) -> None:  # noqa: N802 - libvirt's name
        if self.vanishing > 0:
            self.vanishing -= 1
            raise HypervisorError("An error occurred, but the cause is unknown")
        self.filters.append(xml)


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The host's addresses."""
    addresses = {FIRST}
    monkeypatch.setattr(libvirt_nat, "own_addresses", lambda: set(addresses))
    return addresses


@pytest.fixture
def daemon() -> Daemon:
    return Daemon()


@pytest.fixture
def nat(daemon: Daemon) -> LibvirtNat:
    nat = LibvirtNat(daemon, "0123abcd")  # type: ignore[arg-type]
    nat.network = NatNetwork("0123abcd", IPv4Network("10.213.4.0/22"))
    return nat


async def test_it_is_set_when_the_host_has_another_address_and_only_then(
    nat: LibvirtNat, daemon: Daemon, own: set[str]
) -> None:
    for _ in range(2):
        await nat.renew_filter()
    assert len(daemon.filters) == 1
    own.add(SECOND)
    for _ in range(2):
        await nat.renew_filter()
    assert [SECOND in one for one in daemon.filters] == [False, True]


async def test_it_is_set_again_when_the_end_of_a_vm_has_spoilt_it(
    nat: LibvirtNat, daemon: Daemon, own: set[str]
) -> None:
    daemon.vanishing = 2
    await nat.renew_filter()
    assert len(daemon.filters) == 1
    assert FIRST in daemon.filters[0]


async def test_libvirt_is_not_asked_for_ever_and_what_it_refused_counts_for_nothing(
    nat: LibvirtNat, daemon: Daemon, own: set[str]
) -> None:
    daemon.vanishing = 1000
    with pytest.raises(HypervisorError, match="cause is unknown"):
        await nat.renew_filter()
    assert daemon.calls < 10
    daemon.vanishing = 0
    await nat.renew_filter()
    assert len(daemon.filters) == 1


async def test_two_cards_at_once_set_it_one_after_the_other(nat: LibvirtNat, daemon: Daemon, own: set[str]) -> None:
    await asyncio.gather(nat.renew_filter(), nat.renew_filter())
    assert (daemon.at_once, len(daemon.filters)) == (1, 1)
