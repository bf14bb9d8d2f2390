"""``clone(snapshot)``: a blank becomes a VM."""

from __future__ import annotations

import asyncio
import logging
import secrets
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agentvm_kernel.errors import AgentVMError, HostError, IdentityError, LinkError
from agentvm_kernel.link.control import ControlChannel
from agentvm_kernel.link.endpoint import Endpoint, UnixEndpoint
from agentvm_kernel.profiles import Limits
from agentvm_kernel.tally import Tally
from agentvm_kernel.vm.blank import Blank
from agentvm_kernel.vm.content import Content
from agentvm_kernel.vm.delta import Run, merge_runs
from agentvm_kernel.vm.inbox import open_inbox
from agentvm_kernel.vm.nat import Card
from agentvm_kernel.vm.sharing import Sharing
from agentvm_kernel.vm.snapshot import Snapshot

_log = logging.getLogger(__name__)

_IDENTITY_SECONDS = 30.0
_CLOCK_SECONDS = 10.0
_LIMITS_SECONDS = 10.0
_CARD_SECONDS = 30.0
_KEY_BYTES = 32
_ENTROPY_BYTES = 64


@dataclass(frozen=True)
class Randomness:
    """What happens to a clone's generators in user space, the kernel's always differs; and which clone it is.

    Attributes:
        mode: ``diverge`` (new seeds), ``common`` (the given seed, for comparisons in pairs), ``keep`` (they go on as
            the snapshot has them).
        seed: 64 bytes for ``common``.
        fork: The number of a fork, which its programs are told; 0 for what is none.
    """

    mode: Literal["diverge", "common", "keep"] = "diverge"
    seed: bytes = b""
    fork: int = 0

    def fields(self) -> dict[str, object]:
        """Return the fields of the identity request."""
        fields: dict[str, object] = {"randomness": self.mode, "fork": self.fork}
        return fields | ({"seed": self.seed.hex()} if self.mode == "common" else {})


OnEvent = Callable[[dict[str, object]], None]
Network = Literal["filtered", "none"]


def _in_guest(limits: Limits) -> dict[str, object]:
    """Return what the guest agent is to hold the user's processes to."""
    return {"processes": limits.processes, "open_files": limits.open_files, "memory_mib": limits.user_memory_mib}


def _fields(limits: Limits | None, network: Network | None) -> dict[str, object]:
    """Return what goes along with another request."""
    fields: dict[str, object] = {} if limits is None else {"limits": _in_guest(limits)}
    return fields if network is None else fields | {"network": network}


