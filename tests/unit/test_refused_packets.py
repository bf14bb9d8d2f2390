"""What the kernel reports of refused packets, and what of that is written down."""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from agentvm_kernel.egress.access import Access
from agentvm_kernel.egress.log import ConnectionLog
from agentvm_kernel.egress.packets import RefusedPacket, parse
from agentvm_kernel.egress.policy import Policy
from agentvm_kernel.supervisor.card_reports import CardReports

SYN = RefusedPacket("10.213.0.2", "45.55.0.1", "tcp", 8080)


def ipv4(number: int, port: int, options: bytes = b"") -> bytes:
    words = 5 + len(options) // 4
    head = struct.pack(">BBHHHBBH", 0x40 | words, 0, 0, 0, 0, 64, number, 0)
    return (
        head + IPv4Address(SYN.source).packed + IPv4Address(SYN.address).packed + options + struct.pack(">HH", 1, port)
    )


def message(protocol: int, packet: bytes, kind: int = 0x0400) -> bytes:
    body = struct.pack(">BBH", socket.AF_UNSPEC, 0, 5)
    for number, value in ((1, struct.pack(">HBx", protocol, 0)), (10, b"prefix\0"), (9, packet)):
        attribute = struct.pack("=HH", 4 + len(value), number) + value
        body += attribute.ljust(-(-len(attribute) // 4) * 4, b"\0")
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def test_packets_are_read_from_the_kernels_messages() -> None:
    six = struct.pack(">IHBB", 6 << 28, 8, 17, 64) + IPv6Address("fd00::2").packed + IPv6Address("2600:55::1").packed
    data = (
        message(0x0800, ipv4(6, 8080)) + message(0x0800, ipv4(17, 53, b"\1" * 8)) + message(0x0800, ipv4(1, 99))
        + message(0x86DD, six + struct.pack(">HH", 1, 443)) + message(0x0800, ipv4(47, 9))
    )  # fmt: skip
    assert list(parse(data)) == [
        SYN,
        RefusedPacket(SYN.source, SYN.address, "udp", 53),
        RefusedPacket(SYN.source, SYN.address, "icmp", 0),
        RefusedPacket("fd00::2", "2600:55::1", "udp", 443),
        RefusedPacket(SYN.source, SYN.address, "47", 0),
    ]


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\0" * 15, struct.pack("=IHHII", 4, 0x0400, 0, 0, 0), message(0x0806, b"\0" * 28),
        message(0x0800, b"\x45"), message(0x86DD, b"\x60" * 39), message(0x0800, ipv4(6, 80), kind=0x0401),
        struct.pack("=IHHII", 24, 0x0400, 0, 0, 0) + b"\0" * 4 + struct.pack("=HH", 2, 9),
    ],
)  # fmt: skip
def test_what_is_no_packet_is_left_out(data: bytes) -> None:
    assert list(parse(data)) == []


def test_a_packet_with_half_a_header_has_no_port() -> None:
    assert [one.port for one in parse(message(0x0800, ipv4(6, 80)[:22]))] == [0]


def reports(folder: Path) -> tuple[CardReports, ConnectionLog, Access]:
    access = Access("lease", "notebook", "vm-1", Policy(), cell="3 fetch()")
    log = ConnectionLog(folder / "connections")
    return CardReports(log, lambda address: access if address == SYN.source else None), log, access


def test_a_refused_packet_is_written_down_with_its_vm_and_cell(tmp_path: Path) -> None:
    noting, log, access = reports(tmp_path)
    noting.note(SYN)
    (one,) = log.of("lease")
    assert (one.vm, one.cell, one.address, one.port, one.name) == ("vm-1", "3 fetch()", "45.55.0.1", 8080, "")
    assert (one.verdict, one.count, access.counters.refused) == ("refused", 1, 1)
    assert one.reason == "The network card lets no tcp through to there."
    log.close()


def test_what_is_tried_again_is_written_down_once_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noting, log, _ = reports(tmp_path)
    now = [100.0]
    monkeypatch.setattr("agentvm_kernel.supervisor.card_reports.time.monotonic", lambda: now[0])
    for _ in range(4):
        noting.note(SYN)
    assert len(log.of("lease")) == 1
    now[0] += 61
    noting.note(SYN)
    assert [one.count for one in log.of("lease")] == [1, 4]
    log.close()


def test_addresses_of_no_vm_are_left_out_and_memory_is_bounded(tmp_path: Path) -> None:
    noting, log, _ = reports(tmp_path)
    noting.note(RefusedPacket("10.213.0.77", "45.55.0.1", "tcp", 80))
    assert log.all() == []
    for port in range(3000):
        noting.note(RefusedPacket(SYN.source, "45.55.0.1", "tcp", port))
    assert len(noting._known) <= 1024
    log.close()
