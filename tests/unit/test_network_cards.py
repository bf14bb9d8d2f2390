"""What users are told of network cards."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentvm_kernel.config import Paths
from agentvm_kernel.errors import HostError, HypervisorError
from agentvm_kernel.host import doctor
from agentvm_kernel.magics import net, vm
from agentvm_kernel.supervisor.network_messages import NetworkInfo
from agentvm_kernel.vm import libvirt_nat
from agentvm_kernel.vm.libvirt_connection import LibvirtConnection

CARD = NetworkInfo(mode="filtered", max_connections=9, card="10.213.0.9")


def test_security_and_status_say_that_there_is_a_card() -> None:
    name, active, found = vm._network(CARD)
    assert (name, active) == ("network", "no")
    assert found.startswith("a network card (10.213.0.9): any public address may be reached")
    assert dict(net._status(CARD))["network card"].startswith("10.213.0.9: any public address")


def test_without_a_card_nobody_speaks_of_one() -> None:
    without = CARD.model_copy(update={"card": ""})
    assert vm._network(without)[1:] == (
        "yes", "no network card; the supervisor connects, by name, to what is allowed: %net shows it",
    )  # fmt: skip
    assert "network card" not in dict(net._status(without))


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    for variable in ("AGENTVM_URI", "AGENTVM_CONFIG", "AGENTVM_STATE_DIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(LibvirtConnection, "open", _nothing)
    monkeypatch.setattr(doctor.nat_guard, "is_possible", lambda: True)
    return Paths(tmp_path, tmp_path, tmp_path, tmp_path / "config.toml")


async def _nothing(*_: object) -> None:
    pass


async def _lacks(_connection: object) -> None:
    raise HostError("Libvirt can make no filtered network: no connection driver.", "Install it.")


@pytest.mark.parametrize(
    ("text", "lacks", "status", "detail"),
    [
        ("", True, "ok", "none; they could be had with qemu:///system only"),
        ('uri = "qemu:///system"', False, "ok", "none; nat = true in [network] gives VMs some"),
        ('uri = "qemu:///system"', True, "ok", "Libvirt can make no filtered network: no connection driver."),
        ('uri = "qemu:///system"\n[network]\nnat = true', False, "ok", "VMs have cards"),
        ('uri = "qemu:///system"\n[network]\nnat = true', True, "failure", "Libvirt can make no filtered network: "
         "no connection driver."),
    ],
)  # fmt: skip
async def test_the_doctor_says_whether_cards_are_possible(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, text: str, lacks: bool, status: str, detail: str
) -> None:
    paths.config.write_text(text)
    monkeypatch.setattr(doctor, "check", _lacks if lacks else _nothing)
    finding = await doctor._cards(paths)
    assert (finding.status, finding.detail) == (status, detail)
    assert bool(finding.remedy) == (lacks and "system" in text)


async def test_the_doctor_says_that_refusals_are_written_down_for_root_only(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths.config.write_text('uri = "qemu:///system"')
    monkeypatch.setattr(doctor, "check", _nothing)
    monkeypatch.setattr(doctor.nat_guard, "is_possible", lambda: False)
    assert (await doctor._cards(paths)).detail.endswith("what they refuse is written down only for root, by nft")


class Daemon:
    """A libvirt with or without its drivers."""

    def __init__(self, *, has_drivers: bool) -> None:
        self.has_drivers, self.handle = has_drivers, self

    async def call(self, function: object, *_arguments: object) -> None:
        if not self.has_drivers:
            raise HypervisorError("this function is not supported by the connection driver: virConnectListAllNetworks")

    def listAllNetworks(self) -> None: ...  # noqa: N802 - libvirt's names

    def nwfilterLookupByName(self) -> None: ...  # noqa: N802


async def test_what_a_network_lacks_is_said_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bridge_calls = tmp_path / "bridge-nf-call-iptables"
    monkeypatch.setattr(libvirt_nat, "_BRIDGE_CALLS", bridge_calls)
    with pytest.raises(HostError, match="not supported by the connection driver") as lacking:
        await libvirt_nat.check(Daemon(has_drivers=False))  # type: ignore[arg-type]
    assert "libvirt-daemon-driver-nwfilter" in lacking.value.hint
    for text in (None, "0\n"):
        if text is not None:
            bridge_calls.write_text(text)
        with pytest.raises(HostError, match="would not be filtered") as unseen:
            await libvirt_nat.check(Daemon(has_drivers=True))  # type: ignore[arg-type]
        assert "br_netfilter" in unseen.value.hint
    bridge_calls.write_text("1\n")
    await libvirt_nat.check(Daemon(has_drivers=True))  # type: ignore[arg-type]
