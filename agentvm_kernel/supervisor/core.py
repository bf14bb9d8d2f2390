"""The supervisor itself: it ties hypervisor, catalogue, pool and leases together."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import time
from pathlib import Path

from agentvm_kernel import __version__
from agentvm_kernel.config import Paths, Settings
from agentvm_kernel.errors import AgentVMError, SnapshotError, SupervisorError
from agentvm_kernel.observe.audit import AuditLog
from agentvm_kernel.snapshots.reading import Stored
from agentvm_kernel.snapshots.store import SnapshotStore
from agentvm_kernel.supervisor.bases import Bases
from agentvm_kernel.supervisor.catalogue import Catalogue, OnProgress
from agentvm_kernel.supervisor.history import History, describe, unpin
from agentvm_kernel.supervisor.lease import Lease, Terms
from agentvm_kernel.supervisor.messages import Granted, LeaseRequest, Replaced
from agentvm_kernel.supervisor.pool import Pool
from agentvm_kernel.vm.accelerator import Accelerator, probe
from agentvm_kernel.vm.capture import Capturer
from agentvm_kernel.vm.clone import VM, Randomness
from agentvm_kernel.vm.hypervisor import Hypervisor
from agentvm_kernel.vm.spec import Transport

_log = logging.getLogger(__name__)

VHOST_VSOCK = Path("/dev/vhost-vsock")


class Supervisor:
    """Owns everything that outlives a request.

    Args:
        paths: The user's folders.
        settings: The configuration.
        hypervisor: Starts VMs; not yet open.
    """

    def __init__(self, paths: Paths, settings: Settings, hypervisor: Hypervisor) -> None:
        self._paths = paths
        self._settings = settings
        self._vms_folder = paths.runtime / "vm"
        self._hypervisor = hypervisor
        self._began = time.time()
        self._last_release = self.now()
        self._acquiring = 0
        self.leases: dict[str, Lease] = {}
        self.audit = AuditLog(paths.state / "audit.jsonl")
        self.accelerator: Accelerator = "tcg"
        self.accelerator_reason = ""

    async def open(self) -> None:
        """Connect to libvirt, end what a killed predecessor left behind, and begin to serve.

        Raises:
            AgentVMError: this host cannot run VMs.
        """
        await self._choose_accelerator()
        await self._hypervisor.open()
        self._clean_up(await self._hypervisor.end_leftovers())
        transport = choose_transport(self._settings.transport)
        self._catalogue = Catalogue(self._hypervisor, self._paths.cache, self.accelerator, transport)
        self._store = SnapshotStore(
            self._paths.state / "snapshots", quota=self._settings.snapshots.quota, owner=self._hypervisor.owner,
            find_golden=self._catalogue.find,
        )  # fmt: skip
        for line in await asyncio.to_thread(self._store.open):
            _log.warning("%s", line)
            self.audit.record("snapshots_repaired", what=line)
        self.pool = Pool(self._hypervisor, self._vms_folder, self._settings.pool)
        self.pool.start()
        limit = int(self._settings.snapshots.complete_gb * 10**9)
        self._bases = Bases(self._paths.state / "memory", self.pool, self._hypervisor.owner, limit)
        self.history = History(self._store, Capturer(self._hypervisor.owner), self._bases, self.audit)

    async def close(self) -> None:
        """End every VM and disconnect."""
        await self._catalogue.close()
        await self.history.close()
        await self._bases.close()
        await self.pool.close()
        self._store.close()
        await self._hypervisor.close()
        self.audit.close()

    async def acquire(self, request: LeaseRequest, on_progress: OnProgress) -> Lease:
        """Lease a VM.

        Args:
            request: What is wanted.
            on_progress: Called with each step while something has to be built.

        Raises:
            AgentVMError: none could be had.
        """
        began = time.monotonic()
        name, profile = self._settings.find_profile(request.profile)
        flavour = request.image or self._settings.image
        self._acquiring += 1
        try:
            snapshot = await self._catalogue.golden(flavour, profile, on_progress)
            vm = await self.pool.acquire(snapshot)
        finally:
            self._acquiring -= 1
            self._last_release = self.now()
        tree = self._store.tree(request.notebook or request.owner)
        terms = Terms(request, tree, flavour, name, profile)
        granted = self._grant(terms, vm, (time.monotonic() - began) * 1000)
        lease = Lease(terms, vm, granted, self.audit)
        self.leases[terms.id] = lease
        self.audit.record(
            "lease_acquired", vm=vm.id, owner=request.owner, image=snapshot.manifest.image, profile=name,
            accelerator=self.accelerator,
        )  # fmt: skip
        return lease

    def lease(self, lease_id: str) -> Lease:
        """Return a lease by its id.

        Raises:
            SupervisorError: there is none of that id.
        """
        if lease_id not in self.leases:
            raise SupervisorError(f"There is no lease {lease_id!r:.40}.", "Its notebook's VM is gone.")
        return self.leases[lease_id]

    async def release(self, lease: Lease) -> None:
        """End a lease, its VM and its forks."""
        self.leases.pop(lease.terms.id, None)
        self.audit.record("lease_released", vm=lease.vm.id, owner=lease.terms.request.owner)
        async with lease.turn:
            self.end_forks(lease)
            self._bases.drop(lease.terms.id)
            await self.pool.release(lease.vm)
            await asyncio.to_thread(unpin, lease, lease.vm.snapshot)
        self._last_release = self.now()

    async def rollback(self, lease: Lease, to: str) -> Replaced:
        """Give a lease a clone of an older snapshot instead of its VM.

        Args:
            lease: The lease.
            to: Where to go; see ``RollbackRequest``.

        Raises:
            AgentVMError: that is not possible; the VM runs on.
        """
        began = time.monotonic()
        async with lease.turn, self.history.found(lease, to) as stored:
            old = lease.vm
            try:
                with self.pool.quiet():
                    await old.pause()
                    vm = await self.pool.clone(stored.snapshot, Randomness("keep"))
            except BaseException:
                await asyncio.to_thread(unpin, lease, stored.snapshot)
                if not old.ended.done():
                    await old.wake()
                raise
            return await self._replace(lease, vm, stored, began)

    async def adopt(self, lease: Lease, fork: int) -> Replaced:
        """Make a resting fork the lease's VM; the other forks end.

        Args:
            lease: The lease.
            fork: The fork's number.

        Raises:
            SnapshotError: there is no such fork, or it is not resting.
        """
        began = time.monotonic()
        async with lease.turn:
            chosen = lease.forks.get(fork)
            if chosen is None or not chosen.is_resting:
                known = ", ".join(str(number) for number, one in sorted(lease.forks.items()) if one.is_resting)
                raise SnapshotError(
                    f"There is no fork {fork} to adopt.", f"There are: {known}." if known else "Run %%fork first."
                )
            vm = chosen.vm
            stored = await asyncio.to_thread(lease.terms.tree.find, vm.snapshot.id)
            try:
                await vm.wake()
            except AgentVMError:
                self.end_fork(lease, fork)
                raise
            del lease.forks[fork]
            replaced = await self._replace(lease, vm, stored, began)
            self.end_forks(lease)
            return replaced

    async def _replace(self, lease: Lease, vm: VM, stored: Stored, began: float) -> Replaced:
        old = lease.vm
        seconds = time.monotonic() - began
        granted = self._grant(lease.terms, vm, seconds * 1000)
        lease.take(vm, granted)
        self.audit.record("snapshot_restored", vm=vm.id, before=old.id, snapshot=stored.id, tree=lease.terms.tree.id)
        await asyncio.to_thread(unpin, lease, old.snapshot)
        self.pool.retire(old)
        return Replaced(granted=granted, snapshot=describe(stored), seconds=seconds)

    async def settled(self, lease: Lease) -> None:
        """Wait until nothing goes on in the background; for benchmarks and tests."""
        async with lease.turn:
            await self._bases.settled()
        await self.pool.wait_all_filled()

    def end_forks(self, lease: Lease) -> None:
        """End all forks of a lease."""
        for number in list(lease.forks):
            self.end_fork(lease, number)

    def end_fork(self, lease: Lease, number: int) -> None:
        """End one fork; nothing happens if there is none of that number."""
        fork = lease.forks.pop(number, None)
        if fork is not None:
            fork.settled.set()
            unpin(lease, fork.vm.snapshot)
            self.pool.retire(fork.vm)

    @staticmethod
    def now() -> float:
        """Return seconds on the clock that ``idle_since`` uses."""
        return time.monotonic()

    def idle_since(self) -> float | None:
        """Return since when no VM has been out or asked for; ``None`` while one is."""
        return None if self.leases or self._acquiring else self._last_release

    def status(self) -> dict[str, object]:
        """Return what ``GET /v1/status`` shows."""
        return {
            "version": __version__,
            "pid": os.getpid(),
            "uptime": time.time() - self._began,
            "libvirt": self._settings.uri,
            "accelerator": self.accelerator,
            "accelerator_reason": self.accelerator_reason,
            "ready": self.pool.counts(),
            "leases": [
                lease.granted.model_dump(exclude={"key", "event"}) | {"owner": lease.terms.request.owner}
                for lease in self.leases.values()
            ],
        }

    def grant(self, lease: Lease, vm: VM, acquire_ms: float) -> Granted:
        """Return what a session is told of a VM, maybe of a fork."""
        return self._grant(lease.terms, vm, acquire_ms)

    def _grant(self, terms: Terms, vm: VM, acquire_ms: float) -> Granted:
        profile = terms.resources
        return Granted(
            lease=terms.id, snapshot="" if vm.snapshot.parent is None else vm.snapshot.id,
            vm=vm.id, epoch=vm.epoch, key=vm.key.hex(), link=vm.link, image=vm.snapshot.golden.manifest.image,
            flavour=terms.flavour, profile=terms.profile, vcpus=profile.vcpus, memory_mib=profile.memory_mib,
            disk_gb=profile.disk_gb, accelerator=self.accelerator, pid=vm.pid, acquire_ms=acquire_ms,
        )  # fmt: skip

    async def _choose_accelerator(self) -> None:
        if self._settings.accelerator == "auto":
            found = await probe()
            self.accelerator, self.accelerator_reason = found.accelerator, found.reason
        else:
            self.accelerator, self.accelerator_reason = self._settings.accelerator, "set in the configuration"

    def _clean_up(self, ended: list[str]) -> None:
        if ended:
            _log.warning("ended %d VMs that an earlier supervisor left behind: %s", len(ended), ", ".join(ended))
            for name in ended:
                self.audit.record("vm_destroyed", vm=name, reason="left behind by an earlier supervisor")
        if self._vms_folder.exists():
            shutil.rmtree(self._vms_folder)
        self._vms_folder.mkdir(mode=0o711, parents=True)


def choose_transport(wanted: str, device: Path = VHOST_VSOCK) -> Transport:
    """Return what carries the link on this host.

    Args:
        wanted: ``auto``, ``vsock`` or ``serial``.
        device: The vhost-vsock device.

    Raises:
        AgentVMError: vsock is wanted and not there.
    """
    usable = _can_open(device)
    if wanted == "vsock" and not usable:
        raise AgentVMError(
            f"vsock is configured, but {device} cannot be opened.",
            "Load the module (`modprobe vhost_vsock`) and join the group kvm, or set transport to auto.",
        )
    return Transport.SERIAL if wanted == "serial" or not usable else Transport.VSOCK


def _can_open(device: Path) -> bool:
    """Say whether a device can be opened; its node may be there without its module."""
    try:
        with device.open("r+b", buffering=0):
            return True
    except OSError:
        return False
