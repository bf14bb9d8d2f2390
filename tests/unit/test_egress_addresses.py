"""Which addresses are never connected to."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentvm_kernel.egress.addresses import Forbidden, ForbiddenAddressError, is_own, parse_reachable
from agentvm_kernel.egress.resolver import Resolver, UnreachableError, connect
from agentvm_kernel.errors import ConfigError

FORBIDDEN = Forbidden()
BAD_4 = ["0.0.0.0", "10.1.2.3", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.9.9.9", "168.63.129.16",
         "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.0.2.1", "192.168.1.1", "198.18.0.1",
         "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1",
         "255.255.255.255"]  # fmt: skip


@pytest.mark.parametrize("address", BAD_4)
def test_special_addresses_are_forbidden_in_every_form(address: str) -> None:
    number = int(IPv4Address(address))
    for form in (IPv4Address(address), IPv6Address(0xFFFF << 32 | number), IPv6Address((0x64FF9B << 96) | number)):
        assert FORBIDDEN.why(form) is not None
    assert FORBIDDEN.why(IPv6Address((0x2002 << 112) | (number << 80))) is not None
    assert FORBIDDEN.why(IPv6Address((0x20010000 << 96) | (number ^ 0xFFFFFFFF))) is not None
    assert FORBIDDEN.why(IPv6Address(number)) is not None


@pytest.mark.parametrize("address", ["::", "::1", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1",
                                     "3fff::1", "64:ff9b:1::1", "100::1", "5f00::1"])  # fmt: skip
def test_special_ipv6_addresses_are_forbidden(address: str) -> None:
    assert FORBIDDEN.why(ip_address(address)) is not None


@pytest.mark.parametrize("address", ["1.1.1.1", "151.101.0.223", "172.32.0.1", "2606:4700::1111", "64:ff9b::101:101",
                                     "::ffff:1.1.1.1"])  # fmt: skip
def test_public_addresses_are_not(address: str) -> None:
    assert FORBIDDEN.why(ip_address(address)) is None


@given(st.ip_addresses())
def test_nothing_is_let_through_that_python_does_not_hold_for_global(address: IPv4Address | IPv6Address) -> None:
    if FORBIDDEN.why(address) is None:
        embedded = IPv4Address(int(address) & 0xFFFFFFFF)
        assert address.is_global or embedded.is_global
        assert not address.is_multicast


def test_exceptions_make_networks_reachable_but_not_the_hosts_own_addresses() -> None:
    some = Forbidden(parse_reachable(["10.1.0.0/16", "127.0.0.0/8", "fd00:1::/64"]))
    assert some.why(ip_address("10.1.2.3")) is None
    assert some.why(ip_address("fd00:1::5")) is None
    assert some.why(ip_address("10.2.0.1")) is not None
    assert some.why(ip_address("127.0.0.1")) == "an address of the host's own"
    assert some.why(ip_address("127.0.0.2")) == "an address of the host's own"
    assert Forbidden(parse_reachable(["127.0.0.1"])).why(ip_address("127.0.0.1")) is None
    assert Forbidden(parse_reachable(["127.0.0.1"])).why(ip_address("127.0.0.2")) is not None


def test_the_hosts_own_addresses_are_known() -> None:
    assert is_own(ip_address("127.0.0.1"))
    assert not is_own(ip_address("10.255.255.254"))


def test_an_exception_must_be_an_address_or_a_network() -> None:
    with pytest.raises(ConfigError, match="reachable"):
        parse_reachable(["localhost"])


def test_the_message_does_not_tell_the_guest_the_address() -> None:
    with pytest.raises(ForbiddenAddressError) as caught:
        FORBIDDEN.check("inner.example", "10.1.2.3")
    assert "10.1.2.3" not in str(caught.value)
    assert caught.value.address == "10.1.2.3"


async def test_one_forbidden_address_among_others_refuses_the_name() -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 9)) for host in ("1.1.1.1", "169.254.169.254")]
    with pytest.raises(ForbiddenAddressError):
        await connect("mixed.example", found, FORBIDDEN)  # type: ignore[arg-type]


async def test_a_name_server_that_hangs_is_given_up_on() -> None:
    release = asyncio.Event()
    loop = asyncio.get_running_loop()

    def hang(name: str, port: int) -> list[object]:
        asyncio.run_coroutine_threadsafe(release.wait(), loop).result()
        return []

    resolver = Resolver(hang, seconds=0.05)  # type: ignore[arg-type]
    with pytest.raises(UnreachableError, match="in time"):
        await resolver.resolve("slow.example", 443)
    release.set()
    resolver.close()


async def test_names_are_looked_up_as_they_stand_and_unknown_ones_say_so() -> None:
    resolver = Resolver()
    with pytest.raises(UnreachableError):
        await resolver.resolve("localhost", 80)
    resolver.close()
