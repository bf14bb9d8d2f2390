"""``Hypervisor`` over libvirt."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from contextlib import suppress
from pathlib import Path

import libvirt

from agentvm_kernel.errors import HostError, HypervisorError
from agentvm_kernel.vm.accelerator import QEMU
from agentvm_kernel.vm.cgroup import Subtree, find_subtree, remove_tree
from agentvm_kernel.vm.domain import domain_xml
from agentvm_kernel.vm.hypervisor import Hypervisor
from agentvm_kernel.vm.libvirt_connection import CGROUPS, EMBED, DomainGoneError, LibvirtConnection, qemu_owner
from agentvm_kernel.vm.libvirt_machine import LibvirtMachine
from agentvm_kernel.vm.libvirt_nat import LibvirtNat
from agentvm_kernel.vm.nice import NICE_READY, set_nice
from agentvm_kernel.vm.processes import clear_root, pid_of
from agentvm_kernel.vm.reaper import Reaper, become_subreaper, describe_status
from agentvm_kernel.vm.spec import DomainSpec

_log = logging.getLogger(__name__)

DOMAIN_PREFIX = "agentvm-"
_KEPT_LOGS = 20
_REMOVAL_FAILED = libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVAL_FAILED

_STOPPED_REASONS = {
    libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN: "the VM powered itself off",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED: "the VM was destroyed",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED: "the VM's kernel panicked",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED: "QEMU died",
}


class LibvirtHypervisor(Hypervisor):
    """QEMU through libvirt.

    Args:
        uri: ``embed``, ``qemu:///session`` or ``qemu:///system``.
        root: Folder for the embedded driver's state.
        user_tag: Goes into domain names, so that several users of one system daemon do not end each other's VMs.
        nat: Make a network for VMs' cards; only with ``qemu:///system``, and a tag of 8 hexadecimal digits.
    """

    def __init__(self, uri: str, root: Path, user_tag: str = "", *, nat: bool = False) -> None:
        self._connection = LibvirtConnection(uri, root)
        self._is_embedded = uri == EMBED
        self._root = root
        self._logs = root / "log" / "qemu"
        self._left: list[str] = []
        self._owner = qemu_owner(uri)
        self._prefix = f"{DOMAIN_PREFIX}{user_tag or os.geteuid()}-"
        self._nat = LibvirtNat(self._connection, user_tag) if nat else None
        self._machines: dict[str, LibvirtMachine] = {}
        self._reaper = Reaper(self._on_reaped, self._unreaped)
        self._reaped: dict[int, str] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._subtree: Subtree | None = None

    @property
    def owner(self) -> tuple[int, int] | None:
        """See ``Hypervisor.owner``."""
        return self._owner

    async def open(self) -> None:
        """Connect, and begin to hear of domains that end."""
        self._loop = asyncio.get_running_loop()
        _check_qemu()
        if self._is_embedded:
            become_subreaper()
            self._reaper.start()
            self._left = await asyncio.to_thread(clear_root, self._root)
        await self._connection.open()
        if self._is_embedded:
            await asyncio.to_thread(self._remove_old_logs)
        handle = self._connection.handle
        await self._connection.call(
            handle.domainEventRegisterAny, None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._on_lifecycle, None
        )

        for number, is_gone in ((libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, True), (_REMOVAL_FAILED, False)):
            if self._nat is not None:
                register = handle.domainEventRegisterAny
                await self._connection.call(register, None, number, self._on_removal, is_gone)

    @property
    def reports(self) -> int | None:
        """See ``Hypervisor.reports``."""
        return self._nat.reports if self._nat is not None else None

    async def open_network(self) -> None:
        """Make the network for cards, if one is configured."""
        if self._nat is not None:
            await self._nat.open()

    def _remove_old_logs(self) -> None:
        logs = sorted(self._logs.glob(f"{self._prefix}*.log"), key=lambda path: path.stat().st_mtime)
        for path in logs[:-_KEPT_LOGS]:
            path.unlink()

    async def close(self) -> None:
        """Remove the network for cards, and disconnect."""
        try:
            if self._nat is not None and self._connection.is_open:
                await self._nat.close()
        finally:
            await self._connection.close()
        if self._is_embedded:
            self._reaper.stop()

    async def version(self) -> str:
        """Return QEMU's and libvirt's versions."""
        handle = self._connection.handle
        qemu = await self._connection.call(handle.getVersion)
        library = await self._connection.call(handle.getLibVersion)
        return f"qemu {_dotted(qemu)}, libvirt {_dotted(library)}"

    async def start(self, spec: DomainSpec) -> LibvirtMachine:
        """Start a domain, paused."""
        if not spec.name.startswith(self._prefix):
            raise HypervisorError(f"The domain name {spec.name!r} does not begin with {self._prefix!r}.")
        if self._owner is not None and self._owner[0] == os.geteuid():
            _share_with_daemon(spec)
        flags = libvirt.VIR_DOMAIN_START_PAUSED
        handle = self._connection.handle
        try:
            domain = await self._connection.call(handle.createXML, domain_xml(spec), flags, start=True)
        except HypervisorError:
            _check_qemu()  # libvirt's words for that say nothing of QEMU
            raise
        pid = await asyncio.to_thread(pid_of, domain.name())
        machine = LibvirtMachine(self._connection, domain, spec, pid, self._subtree, self._nat)
        set_nice(pid, NICE_READY)
        self._machines[spec.name] = machine
        machine.ended.add_done_callback(lambda _: self._forget(machine))
        try:
            await machine.connect()
        except BaseException:
            await machine.end()
            raise
        return machine

    async def domain_stats(self) -> int:
        """Ask libvirt for its statistics of all domains, and return of how many; for benchmarks: it takes its time."""
        return len(await self._connection.call(self._connection.handle.getAllDomainStats))

    def _forget(self, machine: LibvirtMachine) -> None:
        name = machine.spec.name
        self._machines.pop(name, None)
        if self._is_embedded and machine.was_ended:
            # Libvirt keeps QEMU's messages for ever: those of one that ended by itself are worth reading.
            (self._logs / f"{name}.log").unlink(missing_ok=True)

    def domain_name(self, vm: str) -> str:
        """Return the domain name for a VM id."""
        return self._prefix + vm

    async def end_leftovers(self) -> list[str]:
        """End every domain of this user's that is there already."""
        domains = await self._connection.call(self._connection.handle.listAllDomains)
        by_name = {domain.name(): domain for domain in domains}
        left = [name for name in by_name if name.startswith(self._prefix) and name not in self._machines]
        # Each takes up to two seconds: libvirt waits until somebody has reaped the process.
        await asyncio.gather(*(self._destroy(by_name[name]) for name in left))
        self._prepare_cgroups()
        return sorted({*left, *self._left})

    def _prepare_cgroups(self) -> None:
        """Get ready to limit machines; remove the groups of those whose QEMU was gone before they could be ended."""
        if self._connection.has_cgroups:
            for group in CGROUPS.glob(f"*/machine/qemu-*-{self._prefix}*.libvirt-qemu"):
                remove_tree(group)
            return
        try:
            subtree = find_subtree()
            subtree.prepare()
        except OSError as error:
            _log.info("no limits by cgroup: %s", error)
            return
        self._subtree = subtree
        subtree.sweep(self._prefix)

    async def _destroy(self, domain: libvirt.virDomain) -> None:
        with suppress(DomainGoneError):
            await self._connection.call(domain.destroy)

    def _unreaped(self) -> list[int]:
        return [machine.pid for machine in self._machines.values() if not machine.reaped_as]

    def _on_reaped(self, pid: int, status: int) -> None:
        for machine in self._machines.values():
            if machine.pid == pid:
                machine.reaped_as = describe_status(status)

    def _on_lifecycle(self, _conn: object, domain: libvirt.virDomain, event: int, detail: int, _opaque: object) -> None:
        """Libvirt's callback, in its event thread."""
        if event == libvirt.VIR_DOMAIN_EVENT_STOPPED and self._loop is not None:
            self._loop.call_soon_threadsafe(self._stopped, domain.name(), detail)

    def _on_removal(self, _conn: object, domain: libvirt.virDomain, alias: str, is_gone: bool) -> None:
        """Libvirt's callback, in its event thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._removed, domain.name(), alias, is_gone)

    def _removed(self, name: str, alias: str, is_gone: bool) -> None:
        if name in self._machines:
            self._machines[name].on_unplugged(alias, is_gone=is_gone)

    def _stopped(self, name: str, detail: int) -> None:
        machine = self._machines.get(name)
        if machine is None:
            return
        reason = _STOPPED_REASONS.get(detail, f"libvirt stopped the VM (detail {detail})")
        if detail == libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED and machine.reaped_as:
            reason = f"QEMU {machine.reaped_as}"
        machine.on_stopped(reason)


def _check_qemu() -> None:
    """See that libvirt can find QEMU, which it looks for by its name.

    Raises:
        HostError: it cannot.
    """
    if shutil.which(QEMU) is None:
        raise HostError(f"{QEMU} is not installed.", "Run `agentvm setup`.")


def _share_with_daemon(spec: DomainSpec) -> None:
    """Keep what the system daemon, which is root, makes in an ordinary user's folder accessible to that user."""
    # It makes the sockets writable for their group, and in a setgid folder that is the folder's.
    spec.folder.chmod(0o2700)
    if spec.boot is not None:
        # It would make the console for root alone, but appends to one that is there.
        spec.console.touch(mode=0o600)


def _dotted(version: int) -> str:
    return f"{version // 1_000_000}.{version // 1000 % 1000}.{version % 1000}"
