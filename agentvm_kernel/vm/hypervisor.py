"""The small interface between this project and whatever runs its virtual machines.

``LibvirtHypervisor`` (``libvirt_hypervisor.py``) is the real one. Everything above sees only this file, so that pools
and leases can be tested without a VM.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agentvm_kernel.errors import HypervisorError
from agentvm_kernel.link.endpoint import VsockEndpoint
from agentvm_kernel.vm.nat import Card
from agentvm_kernel.vm.spec import DomainSpec

NO_NAT: Final = "nat = true in [network] of the configuration makes one, with qemu:///system."


@dataclass(frozen=True)
class DiskTraffic:
    """What a guest has moved to and from its disk so far, whichever layers that has.

    Attributes:
        read: Bytes.
        written: Bytes.
    """

    read: int = 0
    written: int = 0


class Machine(ABC):
    """One QEMU process.

    Attributes:
        spec: What it was made from.
        pid: Its process id.
        vsock: Where its guest agent listens when vsock carries the link, else ``None``.
        ended: Done when the process is gone; the result says why, in one line a user understands.
    """

    spec: DomainSpec
    pid: int
    vsock: VsockEndpoint | None
    ended: asyncio.Future[str]

    @abstractmethod
    async def resume(self) -> None:
        """Let the guest run."""

    @abstractmethod
    async def pause(self) -> None:
        """Stop the guest's CPUs."""

    @abstractmethod
    async def load(self, device_state: Path, *, is_dump: bool = False) -> None:
        """Load a device state into a machine that was started empty; it stays paused.

        Args:
            device_state: The file.
            is_dump: It is a complete dump, with the memory in it.
        """

    @abstractmethod
    async def save(self, device_state: Path) -> None:
        """Write the device state of a paused machine, without its memory."""

    @abstractmethod
    async def dump(self, path: Path) -> None:
        """Write the device state and all memory of a paused machine, for hosts where its memory cannot be read."""

    @abstractmethod
    async def attach_disk(self, chain: tuple[Path, ...]) -> None:
        """Give a machine that was started empty its disk.

        Args:
            chain: Topmost first: a writable qcow2 overlay, read-only qcow2 layers, the raw root image.
        """

    @abstractmethod
    async def prepare_overlay(self, overlay: Path) -> None:
        """Get ready to freeze the disk.

        Args:
            overlay: An empty qcow2 overlay; its name is unique within the VM.
        """

    @abstractmethod
    async def freeze_disk(self) -> None:
        """Put the prepared overlay on top of a paused machine's disk; what was the top is not written any more."""

    @abstractmethod
    async def merge_layers(self, count: int) -> None:
        """Copy into the top of a running machine's disk what the layers right below it hold, and let go of those.

        The caller sees to it that nobody freezes the disk meanwhile. After a failure all layers are still in use.

        Args:
            count: How many layers.
        """

    @abstractmethod
    async def copy_disk(self, target: Path, begun: Callable[[], Awaitable[None]]) -> None:
        """Copy what a running machine's disk holds now; the caller sees to it that nobody freezes the disk meanwhile.

        Args:
            target: An empty qcow2 file as large as the disk.
            begun: Called once it does not matter any more what the guest writes.
        """

    @abstractmethod
    async def throttle_disk(self, megabytes: int | None, operations: int | None) -> None:
        """Limit reads and writes together, from now on, whichever disk it has.

        Args:
            megabytes: MB (10^6 bytes) a second; ``None`` for no limit.
            operations: Operations a second; ``None`` for no limit.
        """

    @abstractmethod
    async def disk_traffic(self) -> DiskTraffic:
        """Return what the guest has read and written so far. QEMU may take its time: while it saves, or is stuck."""

    @abstractmethod
    async def limit_process(self, cores: float | None, memory: int) -> None:
        """Take it into use: limit the process as a whole as far as this host lets us; else the log says why not.

        Args:
            cores: CPU seconds a second; ``None`` for no limit.
            memory: Bytes.
        """

    @abstractmethod
    async def give_way(self, gives_way: bool) -> None:
        """Let other machines that want the CPU go first, or no longer, as far as this host lets us.

        Args:
            gives_way: Whether they go first.
        """

    async def plug(self) -> Card:
        """Give a running machine a network card: a fresh one, or the one that it had before.

        Raises:
            HypervisorError: there is no network to plug it into.
        """
        raise HypervisorError("There is no network for cards.", NO_NAT)

    async def cut(self) -> None:
        """Let the network card carry nothing any more; the machine may be paused."""
        raise HypervisorError("There is no network for cards.", NO_NAT)

    async def unplug(self) -> None:
        """Take the network card out of a running machine, and wait until the guest has let go of it."""
        raise HypervisorError("There is no network for cards.", NO_NAT)

    @abstractmethod
    async def plug_folder(self, folder: Path, *, writable: bool) -> str:
        """Give a running machine a device that shares a folder of the host.

        Args:
            folder: Which.
            writable: Whether the guest may change it.

        Returns:
            Why nobody but the hypervisor keeps the guest from changing it; empty if the host's kernel does, or if it
            may.

        Raises:
            HypervisorError: it cannot be opened.
        """

    @abstractmethod
    async def unplug_folder(self) -> None:
        """Take that device out of a running machine, and wait until the guest has let go of it.

        Raises:
            HypervisorError: the guest does not.
        """

    @abstractmethod
    async def end(self) -> None:
        """End the process and wait until it is gone. Idempotent; the VM's folder is the caller's."""


class Hypervisor(ABC):
    """Starts machines. Every method may raise ``HypervisorError``."""

    @abstractmethod
    async def open(self) -> None:
        """Connect; called once by the supervisor before anything else."""

    @abstractmethod
    async def close(self) -> None:
        """Disconnect. Machines still running are the caller's mistake."""

    @abstractmethod
    async def version(self) -> str:
        """Return what a device state depends on: hypervisor, its version and build."""

    @property
    @abstractmethod
    def owner(self) -> tuple[int, int] | None:
        """``uid, gid`` under which QEMU runs and must be able to read and write; ``None``: those of this process."""

    @abstractmethod
    def domain_name(self, vm: str) -> str:
        """Return the name under which a VM of this owner is started."""

    @abstractmethod
    async def start(self, spec: DomainSpec) -> Machine:
        """Start a machine, paused: empty, or about to boot if the spec says so. One at a time is fastest."""

    @property
    def reports(self) -> int | None:
        """The group of nfnetlink_log(8) that gets what cards were refused; ``None`` where nothing is reported."""
        return None

    async def open_network(self) -> None:  # noqa: B027 - most have nothing to do
        """Make the network for cards, if one is configured. Called once after `end_leftovers`."""

    @abstractmethod
    async def end_leftovers(self) -> list[str]:
        """End the machines that an earlier owner left behind and return their names. Called once after ``open``."""
