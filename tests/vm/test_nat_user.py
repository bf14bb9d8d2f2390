"""Network cards of an ordinary user's VMs: only libvirt's filter stands before them, and the user is not root."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from card_bed import (
    NAT,
    NEEDS,
    a_rollback_brings_another_card,
    names_are_answered,
    nobody_else_is_reached,
    other_addresses_get_nowhere,
    prepare,
    reaches_the_internet,
    they_do_not_reach_each_other,
    traces,
)
from egress_bed import Visitor, visitor
from internet import GOOD, internet
from other_user import UID, Lease, SharedHost

from agentvm_kernel.config import Paths
from agentvm_kernel.errors import AgentVMError

pytestmark = NEEDS

LATER = "45.55.0.99"
"""An address that the host gets when VMs have cards already; it looks public."""

# Libvirt has made its rules for a card anew, but does not use them yet, while this chain is there. Held up there, it
# finds that the card is gone when it goes on.
END_A_VM_MEANWHILE = """
device=$1 libvirtd=$2 qemu=$3
until ebtables -t nat -L "libvirt-J-$device" > /dev/null 2>&1; do :; done
kill -STOP "$libvirtd"
kill -KILL "$qemu"
while ip link show "$device" > /dev/null 2>&1; do :; done
kill -CONT "$libvirtd"
"""


@pytest.fixture(scope="module")
def world() -> Iterator[SharedHost]:
    with internet(SharedHost) as ours, ours.daemon():
        yield ours


@pytest.fixture(scope="module")
def paths(world: SharedHost) -> Iterator[Paths]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AGENTVM_URI", "qemu:///system")
        with world.supervised(NAT) as ours:
            yield ours


@pytest.fixture(scope="module")
def lease(world: SharedHost, paths: Paths) -> Iterator[Lease]:
    with world.sessions() as ours:
        yield ours


@pytest.fixture
def vm(paths: Paths, world: SharedHost, lease: Lease) -> Iterator[Visitor]:
    with visitor(paths, lease=lease) as ours:
        prepare(ours)
        world.forget()
        yield ours


def one_card(world: SharedHost) -> tuple[str, str]:
    """The host's end of the only card that there is, and the pid of its QEMU."""
    links = json.loads(world.run("ip", "-json", "link"))
    (device,) = [one["ifname"] for one in links if one["ifname"].startswith("avc")]
    (domain,) = [one for one in world.virsh("list", "--name").split() if device in world.virsh("domiflist", one)]
    return device, (world.root / "run/libvirt/qemu" / f"{domain}.pid").read_text()


def networks(world: SharedHost) -> set[str]:
    return set(world.virsh("net-list", "--name").split())


def test_public_addresses_are_reached_on_allowed_ports_and_nobody_else_is(vm: Visitor, world: SharedHost) -> None:
    _, qemu = one_card(world)
    assert Path(f"/proc/{qemu}").stat().st_uid == UID
    assert vm.program("curl", "--silent", "--show-error", f"http://{GOOD}/raw").startswith(f"reached {GOOD}/raw")
    for port in (22, 443, 9418):
        assert vm.value(f"tcp({GOOD!r}, {port}, 30)") == "reached"
    assert {(one.address, one.port) for one in world.knocks} == {(GOOD, port) for port in (22, 80, 443, 9418)}
    assert "agentvm_" not in world.run("nft", "list", "tables"), "there are no rules but libvirt's"
    names_are_answered(vm, world)
    nobody_else_is_reached(vm, world)
    assert vm.connections == [], "libvirt's filter tells nobody what it refused"


def test_another_address_or_mac_than_ones_own_gets_nowhere(vm: Visitor, world: SharedHost) -> None:
    other_addresses_get_nowhere(vm, world)


def test_two_vms_do_not_reach_each_other(vm: Visitor, paths: Paths, lease: Lease) -> None:
    with visitor(paths, lease=lease) as second:
        prepare(second)
        they_do_not_reach_each_other(vm, second)


def test_a_snapshot_keeps_the_card_and_a_rollback_brings_another(vm: Visitor) -> None:
    a_rollback_brings_another_card(vm)


def test_a_vm_that_ends_while_the_filter_learns_an_address_costs_no_other_ones_card(
    paths: Paths, lease: Lease, world: SharedHost
) -> None:
    with suppress(AgentVMError), visitor(paths, lease=lease) as first:
        prepare(first)
        device, qemu = one_card(world)
        libvirtd = (world.root / "libvirtd.pid").read_text()
        world.host.ip("address", "add", f"{LATER}/16", "dev", "to-internet")
        script = world.command("sh", "-ec", END_A_VM_MEANWHILE, "sh", device, libvirtd, qemu)
        with subprocess.Popen(script) as ending:
            try:
                with visitor(paths, lease=lease) as second:
                    prepare(second)
                    assert ending.wait(60) == 0, "the first VM has ended meanwhile"
                    assert second.value(f"tcp({LATER!r}, 80)") != "reached"
                    assert reaches_the_internet(second)
            finally:
                ending.terminate()
                os.kill(int(libvirtd), signal.SIGCONT)


def test_nothing_of_it_is_left(world: SharedHost, paths: Paths, lease: Lease) -> None:
    before = networks(world)
    with world.supervised(NAT) as other:
        (name,) = networks(world) - before
        tag = name.removeprefix("agentvm-nat-")
        with visitor(other, lease=lease) as vm:
            prepare(vm)
            assert reaches_the_internet(vm)
            seen = traces(world)
            assert all(mark in seen for mark in (f"avm{tag}", f"avc{tag}", name))
    assert tag not in traces(world)
    assert networks(world) == before
