"""The supervisor itself: it ties hypervisor, catalogue, pool and leases together."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from typing import Literal

from agentvm_kernel import __version__
from agentvm_kernel.config import Paths
from agentvm_kernel.errors import AgentVMError, LeavingError, NoForkError, NoLeaseError
from agentvm_kernel.firewall.reasons import Reason
from agentvm_kernel.observe.audit import AuditLog
from agentvm_kernel.observe.events.snapshot import SnapshotRestored, SnapshotsRepaired
from agentvm_kernel.observe.events.supervisor import ConfigurationChanged, SupervisorStarted, SupervisorStopped
from agentvm_kernel.observe.events.vm import LeaseAcquired, LeaseReleased, VMDestroyed
from agentvm_kernel.observe.metrics import Metrics
from agentvm_kernel.profiles import Limits, changed
from agentvm_kernel.settings import Settings
from agentvm_kernel.snapshots.reading import Stored
from agentvm_kernel.snapshots.store import SnapshotStore
from agentvm_kernel.supervisor.admission import Admission, Slot
from agentvm_kernel.supervisor.anomalies import Anomalies
from agentvm_kernel.supervisor.bases import Bases
from agentvm_kernel.supervisor.budget import Budget
from agentvm_kernel.supervisor.catalogue import Catalogue
from agentvm_kernel.supervisor.exposition import Exposition
from agentvm_kernel.supervisor.history import History, describe, unpin
from agentvm_kernel.supervisor.lease import Lease
from agentvm_kernel.supervisor.messages import Ended, Granted, LeaseRequest, LimitsRequest, Message, Progress
from agentvm_kernel.supervisor.networks import Networks
from agentvm_kernel.supervisor.pool import Pool
from agentvm_kernel.supervisor.present import Roster
from agentvm_kernel.supervisor.responses import Responses
from agentvm_kernel.supervisor.snapshot_messages import Replaced
from agentvm_kernel.supervisor.stats import Stats
from agentvm_kernel.supervisor.status import LeaseInfo, Status
from agentvm_kernel.supervisor.terms import Terms
from agentvm_kernel.supervisor.turns import Turns
from agentvm_kernel.supervisor.witness import Witness
from agentvm_kernel.supervisor.workspaces import Workspaces
from agentvm_kernel.tally import Tally
from agentvm_kernel.vm.accelerator import Accelerator, probe
from agentvm_kernel.vm.capture import Capturer
from agentvm_kernel.vm.clone import VM, Network, Randomness
from agentvm_kernel.vm.hypervisor import Hypervisor
from agentvm_kernel.vm.limits import enforce, enforced_by
from agentvm_kernel.vm.snapshot import Snapshot
from agentvm_kernel.vm.transport import choose_transport

_log = logging.getLogger(__name__)


class Supervisor:
    """Owns everything that outlives a request.

    Args:
        paths: The user's folders.
        settings: The configuration.
        hypervisor: Starts VMs; not yet open.
    """

    def __init__(self, paths: Paths, settings: Settings, hypervisor: Hypervisor) -> None:
        self.paths = paths
        self.settings = settings
        self._vms_folder = paths.runtime / "vm"
        self._tallies_folder = paths.runtime / "tally"
        self._began = self.now()
        self._last_release = self.now()
        self._acquiring = 0
        self.is_leaving = False
        self.released = asyncio.Condition()
        self.leases: dict[str, Lease] = {}
        self._releasing: dict[Lease, asyncio.Task[None]] = {}
        self.budget = Budget(settings.memory_share)
        self.audit = AuditLog(paths.state / "audit", settings.audit.days)
        self.metrics = Metrics(map(str, Reason))
        self._hypervisor = Witness(hypervisor, self.audit.record)
        self.workspaces = Workspaces(paths, self.audit)
        self.networks = Networks(settings.network, paths, self.audit, self.metrics)
        self.accelerator: Accelerator = "tcg"
        self.accelerator_reason = ""

    async def open(self) -> None:
        """Connect to libvirt, end what a killed predecessor left behind, and begin to serve.

        Raises:
            AgentVMError: this host cannot run VMs.
        """
        await self._choose_accelerator()
        self.audit.record(
            SupervisorStarted(
                version=__version__, pid=os.getpid(), accelerator=self.accelerator, reason=self.accelerator_reason
            )
        )
        await self._hypervisor.open()
        self._clean_up(await self._hypervisor.end_leftovers())
        await self._hypervisor.open_network()
        transport = choose_transport(self.settings.transport)
        self._catalogue = Catalogue(
            self._hypervisor, self.paths.cache, self.accelerator, transport,
            record=self.audit.record, booted=partial(self.metrics.boot, "cold"),
        )  # fmt: skip
        self.store = SnapshotStore(
            self.paths.state / "snapshots", quota=self.settings.snapshots.quota, owner=self._hypervisor.owner,
            find_golden=self._catalogue.find,
        )  # fmt: skip
        for line in await asyncio.to_thread(self.store.open):
            _log.warning("%s", line)
            self.audit.record(SnapshotsRepaired(what=line))
        self.pool = Pool(
            self._hypervisor, self._vms_folder, self.settings.pool, self.budget,
            record=self.audit.record, cloned=partial(self.metrics.boot, "clone"),
        )  # fmt: skip
        self.admission = Admission(self.settings.max_vms, self.pool.room)
        self.networks.open(self._hypervisor.reports)
        self.pool.start()
        self.turns = Turns(lambda: self.pool.leased)
        self.turns.start()
        complete = self.settings.snapshots.complete
        self.bases = Bases(self.paths.state / "memory", self.pool, self._hypervisor.owner, complete)
        self.history = History(self.store, Capturer(self._hypervisor.owner), self.bases, self.audit, self.metrics)
        self.roster = Roster(self.leases, self.pool.stocks)
        self.stats = Stats(self.roster, self.leases, self.metrics, self.paths.state, self.settings.metrics.interval)
        self.stats.start()
        slow_cpu = self.settings.anomalies.slow_cpu
        self.anomalies = Anomalies(
            self.roster, self.stats.sampler, self.networks, self.turns,
            Responses(self.history, self.turns, self.end_fork, self.audit.record, slow_cpu), self.audit.record,
            self.settings.anomalies,
        )  # fmt: skip
        self.anomalies.start()
        self.exposition = Exposition(self.metrics.exposition)
        await self.exposition.listen(self.settings.metrics.listen)

    async def close(self) -> None:
        """End every VM and disconnect."""
        await self.exposition.close()
        await self.anomalies.close()
        await self.stats.close()
        await self.admission.close()
        await self.turns.close()
        await self._catalogue.close()
        await asyncio.gather(*(self._end(lease) for lease in list(self.leases.values())))
        await asyncio.gather(*self._releasing.values())
        await self.networks.close()
        await self.history.close()
        await self.bases.close()
        await self.pool.close()
        self.store.close()
        await self._hypervisor.close()
        self.audit.record(SupervisorStopped())
        await asyncio.to_thread(self.audit.close)

    async def _end(self, lease: Lease) -> None:
        hint = "Run %vm restart for a fresh VM; on_shutdown = keep would have kept this one."
        await lease.end(Ended(code="left", reason="The supervisor was told to leave, and ended its VMs.", hint=hint))
        await self.release(lease)

    async def acquire(self, request: LeaseRequest, tell: Callable[[Message], None]) -> Lease:
        """Lease a VM.

        Args:
            request: What is wanted.
            tell: Called with each step while something has to be built or waited for, and with what concerns the lease
                later.

        Raises:
            AgentVMError: none could be had.
        """
        began = time.monotonic()
        if self.is_leaving:
            raise LeavingError("The supervisor is about to leave.", "Ask the next one, in a moment.")
        name, profile = self.settings.find_profile(request.profile)
        profile = profile.reduced(request.sizes)
        is_passing = all(profile.sizes != one.sizes for one in self.settings.known_profiles.values())
        flavour = request.image or self.settings.image
        terms = Terms(request, self.store.tree(request.notebook or request.owner), flavour, name, profile)
        network = self.networks.join(terms, tell)
        self._acquiring += 1
        try:
            golden = await self._catalogue.golden(flavour, profile, tell, is_passing=is_passing)
            if is_passing:
                await asyncio.to_thread(self._trim_catalogue, golden, frozenset(self.leases.values()))
            slot = await self.admission.enter(terms.session, request.owner, lambda text: tell(Progress(stage=text)))
            vm = await self._first_vm(terms, golden, slot, network.guest, is_passing=is_passing)
        finally:
            self._acquiring -= 1
            self._last_release = self.now()
        self.count(vm)
        network.attach(vm)
        seconds = time.monotonic() - began
        granted = self._grant(terms, vm, profile.limits, seconds * 1000)
        lease = self.leases[terms.id] = Lease(terms, vm, granted, self.audit, self.metrics, slot, tell, network)
        lease.is_stopped = lambda: self.anomalies.responses.is_paused(lease.vm.machine)
        self.metrics.acquire(seconds)
        self.audit.record(
            LeaseAcquired(
                **lease.subject, owner=request.owner, image=golden.manifest.image, profile=name,
                accelerator=self.accelerator, acquire_ms=granted.acquire_ms, version=__version__,
                hypervisor=golden.manifest.hypervisor, vcpus=profile.vcpus, memory_mib=profile.memory_mib,
                disk_gb=profile.disk_gb,
                limits=granted.limits.model_dump_json(exclude_none=True), network=network.summary,
            )
        )  # fmt: skip
        lease.restart_lifetime()
        return lease

    def _trim_catalogue(self, used: Snapshot, leases: frozenset[Lease]) -> None:
        stored = (one.snapshot.golden.id for tree in self.store.trees() for one in tree.snapshots())
        try:
            self._catalogue.trim(used, {*stored, *(lease.vm.snapshot.golden.id for lease in leases)})
        except (OSError, AgentVMError) as error:  # the next time
            _log.warning("golden snapshots that no profile has could not be removed: %s", error)

    async def _first_vm(self, terms: Terms, golden: Snapshot, slot: Slot, network: Network, *, is_passing: bool) -> VM:
        try:
            vm = await self.pool.acquire(golden, terms.resources.limits, network, is_passing=is_passing)
        except BaseException:
            slot.leave()
            raise
        slot.started()
        return vm

    def count(self, vm: VM) -> None:
        """Count what a VM moves that goes out; called before its network is attached and its session is told of it."""
        try:
            vm.tally = Tally(self._tallies_folder / vm.id)
        except OSError as error:  # its cells go without
            _log.warning("what %s moves cannot be counted: %s", vm.id, error)

    def lease(self, lease_id: str) -> Lease:
        """Return a lease by its id.

        Raises:
            NoLeaseError: there is none of that id.
        """
        if lease_id not in self.leases:
            raise NoLeaseError(f"There is no lease {lease_id!a:.40}.", "Its VM is gone; lease another.")
        return self.leases[lease_id]

    async def release(self, lease: Lease) -> None:
        """End a lease, its VM and its forks. Idempotent; goes on to its end even when its caller is cancelled."""
        task = self._releasing.get(lease)
        if task is None:
            task = self._releasing[lease] = asyncio.create_task(self._release(lease))
            task.add_done_callback(lambda _: self._releasing.pop(lease))
        await asyncio.shield(task)

    async def _release(self, lease: Lease) -> None:
        if self.leases.pop(lease.terms.id, None) is None:
            return
        lease.clear_lifetime()
        lease.executions.close()
        self.audit.record(LeaseReleased(**lease.subject, owner=lease.terms.request.owner))
        await self.networks.leave(lease)
        async with lease.turn:
            self.end_forks(lease)
            self.bases.drop(lease.terms.id)
            self.pool.retire(lease.vm)
            lease.slot.leave()
            await asyncio.to_thread(unpin, lease.terms, lease.vm.snapshot)
        self._last_release = self.now()
        async with self.released:
            self.released.notify_all()

    async def rollback(self, lease: Lease, to: str) -> Replaced:
        """Give a lease a clone of an older snapshot instead of its VM.

        Args:
            lease: The lease.
            to: Where to go; see ``RollbackRequest``.

        Raises:
            AgentVMError: that is not possible; the VM runs on.
        """
        began = time.monotonic()
        async with lease.turn, self.history.found(lease.terms, to, lease.current) as stored:
            old = lease.vm
            try:
                with self.pool.quiet():
                    await old.pause()
                    vm = await self.pool.clone(stored.snapshot, Randomness("keep"), lease.limits, lease.network.guest)
            except BaseException:
                await asyncio.to_thread(unpin, lease.terms, stored.snapshot)
                if not old.ended.done() and not lease.is_stopped():
                    await old.wake()
                raise
            self.count(vm)
            lease.network.attach(vm)
            return await self._replace(lease, vm, stored, began, "rollback")

    async def adopt(self, lease: Lease, fork: int) -> Replaced:
        """Make a resting fork the lease's VM; the other forks end.

        Args:
            lease: The lease.
            fork: The fork's number.

        Raises:
            NoForkError: there is no such fork, or it is not resting.
        """
        began = time.monotonic()
        async with lease.turn:
            chosen = lease.forks.get(fork)
            if chosen is None or not chosen.is_resting:
                known = ", ".join(str(number) for number, one in sorted(lease.forks.items()) if one.is_resting)
                raise NoForkError(
                    f"There is no fork {fork} to adopt.", f"There are: {known}." if known else "Run %%fork first."
                )
            vm = chosen.vm
            stored = await asyncio.to_thread(lease.terms.tree.find, vm.snapshot.id)
            try:
                await vm.wake(network=lease.network.guest)
            except AgentVMError:
                self.end_fork(lease, fork)
                raise
            lease.network.woken(vm)
            del lease.forks[fork]
            lease.slot.leave()
            lease.slot = chosen.slot
            replaced = await self._replace(lease, vm, stored, began, "adopt")
            self.end_forks(lease)
            return replaced

    async def _replace(
        self, lease: Lease, vm: VM, stored: Stored, began: float, kind: Literal["rollback", "adopt"]
    ) -> Replaced:
        old = lease.vm
        seconds = time.monotonic() - began
        self.metrics.restore(kind, seconds)
        granted = self._grant(lease.terms, vm, lease.limits, seconds * 1000)
        lease.take(vm, granted, stored.notes.way)
        tree = lease.terms.tree.id
        self.audit.record(SnapshotRestored(**lease.subject, before=old.id, snapshot=stored.id, tree=tree))
        await asyncio.to_thread(unpin, lease.terms, old.snapshot)
        self.pool.retire(old)
        unshared = await self.workspaces.follow(lease)
        return Replaced(granted=granted, snapshot=describe(stored), seconds=seconds, unshared=unshared)

    async def settled(self, lease: Lease) -> None:
        """Wait until nothing goes on in the background; for benchmarks and tests."""
        async with lease.turn:
            await self.bases.settled()
        await self.pool.filled()

    def end_forks(self, lease: Lease) -> None:
        """End all forks of a lease."""
        for number in list(lease.forks):
            self.end_fork(lease, number)

    def end_fork(self, lease: Lease, number: int) -> None:
        """End one fork; nothing happens if there is none of that number."""
        fork = lease.forks.pop(number, None)
        if fork is not None:
            fork.settled.set()
            unpin(lease.terms, fork.vm.snapshot)
            self.pool.retire(fork.vm)
            fork.slot.leave()

    async def set_limits(self, lease: Lease, request: LimitsRequest) -> Limits:
        """Change limits of a lease; they hold for its VM now and for those that take its place.

        Args:
            lease: The lease.
            request: What changes.

        Returns:
            All limits that hold now.

        Raises:
            LimitError: there is no such limit, or no such value.
            StoppedError: the VM is stopped.
            AgentVMError: the guest did not confirm.
        """
        async with lease.turn:
            lease.check_runs()
            limits = changed(lease.limits, request.changes)
            if self.anomalies.responses.is_slowed(lease.vm.machine):
                await lease.vm.limit(limits)  # the host's side is put on when it is not slowed down any more
            else:
                await asyncio.gather(enforce(lease.vm.machine, limits), lease.vm.limit(limits))
            lease.limits = limits
        self.audit.record(ConfigurationChanged(**lease.subject, what=f"limits: {request.changes}"))
        lease.restart_lifetime()
        return limits

    @staticmethod
    def now() -> float:
        """Return seconds on the clock that ``idle_since`` uses."""
        return time.monotonic()

    def idle_since(self) -> float | None:
        """Return since when no VM has been out or asked for; ``None`` while one is."""
        return None if self.leases or self._acquiring else self._last_release

    def status(self) -> Status:
        """Return what ``GET /v1/status`` shows."""
        return Status(
            version=__version__, pid=os.getpid(), uptime=self.now() - self._began, libvirt=self.settings.uri,
            accelerator=self.accelerator, accelerator_reason=self.accelerator_reason, ready=self.pool.stocks.counts(),
            leases=tuple(map(_describe, self.leases.values())), enforced_by=enforced_by(self.settings.uri),
        )  # fmt: skip

    @property
    def qemu_owner(self) -> tuple[int, int] | None:
        """The user under which QEMU runs, if another."""
        return self._hypervisor.owner

    def grant(self, lease: Lease, vm: VM, acquire_ms: float) -> Granted:
        """Return what a session is told of a VM, maybe of a fork."""
        return self._grant(lease.terms, vm, lease.limits, acquire_ms)

    def _grant(self, terms: Terms, vm: VM, limits: Limits, acquire_ms: float) -> Granted:
        profile = terms.resources
        return Granted(
            lease=terms.id, snapshot="" if vm.snapshot.parent is None else vm.snapshot.id,
            vm=vm.id, epoch=vm.epoch, key=vm.key.hex(), link=vm.link, image=vm.snapshot.golden.manifest.image,
            flavour=terms.flavour, profile=terms.profile, vcpus=profile.vcpus, memory_mib=profile.memory_mib,
            disk_gb=profile.disk_gb, accelerator=self.accelerator, pid=vm.pid, acquire_ms=acquire_ms,
            limits=limits, record_code=self.settings.audit.code, tally="" if vm.tally is None else str(vm.tally.path),
        )  # fmt: skip

    async def _choose_accelerator(self) -> None:
        if self.settings.accelerator == "auto":
            found = await probe()
            self.accelerator, self.accelerator_reason = found.accelerator, found.reason
        else:
            self.accelerator, self.accelerator_reason = self.settings.accelerator, "set in the configuration"

    def _clean_up(self, ended: list[str]) -> None:
        if ended:
            _log.warning("ended %d VMs that an earlier supervisor left behind: %s", len(ended), ", ".join(ended))
            for name in ended:
                self.audit.record(VMDestroyed(vm=name, reason="left behind by an earlier supervisor"))
        if self._vms_folder.exists():
            shutil.rmtree(self._vms_folder)
        self._vms_folder.mkdir(mode=0o711, parents=True)
        shutil.rmtree(self._tallies_folder, ignore_errors=True)
        self._tallies_folder.mkdir(mode=0o700)


def _describe(lease: Lease) -> LeaseInfo:
    hypervisor = lease.vm.snapshot.golden.manifest.hypervisor
    return LeaseInfo.of(lease.granted, lease.terms.request, network=lease.network.summary, hypervisor=hypervisor)
