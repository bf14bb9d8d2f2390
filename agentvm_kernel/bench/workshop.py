"""Clones made by the VM layer in this process, without a supervisor, so that each step can be measured."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, cast

from agentvm_kernel.bench.bed import PROFILE, Bed, Say, libvirt_root
from agentvm_kernel.errors import HypervisorError, ImageError
from agentvm_kernel.image.store import ImageStore
from agentvm_kernel.supervisor.catalogue import Catalogue
from agentvm_kernel.supervisor.client import SupervisorClient
from agentvm_kernel.vm.blank import Blank, start_blank
from agentvm_kernel.vm.clone import VM, become
from agentvm_kernel.vm.golden import Source, make_golden
from agentvm_kernel.vm.libvirt_hypervisor import LibvirtHypervisor
from agentvm_kernel.vm.libvirt_machine import LibvirtMachine
from agentvm_kernel.vm.snapshot import Snapshot
from agentvm_kernel.vm.transport import choose_transport

_ANSWER_SECONDS: Final = 30.0
_JOB_POLL_SECONDS: Final = 0.002


class Workshop:
    """Makes clones of a golden snapshot.

    Args:
        hypervisor: Starts them; open.
        snapshot: The golden snapshot.
        folder: Where they lie.
        cache: Where the image lies.
    """

    def __init__(self, hypervisor: LibvirtHypervisor, snapshot: Snapshot, folder: Path, cache: Path) -> None:
        self._hypervisor = hypervisor
        self._snapshot = snapshot
        self._folder = folder
        self._cache = cache
        self._number = 0

    async def start_blank(self) -> Blank:
        """Start a blank through libvirt."""
        self._number += 1
        name = f"vm-{self._number}"
        return await start_blank(
            self._hypervisor, self._snapshot, self._folder / name, self._hypervisor.domain_name(name)
        )

    async def first_answer(self, blank: Blank) -> VM:
        """Do with a blank what ``become`` does, up to the guest agent's first answer to anything."""
        vm = VM("bench", blank, self._snapshot)
        try:
            await blank.fill(self._snapshot)
            await vm.connect()
            await blank.machine.resume()
            await vm.request("ping", _ANSWER_SECONDS)
        except BaseException:
            await vm.end()
            raise
        return vm

    async def boot(self) -> float:
        """Boot the image once and return the seconds until ipykernel is up and idle."""
        digest = self._snapshot.manifest.image
        image = next((image for image in ImageStore(self._cache).images() if image.digest == digest), None)
        if image is None:
            raise ImageError(f"The image {digest[:12]} was removed meanwhile.")
        source = Source(image.digest, image.kernel, image.initramfs, image.rootfs)
        booted = await make_golden(
            self._hypervisor, source, self._snapshot.hardware, self._folder / "booted",
            self._hypervisor.domain_name("booted"), lambda _stage: None,
        )  # fmt: skip
        return booted.manifest.boot_seconds

    @asynccontextmanager
    async def own_snapshot(self) -> AsyncIterator[OwnSnapshot]:
        """Provide a clone with a snapshot of QEMU's own kind in its disk."""
        blank = await self.start_blank()
        vm = await become(blank, "own")
        try:
            own = OwnSnapshot(vm, cast("LibvirtMachine", blank.machine))
            await own.save()
            yield own
        finally:
            await vm.end()


class OwnSnapshot:
    """A VM that goes back by QEMU's own means (``snapshot-save``, ``snapshot-load``), which copy all of its memory.

    Args:
        vm: The VM.
        machine: Its QEMU.
    """

    def __init__(self, vm: VM, machine: LibvirtMachine) -> None:
        self.vm = vm
        self._machine = machine

    async def save(self) -> None:
        """Save it."""
        await self._job("snapshot-save", vmstate=await self._node(), devices=[await self._node()])

    async def remove(self) -> None:
        """Remove it, if there is one."""
        await self._job("snapshot-delete", devices=[await self._node()])

    async def load(self) -> None:
        """Go back, and wait for the guest agent's first answer."""
        await self._job("snapshot-load", vmstate=await self._node(), devices=[await self._node()])
        await self.vm.request("ping", _ANSWER_SECONDS)

    async def _node(self) -> str:
        """Return the name of the overlay's block node."""
        for device in cast("list[dict[str, dict[str, object]]]", await self._machine.qmp("query-block")):
            if device.get("inserted", {}).get("drv") == "qcow2":
                return str(device["inserted"]["node-name"])
        raise HypervisorError("QEMU has no qcow2 disk.")

    async def _job(self, command: str, **arguments: object) -> None:
        await self._machine.qmp(command, job_id="bench", tag="bench", **arguments)
        job: dict[str, object] = {}
        while job.get("status") != "concluded":
            await asyncio.sleep(_JOB_POLL_SECONDS)
            (job,) = cast("list[dict[str, object]]", await self._machine.qmp("query-jobs"))
        await self._machine.qmp("job-dismiss", id="bench")
        if "error" in job:
            raise HypervisorError(f"QEMU: {command}: {json.dumps(job['error'])}")


@asynccontextmanager
async def workshop(ours: Bed, say: Say) -> AsyncIterator[Workshop]:
    """Open a connection to libvirt in this process, beside the supervisor's.

    Args:
        ours: Tells what the clones are to be like.
        say: Told what is going on.
    """
    async with SupervisorClient(ours.paths, start=False) as client:
        accelerator = (await client.status()).accelerator
    folder = ours.paths.state.parent / "w"
    folder.mkdir(mode=0o711)
    hypervisor = LibvirtHypervisor(ours.settings.uri, libvirt_root(), f"{ours.paths.tag}b")
    await hypervisor.open()
    try:
        transport = choose_transport(ours.settings.transport)
        catalogue = Catalogue(hypervisor, ours.paths.cache, accelerator, transport)
        profile = ours.settings.profiles[PROFILE]
        snapshot = await catalogue.golden(ours.settings.image, profile, lambda step: say(step.stage, step.done))
        yield Workshop(hypervisor, snapshot, folder, ours.paths.cache)
    finally:
        await hypervisor.close()
