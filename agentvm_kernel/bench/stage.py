"""A leased VM under a supervisor in this process, so that QEMU's own means can be measured on the same VM."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, cast

from agentvm_kernel.bench.bed import PROFILE, Say, Wanted, bench_settings, libvirt_root, temporary_paths
from agentvm_kernel.bench.workshop import OwnSnapshot
from agentvm_kernel.config import load_settings
from agentvm_kernel.errors import AgentVMError, VMEndedError
from agentvm_kernel.kernel.execution import Runner, running
from agentvm_kernel.link.connection import Link, connect
from agentvm_kernel.profiles import Profile
from agentvm_kernel.settings import Pool
from agentvm_kernel.supervisor.core import Supervisor
from agentvm_kernel.supervisor.daemon import prepare_folders
from agentvm_kernel.supervisor.lease import Lease
from agentvm_kernel.supervisor.messages import LeaseRequest, Message, Progress
from agentvm_kernel.supervisor.snapshot_messages import Replaced, SnapshotInfo, SnapshotRequest
from agentvm_kernel.vm.libvirt_hypervisor import LibvirtHypervisor
from agentvm_kernel.vm.libvirt_machine import LibvirtMachine

_CELL_SECONDS: Final = 300.0


class Stage:
    """A supervisor, a lease and a connection to its guest.

    Args:
        supervisor: Open.
        hypervisor: What it has its VMs from.
        lease: Its only lease.
    """

    def __init__(self, supervisor: Supervisor, hypervisor: LibvirtHypervisor, lease: Lease) -> None:
        self.supervisor = supervisor
        self.hypervisor = hypervisor
        self.lease = lease
        self._link: Link | None = None
        self._runner: Runner | None = None
        self._stack = AsyncExitStack()

    async def dial(self) -> None:
        """Connect to the guest that the lease has now."""
        await self._stack.aclose()
        granted = self.lease.granted
        self._link = await connect(granted.link, key=bytes.fromhex(granted.key), epoch=granted.epoch)
        self._stack.push_async_callback(self._link.close)
        self._runner = await self._stack.enter_async_context(running(self._link, _gone(self.lease)))

    async def close(self) -> None:
        """Hang up."""
        await self._stack.aclose()

    async def run(self, code: str) -> str:
        """Run a cell.

        Returns:
            What it printed.

        Raises:
            VMEndedError: it did not end well.
        """
        assert self._runner is not None  # nosec B101 - dialled before
        result = await self._runner.run(code, timeout=_CELL_SECONDS)
        if result.status != "ok":
            raise VMEndedError(f"The benchmark's cell failed: {result.reason or result.error}")
        return result.stdout

    async def snapshot(self) -> SnapshotInfo:
        """Take a snapshot, and wait until it is stored.

        Returns:
            What was known of it as soon as the VM ran on.
        """
        assert self._link is not None  # nosec B101 - dialled before
        async with self._link.hold():
            info = await self.supervisor.history.snapshot(self.lease, SnapshotRequest(wait_stored=False))
        async with self.lease.turn:
            return info

    async def rollback(self, to: str) -> Replaced:
        """Go back; the next cell needs a new connection."""
        await self._stack.aclose()
        return await self.supervisor.rollback(self.lease, to)

    async def filled(self) -> None:
        """Return when the pool is full and no complete memory file is being made."""
        self.supervisor.pool.fill()
        await self.supervisor.settled(self.lease)

    def own(self) -> OwnSnapshot:
        """Return the means that QEMU itself has, for the VM that the lease has now."""
        return OwnSnapshot(self.lease.vm, cast("LibvirtMachine", self.lease.vm.machine))


@asynccontextmanager
async def stage(
    wanted: Wanted, say: Say, profile: Profile | None = None, pool: Pool | None = None, max_vms: int = 0
) -> AsyncIterator[Stage]:
    """Run a supervisor in this process, with temporary folders, and lease a VM.

    Args:
        wanted: Image and profile.
        say: Told what is going on.
        profile: Resources, instead of the wanted profile's.
        pool: What to keep ready, instead of what the user has configured.
        max_vms: How many VMs there must be room for at least.
    """
    with temporary_paths() as paths:
        settings = bench_settings(load_settings(type(paths).of_user()), wanted)
        changes = {"profiles": {PROFILE: profile} if profile else settings.profiles, "pool": pool or settings.pool}
        settings = settings.model_copy(update={**changes, "max_vms": max(max_vms, settings.max_vms)})
        prepare_folders(paths)
        hypervisor = LibvirtHypervisor(settings.uri, libvirt_root(), paths.tag)
        supervisor = Supervisor(paths, settings, hypervisor)
        await supervisor.open()
        try:
            lease = await supervisor.acquire(LeaseRequest(owner="bench"), lambda step: _show(step, say))
            ours = Stage(supervisor, hypervisor, lease)
            await ours.dial()
            gc.freeze()  # as the daemon does once it serves
            try:
                yield ours
            finally:
                gc.unfreeze()
                await ours.close()
                await supervisor.release(lease)
        finally:
            await supervisor.close()


def _show(message: Message, say: Say) -> None:
    if isinstance(message, Progress):
        say(message.stage, message.done)


async def _gone(lease: Lease) -> AgentVMError:
    vm = lease.vm
    reason = await asyncio.shield(vm.ended)
    return VMEndedError(f"The VM is gone: {reason}.")
