"""The libvirt domain: the smallest machine that runs a notebook, and nothing else.

No NIC, no display, no USB, no balloon, no host folder; of its two disks one is only read. The oddities of QEMU's
command line are in ``_qemu_arguments``: libvirt has no words for a memory file of our own or for ``-incoming defer``,
and none for a folder that may be shared later, for which there is no device until then.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from xml.etree import ElementTree as ET  # nosec B405 - builds XML, parses none

from agentvm_kernel.link.inbox import SERIAL
from agentvm_kernel.vm.spec import CONTROL_PORT, EGRESS_PORT, LINK_PORT, DomainSpec, Hardware, Transport

_QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
_MEMORY_ID = "agentvm.ram"
_MONITOR_ID = "agentvm.qmp"
DISK_ALIAS = "ua-agentvm-disk"  # libvirt takes a user's alias only with this prefix
INBOX_ALIAS = "ua-agentvm-inbox"
# QEMU follows no link, and does not leave the folder's file system. For a guest that may write it makes no device node,
# link or setuid file: it keeps what such a file would be in an attribute of an ordinary one. In that mode it cannot
# read the folder's own links, which a guest that may only read has no need to do without.
_READING = "security_model=none,multidevs=forbid,readonly=on"
_WRITING = "security_model=mapped-xattr,multidevs=forbid"
# Without these the stream of `xen-save-devices-state` and what `-incoming` expects differ in sections and footers.
_MIGRATION_GLOBALS = ("send-configuration=off", "store-global-state=off", "send-section-footer=off")
# Under TCG a plain model beats `max`: fewer features to emulate, and x86-64-v2 is what NumPy's wheels ask for.
_TCG_CPU = "Westmere"
# But SHA-256, of which copies and package installers make much, is several times as fast by its instructions.
_TCG_FEATURES = ("sha-ni",)
# Of a domain, what its guest sees; of a device, what lies behind it on the host.
_VISIBLE = ("os", "features", "cpu", "clock", "devices")
_BEHIND = frozenset({"source", "driver", "backingStore"})


def domain_xml(spec: DomainSpec) -> str:
    """Return libvirt's XML for a VM.

    Args:
        spec: The VM to be.
    """
    ET.register_namespace("qemu", _QEMU_NAMESPACE)
    return ET.tostring(_domain(spec), encoding="unicode")


def layout(hardware: Hardware) -> str:
    """Return a digest of the devices that a VM has: a device state can be loaded only where it is equal.

    Args:
        hardware: The guest-visible machine.
    """
    nowhere = Path("/")
    domain = _domain(DomainSpec("", "", nowhere, hardware, nowhere, (nowhere,)))
    visible = [part for tag in _VISIBLE for part in domain.findall(tag)]
    for element in [element for part in visible for element in part.iter()]:
        for behind in [child for child in element if child.tag in _BEHIND]:
            element.remove(behind)
    return hashlib.sha256(b"".join(map(ET.tostring, visible))).hexdigest()[:16]


def _domain(spec: DomainSpec) -> ET.Element:
    hardware = spec.hardware
    domain = ET.Element("domain", type="kvm" if hardware.accelerator == "kvm" else "qemu")
    _text(domain, "name", spec.name)
    _text(domain, "uuid", spec.uuid)
    _text(domain, "genid", spec.uuid)
    _text(domain, "memory", str(hardware.memory_mib), unit="MiB")
    _text(domain, "vcpu", str(hardware.vcpus))
    _add_boot(domain, spec)
    features = ET.SubElement(domain, "features")
    ET.SubElement(features, "acpi")
    _add_cpu(domain, hardware)
    clock = ET.SubElement(domain, "clock", offset="utc")
    ET.SubElement(clock, "timer", name="hpet", present="no")
    for event in ("on_poweroff", "on_reboot", "on_crash"):
        _text(domain, event, "destroy")
    _add_devices(domain, spec)
    if spec.owner is not None:
        label = ET.SubElement(domain, "seclabel", type="static", model="dac", relabel="no")
        _text(label, "label", f"+{spec.owner[0]}:+{spec.owner[1]}")
    commandline = ET.SubElement(domain, f"{{{_QEMU_NAMESPACE}}}commandline")
    for argument in _qemu_arguments(spec):
        ET.SubElement(commandline, f"{{{_QEMU_NAMESPACE}}}arg", value=argument)
    return domain


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> ET.Element:
    element = ET.SubElement(parent, tag, attributes)
    element.text = text
    return element


def _add_boot(domain: ET.Element, spec: DomainSpec) -> None:
    system = ET.SubElement(domain, "os")
    _text(system, "type", "hvm", arch="x86_64", machine="pc")
    if spec.boot is not None:
        _text(system, "kernel", str(spec.boot.kernel))
        _text(system, "initrd", str(spec.boot.initramfs))
        _text(system, "cmdline", spec.boot.cmdline)


def _add_cpu(domain: ET.Element, hardware: Hardware) -> None:
    if hardware.accelerator == "tcg":
        cpu = ET.SubElement(domain, "cpu", mode="custom", match="exact", check="none")
        _text(cpu, "model", _TCG_CPU, fallback="forbid")
        for feature in _TCG_FEATURES:
            ET.SubElement(cpu, "feature", policy="require", name=feature)
        return
    cpu = ET.SubElement(domain, "cpu", mode="host-model", check="none")
    for feature in ("vmx", "svm"):
        ET.SubElement(cpu, "feature", policy="disable", name=feature)


def _add_devices(domain: ET.Element, spec: DomainSpec) -> None:
    devices = ET.SubElement(domain, "devices")
    _add_disk(devices, spec.disks)
    _add_inbox(devices, spec.inbox)
    ET.SubElement(devices, "controller", type="usb", model="none")
    ET.SubElement(devices, "controller", type="virtio-serial", index="0", ports="4")
    _add_channel(devices, CONTROL_PORT, spec.control_socket)
    if spec.hardware.transport is Transport.SERIAL:
        _add_channel(devices, LINK_PORT, spec.link_socket)
    else:
        vsock = ET.SubElement(devices, "vsock", model="virtio")
        ET.SubElement(vsock, "cid", auto="yes")
    _add_channel(devices, EGRESS_PORT, spec.egress_socket)
    # The device must be there in every VM of a snapshot; only a boot has anything to say on it, and a running guest
    # must not be able to fill the host's disk with it.
    if spec.boot is not None:
        serial = ET.SubElement(devices, "serial", type="file")
        ET.SubElement(serial, "source", path=str(spec.console))
    else:
        serial = ET.SubElement(devices, "serial", type="null")
    ET.SubElement(serial, "target", type="isa-serial", port="0")
    ET.SubElement(devices, "panic", model="isa")
    ET.SubElement(devices, "memballoon", model="none")


def _add_disk(devices: ET.Element, chain: tuple[Path, ...]) -> None:
    disk = ET.SubElement(devices, "disk", type="file", device="disk")
    # A VM's overlay dies with the VM, so the guest's flushes need not reach the host's disk.
    kind = "qcow2" if len(chain) > 1 else "raw"
    ET.SubElement(disk, "driver", name="qemu", type=kind, cache="unsafe", discard="unmap")
    ET.SubElement(disk, "source", file=str(chain[0]))
    parent = disk
    for layer in chain[1:]:
        parent = ET.SubElement(parent, "backingStore", type="file")
        ET.SubElement(parent, "format", type="raw" if layer is chain[-1] else "qcow2")
        ET.SubElement(parent, "source", file=str(layer))
    ET.SubElement(parent, "backingStore")
    ET.SubElement(disk, "target", dev="vda", bus="virtio")
    ET.SubElement(disk, "alias", name=DISK_ALIAS)


def _add_inbox(devices: ET.Element, file: Path) -> None:
    disk = ET.SubElement(devices, "disk", type="file", device="disk")
    # What the host writes is read from its page cache, in which it is at once.
    ET.SubElement(disk, "driver", name="qemu", type="raw", cache="writeback")
    ET.SubElement(disk, "source", file=str(file))
    ET.SubElement(disk, "backingStore")
    ET.SubElement(disk, "target", dev="vdb", bus="virtio")
    ET.SubElement(disk, "readonly")
    _text(disk, "serial", SERIAL)
    ET.SubElement(disk, "alias", name=INBOX_ALIAS)


def _add_channel(devices: ET.Element, name: str, path: Path) -> None:
    channel = ET.SubElement(devices, "channel", type="unix")
    ET.SubElement(channel, "source", mode="bind", path=str(path))
    ET.SubElement(channel, "target", type="virtio", name=name)


def _qemu_arguments(spec: DomainSpec) -> list[str]:
    size = spec.hardware.memory_mib * 1024 * 1024
    backend = f"memory-backend-file,id={_MEMORY_ID},size={size},mem-path={_escape(spec.memory)}"
    backend += ",share=on" if spec.boot is not None else ",share=off,readonly=on,rom=off"
    arguments = ["-object", backend, "-machine", f"memory-backend={_MEMORY_ID},suppress-vmdesc=on"]
    socket = f"socket,id={_MONITOR_ID},path={_escape(spec.monitor_socket)},server=on,wait=off"
    arguments += ["-chardev", socket, "-mon", f"chardev={_MONITOR_ID},mode=control"]
    for setting in _MIGRATION_GLOBALS:
        arguments += ["-global", f"migration.{setting}"]
    if spec.boot is None:
        arguments += ["-incoming", "defer"]
        for writable, mode in ((False, _READING), (True, _WRITING)):
            folder = f"local,id={share_id(writable=writable)},path={_escape(spec.shared)}"
            arguments += ["-fsdev", f"{folder},{mode}"]
    return arguments


def share_id(*, writable: bool) -> str:
    """Return QEMU's name of the folder that a VM may share.

    Args:
        writable: Whether the guest may change it.
    """
    return "agentvm.shared.rw" if writable else "agentvm.shared.ro"


def _escape(path: Path) -> str:
    return str(path).replace(",", ",,")
