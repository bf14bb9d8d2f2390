"""``clone(snapshot)``: a blank becomes a VM."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from agentvm_kernel.errors import IdentityError, LinkError
from agentvm_kernel.link.control import ControlChannel
from agentvm_kernel.link.endpoint import Endpoint, UnixEndpoint
from agentvm_kernel.vm.disk import create_overlay, give_to
from agentvm_kernel.vm.hypervisor import Hypervisor, Machine
from agentvm_kernel.vm.snapshot import Snapshot
from agentvm_kernel.vm.spec import DomainSpec

_IDENTITY_SECONDS = 30.0
_CLOCK_SECONDS = 10.0
_KEY_BYTES = 32
_ENTROPY_BYTES = 64

OnEvent = Callable[[dict[str, object]], None]


class Blank:
    """A started, empty QEMU whose memory is a private view of a golden snapshot's; nothing loaded.

    Args:
        machine: The QEMU.
        snapshot: What it can become.
    """

    def __init__(self, machine: Machine, snapshot: Snapshot) -> None:
        self.machine = machine
        self.snapshot = snapshot

    async def end(self) -> None:
        """End it, and remove its files."""
        await self.machine.end()
        await asyncio.to_thread(shutil.rmtree, self.machine.spec.folder)


class VM:
    """A running or paused clone with an identity of its own.

    Attributes:
        id: Its name.
        snapshot: What it was cloned from.
        epoch: Number of this clone.
        key: The link's shared key.
        created: Seconds since the epoch.
        on_event: Called with each event of the guest agent's (hostile input); whoever holds the VM sets it.
    """

    def __init__(self, vm_id: str, blank: Blank) -> None:
        self.id = vm_id
        self.snapshot = blank.snapshot
        self.epoch = secrets.randbelow(2**32 - 1) + 1
        self.key = secrets.token_bytes(_KEY_BYTES)
        self.created = time.time()
        self.on_event: OnEvent = lambda _event: None
        self._machine = blank.machine
        self._control: ControlChannel | None = None

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._machine.pid

    @property
    def ended(self) -> asyncio.Future[str]:
        """Done when QEMU is gone; the result says why."""
        return self._machine.ended

    @property
    def link(self) -> Endpoint:
        """Where to dial the guest agent."""
        return self._machine.vsock or UnixEndpoint(str(self._machine.spec.link_socket))

    async def connect(self) -> None:
        """Dial the owner's channel."""
        self._control = await ControlChannel.connect(self._machine.spec.control_socket, self._forward_event)

    def _forward_event(self, event: dict[str, object]) -> None:
        self.on_event(event)

    async def request(self, op: str, timeout: float, **fields: object) -> dict[str, object]:
        """Ask the guest agent over the owner's channel.

        Args:
            op: Operation.
            timeout: Seconds to wait.
            **fields: What the operation takes.

        Raises:
            LinkError: it did not answer, or refused.
        """
        if self._control is None:
            raise LinkError(f"The owner's channel of {self.id} is not connected.")
        return await self._control.request(op, timeout=timeout, **fields)

    async def give_identity(self) -> None:
        """Make this clone different from its siblings, and wait until the guest has confirmed it.

        Raises:
            IdentityError: the guest did not confirm; the VM must not be used.
        """
        try:
            answer = await self.request(
                "identity", _IDENTITY_SECONDS, epoch=self.epoch, key=self.key.hex(),
                time_ns=time.time_ns(), entropy=secrets.token_hex(_ENTROPY_BYTES),
                hostname=self.id, machine_id=uuid.uuid4().hex,
            )  # fmt: skip
        except LinkError as error:
            raise IdentityError(f"The VM {self.id} did not confirm its identity: {error.message}") from error
        if answer.get("epoch") != self.epoch or answer.get("hostname") != self.id:
            raise IdentityError(f"The VM {self.id} confirmed another identity than it was given.")

    async def pause(self) -> None:
        """Stop its CPUs."""
        await self._machine.pause()

    async def wake(self) -> None:
        """Let a paused VM run on, and set its clock.

        Raises:
            IdentityError: the guest did not confirm its clock.
        """
        await self._machine.resume()
        try:
            await self.request("clock", _CLOCK_SECONDS, time_ns=time.time_ns())
        except LinkError as error:
            raise IdentityError(f"The VM {self.id} did not confirm its clock: {error.message}") from error

    async def end(self) -> None:
        """End it, and remove its files."""
        if self._control is not None:
            await self._control.close()
        await self._machine.end()
        folder = self._machine.spec.folder
        if folder.exists():
            await asyncio.to_thread(shutil.rmtree, folder)


async def start_blank(hypervisor: Hypervisor, snapshot: Snapshot, folder: Path, name: str) -> Blank:
    """Start an empty QEMU for a snapshot.

    Args:
        hypervisor: What starts it.
        snapshot: What it will be able to become.
        folder: A private folder to create for it; it goes with the VM.
        name: Domain name.
    """
    folder.mkdir(mode=0o700)
    try:
        give_to(folder, hypervisor.owner)
        overlay = folder / "overlay.qcow2"
        await create_overlay(overlay, snapshot.disk, "qcow2", snapshot.hardware.disk_gb)
        give_to(overlay, hypervisor.owner)
        spec = DomainSpec(
            name, str(uuid.uuid4()), folder, snapshot.hardware, snapshot.memory, (overlay, *snapshot.disks),
            owner=hypervisor.owner,
        )  # fmt: skip
        return Blank(await hypervisor.start(spec), snapshot)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


async def become(blank: Blank, vm_id: str) -> VM:
    """Turn a blank into a running VM whose identity is confirmed.

    Args:
        blank: Is used up, whatever happens.
        vm_id: The VM's name; also its host name.

    Raises:
        IdentityError: the guest did not confirm its identity; the VM is ended.
        HypervisorError: QEMU could not load the state; the blank is ended.
    """
    vm = VM(vm_id, blank)
    try:
        await blank.machine.load(blank.snapshot.device_state)
        await vm.connect()
        await blank.machine.resume()
        await vm.give_identity()
    except BaseException:
        await vm.end()
        raise
    return vm
