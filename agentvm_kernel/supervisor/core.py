"""The supervisor itself: it ties hypervisor, catalogue, pool and leases together."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import time
from pathlib import Path

from agentvm_kernel import __version__
from agentvm_kernel.config import Paths, Profile, Settings
from agentvm_kernel.errors import AgentVMError
from agentvm_kernel.observe.audit import AuditLog
from agentvm_kernel.supervisor.catalogue import Catalogue, OnProgress
from agentvm_kernel.supervisor.messages import Ended, Granted, LeaseRequest
from agentvm_kernel.supervisor.pool import Pool
from agentvm_kernel.vm.accelerator import Accelerator, probe
from agentvm_kernel.vm.clone import VM
from agentvm_kernel.vm.hypervisor import Hypervisor
from agentvm_kernel.vm.spec import Transport

_log = logging.getLogger(__name__)

VHOST_VSOCK = Path("/dev/vhost-vsock")


class Lease:
    """A session's exclusive right to a VM.

    Attributes:
        vm: The VM.
        request: What was asked for.
        granted: What the session was told.
    """

    def __init__(self, vm: VM, request: LeaseRequest, granted: Granted, audit: AuditLog) -> None:
        self.vm = vm
        self.request = request
        self.granted = granted
        self._audit = audit
        self._guest_reason = ""
        self._refusals = 0
        vm.on_event = self._on_guest_event

    async def ended(self) -> Ended:
        """Wait until the VM is gone and say why."""
        reason = await asyncio.shield(self.vm.ended)
        return Ended(
            code="vm_ended",
            reason=f"{self._guest_reason or reason[:1].upper() + reason[1:]}.",
            hint="Restart the kernel, or run %vm restart, for a fresh VM.",
        )

    def _on_guest_event(self, event: dict[str, object]) -> None:
        """Take note of what the guest says of itself; nothing here may grow with what it sends."""
        match event.get("event"):
            case "agent_died":
                self._guest_reason = f"The guest agent inside the VM was killed (signal {event.get('signal')!s:.8})"
            case "link_refused":
                self._refusals += 1
                if self._refusals & (self._refusals - 1) == 0:  # 1, 2, 4, 8 …: a flood must not fill the log
                    self._audit.record(
                        "link_refused", vm=self.vm.id, reason=str(event.get("reason")), count=self._refusals
                    )


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
        self.leases: set[Lease] = set()
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
        self.pool = Pool(self._hypervisor, self._vms_folder, self._settings.pool)
        self.pool.start()

    async def close(self) -> None:
        """End every VM and disconnect."""
        await self._catalogue.close()
        await self.pool.close()
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
        granted = self._grant(vm, flavour, name, profile, (time.monotonic() - began) * 1000)
        lease = Lease(vm, request, granted, self.audit)
        self.leases.add(lease)
        self.audit.record(
            "lease_acquired", vm=vm.id, owner=request.owner, image=snapshot.manifest.image, profile=name,
            accelerator=self.accelerator,
        )  # fmt: skip
        return lease

    async def release(self, lease: Lease) -> None:
        """End a lease and its VM."""
        self.leases.discard(lease)
        self.audit.record("lease_released", vm=lease.vm.id, owner=lease.request.owner)
        await self.pool.release(lease.vm)
        self._last_release = self.now()

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
                lease.granted.model_dump(exclude={"key", "event"}) | {"owner": lease.request.owner}
                for lease in self.leases
            ],
        }

    def _grant(self, vm: VM, flavour: str, name: str, profile: Profile, acquire_ms: float) -> Granted:
        return Granted(
            vm=vm.id, epoch=vm.epoch, key=vm.key.hex(), link=vm.link, image=vm.snapshot.manifest.image,
            flavour=flavour, profile=name, vcpus=profile.vcpus, memory_mib=profile.memory_mib,
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