class VM:
    """A running or paused clone with an identity of its own.

    Attributes:
        id: Its name.
        snapshot: What it descends from: what it was cloned from, or the newest snapshot that was taken of it.
        machine: Its QEMU.
        content: That snapshot's memory.
        tracker: Its memory, and what it wrote since that snapshot, where the host lets this process have it.
        overlay: Top of its disk.
        spare_overlay: What will be on top when the disk is frozen next.
        unsaved_runs: Pages that belong into its next snapshot because an earlier one could not be kept.
        unsaved_layers: Disk layers, topmost first, of which the same is true.
        over: How many of the disk layers of ``snapshot``, counted from the golden one's upwards, the layers above them
            lie over: the unsaved ones and the overlay; ``None`` for all.
        shortening: What makes the chain of its disk's layers shorter at the moment.
        captures: How many snapshots were tried.
        overlays: How many overlays were made for its disk.
        epoch: Number of this clone.
        key: The link's shared key.
        created: Seconds since the epoch.
        card: Its network card; ``None`` without one.
        sharing: The folder of the host that it shares, if any.
        tally: What it has moved; whoever holds the VM sets it, and it ends with the VM.
        on_event: Called with each event of the guest agent's (hostile input); whoever holds the VM sets it.
    """

    def __init__(self, vm_id: str, blank: Blank, snapshot: Snapshot) -> None:
        self.id = vm_id
        self.snapshot = snapshot
        self.content: Content | None = None
        self.machine = blank.machine
        self.tracker = blank.tracker
        self.overlay = blank.overlay
        self.spare_overlay: Path | None = None
        self.unsaved_runs: list[Run] = []
        self.unsaved_layers: list[Path] = []
        self.over: int | None = None
        self.shortening: asyncio.Task[None] | None = None
        self.captures = 0
        self.overlays = 1
        self.epoch = secrets.randbelow(2**32 - 1) + 1
        self.key = secrets.token_bytes(_KEY_BYTES)
        self.created = time.time()
        self.on_event: OnEvent = lambda _event: None
        self.card: Card | None = None
        self.sharing = Sharing(self.machine, self.request)
        self.tally: Tally | None = None
        self._plugging = asyncio.Lock()
        self._control: ControlChannel | None = None

    def descend(self, child: Snapshot) -> None:
        """Note that its newest snapshot is safe."""
        if self.content is not None:
            self.content.advance(child)
        self.snapshot = child

    @property
    def folder(self) -> Path:
        """Its private folder."""
        return self.machine.spec.folder

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self.machine.pid

    @property
    def ended(self) -> asyncio.Future[str]:
        """Done when QEMU is gone; the result says why."""
        return self.machine.ended

    @property
    def link(self) -> Endpoint:
        """Where to dial the guest agent."""
        return self.machine.vsock or UnixEndpoint(str(self.machine.spec.link_socket))

    @property
    def egress(self) -> Endpoint:
        """Where to dial the guest's forwarder; only for the owner, whatever carries the link."""
        return UnixEndpoint(str(self.machine.spec.egress_socket))

    def open_inbox(self) -> int | None:
        """Open the file behind its inbox for writing; ``None`` if that is not possible: it is not needed.

        Returns:
            A file descriptor, which is the caller's to close.
        """
        spec = self.machine.spec
        try:
            return open_inbox(spec.inbox, spec.owner)
        except (HostError, OSError) as error:
            _log.warning("%s downloads without its inbox: %s", self.id, error)
            return None

    async def connect(self) -> None:
        """Dial the owner's channel."""
        self._control = await ControlChannel.connect(self.machine.spec.control_socket, self._forward_event)

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

    async def give_identity(
        self, randomness: Randomness, limits: Limits | None = None, network: Network | None = None
    ) -> None:
        """Make this clone different from its siblings, and wait until the guest has confirmed it.

        Args:
            randomness: What happens to the generators in user space.
            limits: What holds for the user's processes from now on; ``None`` to leave that as it is.
            network: Whether its programs may hope for a network; ``None`` to leave that as it is.

        Raises:
            IdentityError: the guest did not confirm; the VM must not be used.
        """
        try:
            answer = await self.request(
                "identity", _IDENTITY_SECONDS, epoch=self.epoch, key=self.key.hex(),
                time_ns=time.time_ns(), entropy=secrets.token_hex(_ENTROPY_BYTES),
                hostname=self.id, machine_id=uuid.uuid4().hex, **randomness.fields(), **_fields(limits, network),
            )  # fmt: skip
        except LinkError as error:
            raise IdentityError(f"The VM {self.id} did not confirm its identity: {error.message}") from error
        if answer.get("epoch") != self.epoch or answer.get("hostname") != self.id:
            raise IdentityError(f"The VM {self.id} confirmed another identity than it was given.")

    def take_back(self, runs: list[Run], layers: Sequence[Path], over: int | None) -> None:
        """Note that what was captured could not be kept: it belongs into the next snapshot.

        Args:
            runs: Pages.
            layers: Disk layers, topmost first.
            over: What they lie over; see ``Capture.over``.
        """
        self.unsaved_runs = merge_runs(self.unsaved_runs, runs)
        if layers:
            self.unsaved_layers += layers
            self.over = over

    @property
    def is_shortening(self) -> bool:
        """The chain of its disk's layers is being made shorter."""
        return self.shortening is not None and not self.shortening.done()

    async def settle(self) -> None:
        """Wait until nothing but the guest changes its disk."""
        if self.shortening is not None:
            await asyncio.wait({self.shortening})

    async def pause(self) -> None:
        """Stop its CPUs."""
        await self.machine.pause()

    async def wake(self, limits: Limits | None = None, network: Network | None = None) -> None:
        """Let a paused VM run on, and set its clock.

        Args:
            limits: What holds for the user's processes from now on; ``None`` to leave that as it is.
            network: Whether its programs may hope for a network; ``None`` to leave that as it is. With ``none``, a card
                that it has had since before carries nothing from the first moment.

        Raises:
            IdentityError: the guest did not confirm its clock.
        """
        if network == "none" and self.card is not None:
            await self.machine.cut()
        await self.machine.resume()
        try:
            await self.request("clock", _CLOCK_SECONDS, time_ns=time.time_ns(), **_fields(limits, network))
        except LinkError as error:
            raise IdentityError(f"The VM {self.id} did not confirm its clock: {error.message}") from error

    async def limit(self, limits: Limits) -> None:
        """Put other limits on the user's processes.

        Args:
            limits: What holds from now on.

        Raises:
            LinkError: the guest agent did not answer, or refused.
        """
        await self.request("limits", _LIMITS_SECONDS, **_in_guest(limits))

    async def restrict(self, network: Network) -> None:
        """Say whether its programs may hope for a network: without one they are refused at once, not after a while.

        Args:
            network: What holds from now on.

        Raises:
            LinkError: the guest agent did not answer, or refused.
        """
        await self.request("network", _LIMITS_SECONDS, network=network)

    async def plug(self) -> None:
        """Give it a network card, unless it has one.

        Raises:
            HypervisorError: there is no network for cards, or it could not be plugged in.
            LinkError: the guest agent could not set it up.
        """
        async with self._plugging:
            if self.card is None:
                await self._plug()

    async def unplug(self) -> None:
        """Take its network card away, if it has one.

        Raises:
            HypervisorError: the guest does not let go of it.
        """
        async with self._plugging:
            if self.card is not None:
                await self.machine.unplug()
                self.card = None

    @asynccontextmanager
    async def without_card(self) -> AsyncIterator[None]:
        """Have no network card within this context: what is saved can be loaded only into a machine with the same.

        Raises:
            HypervisorError: the guest does not let go of it.
        """
        async with self._plugging:
            had = self.card is not None
            if had:
                await self.machine.unplug()
                self.card = None
            try:
                yield
            finally:
                if had and not self.ended.done():
                    await self._plug_again()

    async def _plug_again(self) -> None:
        try:
            await self._plug()
        except AgentVMError as error:  # what was saved is good all the same
            _log.warning("%s has lost its network card: %s", self.id, error)

    async def _plug(self) -> None:
        self.card = await self.machine.plug()
        await self.request("card", _CARD_SECONDS, **self.card.fields())

    async def end(self) -> None:
        """End it, and remove its files."""
        if self._control is not None:
            await self._control.close()
        await self.machine.end()
        await self.settle()
        if self.tally is not None:
            self.tally.close()
        self.content = None  # it maps files, and this VM is part of cycles that are not collected for long
        if self.folder.exists():
            await asyncio.to_thread(shutil.rmtree, self.folder)


async def become(
    blank: Blank,
    vm_id: str,
    snapshot: Snapshot | None = None,
    randomness: Randomness | None = None,
    limits: Limits | None = None,
    network: Network | None = None,
) -> VM:
    """Turn a blank into a running VM whose identity is confirmed.

    Args:
        blank: Is used up, whatever happens.
        vm_id: The VM's name; also its host name.
        snapshot: What it is to be a clone of; by default the one of which the blank has the memory.
        randomness: What happens to the generators in user space; by default they diverge.
        limits: What holds for the user's processes.
        network: Whether its programs may hope for a network.

    Raises:
        IdentityError: the guest did not confirm its identity; the VM is ended.
        SnapshotError: the snapshot cannot be loaded; the blank is ended.
        HypervisorError: QEMU could not load the state; the blank is ended.
    """
    snapshot = snapshot or blank.base
    vm = VM(vm_id, blank, snapshot)
    try:
        vm.content = await blank.fill(snapshot)
        await vm.connect()
        await blank.machine.resume()
        await vm.give_identity(randomness or Randomness(), limits, network)
    except BaseException:
        await vm.end()
        raise
    return vm
