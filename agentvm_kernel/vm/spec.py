"""What a VM is made of: plain values that the domain's XML, the golden snapshot and the clones share."""

from __future__ import annotations

import enum
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from agentvm_kernel.vm.accelerator import Accelerator

VSOCK_PORT = 4011
CONTROL_PORT = "agentvm.control"
LINK_PORT = "agentvm.link"
EGRESS_PORT = "agentvm.egress"


class Transport(enum.StrEnum):
    """What carries the link."""

    VSOCK = "vsock"
    SERIAL = "serial"


@dataclass(frozen=True)
class Hardware:
    """The guest-visible machine. Two VMs with equal hardware can load each other's device state.

    Attributes:
        vcpus: Virtual CPUs.
        memory_mib: Guest memory, MiB.
        disk_gb: Size of the disk, GB (10^9 bytes).
        accelerator: KVM or TCG.
        transport: What carries the link: with vsock there is one more device.
    """

    vcpus: int
    memory_mib: int
    disk_gb: int
    accelerator: Accelerator
    transport: Transport

    def fingerprint(self, *versions: str) -> str:
        """Return a digest over this and the given versions (hypervisor, image): equal means interchangeable."""
        text = json.dumps([asdict(self), *versions], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Boot:
    """What a cold boot starts.

    Attributes:
        kernel: Guest kernel.
        initramfs: Its initramfs.
        cmdline: Kernel command line.
    """

    kernel: Path
    initramfs: Path
    cmdline: str


@dataclass(frozen=True)
class DomainSpec:
    """One QEMU process to be.

    Attributes:
        name: Domain name and VM id.
        uuid: Domain UUID; also the generation id that the guest sees.
        folder: Private folder of this VM: overlay and sockets lie here; it goes with the VM.
        hardware: The guest-visible machine.
        memory: File that backs guest memory.
        disks: The disk's chain, topmost first: for a boot the writable qcow2 overlay and the raw root image; otherwise
            one raw file that holds the place until a snapshot's chain is attached.
        boot: What to boot (then ``memory`` is written to); ``None``: wait for a device state (memory stays private).
        owner: ``uid, gid`` under which libvirt is to run QEMU; ``None`` to leave that to libvirt.
    """

    name: str
    uuid: str
    folder: Path
    hardware: Hardware
    memory: Path
    disks: tuple[Path, ...]
    boot: Boot | None = None
    owner: tuple[int, int] | None = None

    @property
    def control_socket(self) -> Path:
        """Host end of the owner's channel."""
        return self.folder / "control.sock"

    @property
    def link_socket(self) -> Path:
        """Host end of the link, where virtio-serial carries it."""
        return self.folder / "link.sock"

    @property
    def egress_socket(self) -> Path:
        """Host end of what the guest's forwarder sends out, whatever carries the link: nobody else can open it."""
        return self.folder / "egress.sock"

    @property
    def inbox(self) -> Path:
        """A disk that only the guest reads and only this process writes; see `agentvm_kernel.link.inbox`."""
        return self.folder / "inbox"

    @property
    def monitor_socket(self) -> Path:
        """QEMU's monitor, beside libvirt's: commands over libvirt take three times as long."""
        return self.folder / "qmp.sock"

    @property
    def shared(self) -> Path:
        """A link to the host's folder that the VM shares; there only while it does."""
        return self.folder / "shared"

    @property
    def console(self) -> Path:
        """What the guest kernel prints during a cold boot."""
        return self.folder / "console.log"
