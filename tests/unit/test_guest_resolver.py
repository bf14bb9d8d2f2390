"""The stub resolver: every name has an address, and what is no question gets an answer that says so."""

from __future__ import annotations

import ipaddress
import socket
import struct

import pytest
from agentvm_guest.resolver import RANGE, Names, answer
from hypothesis import given
from hypothesis import strategies as st

A, AAAA, TXT = 1, 28, 16
NO_ERROR, FORMAT_ERROR, NO_SUCH_NAME, NOT_IMPLEMENTED, REFUSED = 0, 1, 3, 4, 5


def query(name: str, kind: int = A, *, flags: int = 0x0100, group: int = 1) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode("latin-1") for label in name.split("."))
    return struct.pack(">6H", 77, flags, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", kind, group)


def ask(names: Names, message: bytes, *, refuse: bool = False) -> tuple[int, str | None]:
    """Return the answer's code, and its address if it has one."""
    reply = answer(message, names, refuse=refuse)
    assert reply is not None
    number, flags, _questions, answers, *_ = struct.unpack_from(">6H", reply)
    assert number == 77
    assert flags & 0x8000
    return flags & 15, socket.inet_ntoa(reply[-4:]) if answers else None


def test_each_name_has_an_address_of_its_own_and_the_address_leads_back() -> None:
    names = Names()
    found = {name: ask(names, query(name))[1] for name in ("pypi.org", "a_b.example", "x" * 63 + ".org")}
    assert len(set(found.values())) == 3
    for name, address in found.items():
        assert ipaddress.ip_address(str(address)) in RANGE
        assert names.name(str(address)) == name
    assert names.name("198.18.77.7") is None


def test_a_name_keeps_its_address_whatever_its_case() -> None:
    names = Names()
    assert ask(names, query("PyPI.org")) == ask(names, query("pypi.ORG")) == ask(names, query("pypi.org"))


def test_the_answer_repeats_the_question_as_it_was_asked() -> None:
    question = query("PyPI.org")
    reply = answer(question, Names(), refuse=False)
    assert reply is not None
    assert reply[12 : len(question)] == question[12:]


@pytest.mark.parametrize("kind", [AAAA, TXT, 65, 15])
def test_other_types_have_no_data(kind: int) -> None:
    assert ask(Names(), query("pypi.org", kind)) == (NO_ERROR, None)


@pytest.mark.parametrize("name", ["a b.org", "a\xe4.org", "a*.org", ".".join(["x" * 60] * 5)])
def test_what_no_host_can_be_called_does_not_exist(name: str) -> None:
    assert ask(Names(), query(name)) == (NO_SUCH_NAME, None)


def test_localhost_is_this_machine() -> None:
    assert ask(Names(), query("x.localhost")) == (NO_ERROR, "127.0.0.1")


def test_without_a_network_every_name_is_refused() -> None:
    assert ask(Names(), query("pypi.org"), refuse=True) == (REFUSED, None)


def test_what_is_not_understood_is_said_to_be() -> None:
    assert ask(Names(), query("pypi.org", flags=0x2800)) == (NOT_IMPLEMENTED, None)
    assert ask(Names(), query("version.bind", TXT, group=3)) == (REFUSED, None)
    assert ask(Names(), query("pypi.org")[:-3]) == (FORMAT_ERROR, None)
    assert ask(Names(), struct.pack(">6H", 77, 0, 2, 0, 0, 0)) == (FORMAT_ERROR, None)
    assert answer(query("pypi.org", flags=0x8000), Names(), refuse=False) is None
    assert answer(b"short", Names(), refuse=False) is None


def test_the_name_unused_for_longest_is_forgotten_and_its_address_rests() -> None:
    names = Names(limit=2)
    first, second = (socket.inet_ntoa(names.address(name)) for name in ("first.org", "second.org"))
    assert names.name(first) == "first.org"
    third = socket.inet_ntoa(names.address("third.org"))
    assert names.name(second) is None
    assert [names.name(first), names.name(third)] == ["first.org", "third.org"]
    assert socket.inet_ntoa(names.address("second.org")) not in (first, second, third)


def test_addresses_come_round_again_but_never_one_that_is_in_use() -> None:
    names = Names(ipaddress.IPv4Network("10.0.0.0/29"), limit=100)
    for number in range(40):
        address = socket.inet_ntoa(names.address(f"n{number}.org"))
        assert names.name(address) == f"n{number}.org"
        assert address not in ("10.0.0.0", "10.0.0.1")


@given(st.binary(max_size=80))
def test_nothing_that_is_sent_breaks_it(message: bytes) -> None:
    answer(message, Names(), refuse=False)
    answer(query("a.b")[:12] + message, Names(), refuse=False)
