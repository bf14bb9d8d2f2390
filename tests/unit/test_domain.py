"""The domain has the smallest device set, and its parts follow the spec."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from agentvm_kernel.vm import domain
from agentvm_kernel.vm.domain import domain_xml, layout
from agentvm_kernel.vm.spec import Boot, DomainSpec, Hardware, Transport

SPEC = DomainSpec(
    name="agentvm-0-vm-1",
    uuid="8856df1d-7030-45e1-92bd-8a45f41e4f78",
    folder=Path("/run/vm-1"),
    hardware=Hardware(2, 512, 4, "tcg", Transport.SERIAL),
    memory=Path("/golden/mem,ory"),
    disks=(Path("/run/vm-1/overlay.qcow2"), Path("/golden/disk.qcow2"), Path("/image/rootfs")),
)


def tree(spec: DomainSpec) -> ET.Element:
    return ET.fromstring(domain_xml(spec))


def arguments(spec: DomainSpec) -> list[str]:
    return [arg.attrib["value"] for arg in tree(spec).iter("{http://libvirt.org/schemas/domain/qemu/1.0}arg")]


def test_there_is_no_network_display_usb_or_host_folder() -> None:
    root = tree(SPEC)
    for device in ("interface", "graphics", "video", "filesystem", "hostdev", "redirdev", "sound"):
        assert root.find(f"devices/{device}") is None
    assert root.find("devices/memballoon").attrib["model"] == "none"
    assert root.find("devices/controller[@type='usb']").attrib["model"] == "none"


def test_clone_maps_memory_privately_and_waits_for_a_state() -> None:
    backend = arguments(SPEC)[1]
    assert "share=off,readonly=on" in backend
    assert "mem-path=/golden/mem,,ory," in backend
    assert ["-incoming", "defer"] in [arguments(SPEC)[at : at + 2] for at in range(len(arguments(SPEC)))]
    assert tree(SPEC).find("os/kernel") is None


def test_a_folder_may_be_shared_later_in_which_the_guest_makes_only_ordinary_files() -> None:
    folders = [word for word in arguments(SPEC) if word.startswith("local,")]
    assert len(folders) == 2
    for folder in folders:
        assert f"path={SPEC.shared}".replace(",", ",,") in folder
        assert ",multidevs=forbid" in folder
    assert [folder.endswith(",readonly=on") for folder in folders] == [True, False]
    assert "security_model=mapped-xattr" in folders[1], "what a guest makes is an ordinary file"
    assert "9p" not in ET.tostring(tree(SPEC)).decode(), "there is no device until then"


def test_boot_writes_memory_to_the_file_and_logs_the_console() -> None:
    spec = replace(SPEC, boot=Boot(Path("/image/vmlinuz"), Path("/image/initramfs"), "quiet"))
    assert "share=on" in arguments(spec)[1]
    assert "-incoming" not in arguments(spec)
    assert tree(spec).findtext("os/cmdline") == "quiet"
    assert tree(spec).find("devices/serial").attrib["type"] == "file"
    assert tree(SPEC).find("devices/serial").attrib["type"] == "null"


def test_disk_chain_is_stated_so_that_nothing_is_probed() -> None:
    disk = tree(SPEC).find("devices/disk")
    below = disk.find("backingStore")
    assert below.find("format").attrib["type"] == "qcow2"
    assert below.find("backingStore/format").attrib["type"] == "raw"
    assert below.find("backingStore/source").attrib["file"] == "/image/rootfs"
    assert below.find("backingStore/backingStore").attrib == {}


@pytest.mark.parametrize("transport", list(Transport))
def test_one_transport_carries_the_link(transport: Transport) -> None:
    root = tree(replace(SPEC, hardware=replace(SPEC.hardware, transport=transport)))
    names = [target.attrib["name"] for target in root.iterfind("devices/channel/target")]
    assert ("agentvm.link" in names) == (transport is Transport.SERIAL)
    assert (root.find("devices/vsock/cid") is not None) == (transport is Transport.VSOCK)
    assert "agentvm.control" in names


def test_kvm_gives_the_hosts_cpu_without_nested_virtualisation() -> None:
    root = tree(replace(SPEC, hardware=replace(SPEC.hardware, accelerator="kvm")))
    assert root.attrib["type"] == "kvm"
    assert root.find("cpu").attrib["mode"] == "host-model"
    assert {(f.attrib["name"], f.attrib["policy"]) for f in root.iterfind("cpu/feature")} == {
        ("vmx", "disable"),
        ("svm", "disable"),
    }


def test_an_emulated_cpu_has_instructions_for_what_copies_are_checked_with() -> None:
    cpu = tree(replace(SPEC, hardware=replace(SPEC.hardware, accelerator="tcg"))).find("cpu")
    assert cpu.findtext("model") == "Westmere"
    assert [(f.attrib["name"], f.attrib["policy"]) for f in cpu.iterfind("feature")] == [("sha-ni", "require")]


def test_owner_is_a_static_label_that_relabels_nothing() -> None:
    label = tree(replace(SPEC, owner=(64055, 107))).find("seclabel")
    assert label.attrib == {"type": "static", "model": "dac", "relabel": "no"}
    assert label.findtext("label") == "+64055:+107"
    assert tree(SPEC).find("seclabel") is None


def test_a_guest_that_stops_reboots_or_crashes_ends() -> None:
    root = tree(SPEC)
    assert {root.findtext(event) for event in ("on_poweroff", "on_reboot", "on_crash")} == {"destroy"}
    assert root.find("devices/panic") is not None


def test_what_the_guest_sends_out_has_a_port_of_its_own_whatever_carries_the_link() -> None:
    for transport in Transport:
        root = tree(replace(SPEC, hardware=replace(SPEC.hardware, transport=transport)))
        ports = {
            channel.find("target").attrib["name"]: channel.find("source").attrib["path"]
            for channel in root.iterfind("devices/channel")
        }
        assert ports["agentvm.egress"] == "/run/vm-1/egress.sock"


def test_the_second_disk_is_the_inbox_which_the_guest_only_reads() -> None:
    _, inbox = tree(SPEC).iterfind("devices/disk")
    assert inbox.find("readonly") is not None
    assert inbox.find("source").attrib["file"] == "/run/vm-1/inbox"
    assert inbox.findtext("serial") == "agentvm-inbox"


def test_the_layout_changes_with_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    before = layout(SPEC.hardware)
    assert layout(replace(SPEC.hardware, memory_mib=1024, disk_gb=8)) == before
    assert layout(replace(SPEC.hardware, transport=Transport.VSOCK)) != before
    assert layout(replace(SPEC.hardware, accelerator="kvm")) != before
    monkeypatch.setattr(domain, "EGRESS_PORT", "another")
    assert layout(SPEC.hardware) != before
