"""What the supervisor's VMs use: measured for all of them at once, told to clients and to Prometheus."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from agentvm_kernel.errors import AgentVMError
from agentvm_kernel.observe.curves import FOLDER, Curves, Moment
from agentvm_kernel.observe.metrics import Labelled, Metrics
from agentvm_kernel.observe.sample import Sample
from agentvm_kernel.observe.sampler import Sampler
from agentvm_kernel.observe.watch import Known
from agentvm_kernel.snapshots.tree import Tree
from agentvm_kernel.supervisor.emit import Emit
from agentvm_kernel.supervisor.lease import Lease
from agentvm_kernel.supervisor.present import Present, Roster
from agentvm_kernel.supervisor.stats_messages import MOST_HOSTS, Moved, VMStats
from agentvm_kernel.vm.hypervisor import Machine

_log = logging.getLogger(__name__)

_SIZE_SECONDS: Final = 10.0


class Stats:
    """Measures a supervisor's VMs.

    Args:
        roster: The VMs.
        leases: The leases, by their ids.
        metrics: Show them.
        state: The user's folder for what stays.
        interval: Seconds between two looks.
    """

    def __init__(
        self, roster: Roster, leases: Mapping[str, Lease], metrics: Metrics, state: Path, interval: float
    ) -> None:
        self._roster = roster
        self._leases = leases
        self._sizes: dict[str, int] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._curves = Curves(state / FOLDER)
        self.sampler = Sampler(self.subjects, interval)
        metrics.observe(self._labelled, self._pool)

    def start(self) -> None:
        """Begin."""
        self.sampler.start()
        self._tasks = [
            asyncio.create_task(self._size_trees(), name="snapshot-sizes"),
            asyncio.create_task(self._tell_tallies(), name="tallies"),
            asyncio.create_task(self._keep_curves(), name="curves"),
        ]

    async def close(self) -> None:
        """End."""
        await self.sampler.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def tell(self, lease: str | None, emit: Emit, *, follow: bool) -> None:
        """Tell of what VMs use: of a lease's all that is remembered, of all of them the newest; then what comes.

        Who listens too slowly is told less often.

        Args:
            lease: Id of the lease; ``None`` for all VMs.
            emit: Is told.
            follow: Go on, as long as there is such a lease.
        """
        await self.sampler.fresh()
        for one in self._present(lease):
            samples = self.sampler.history(one.id) if lease is not None else self._newest(one)
            for sample in samples:
                emit(_stats(one, sample))
        while follow and (lease is None or lease in self._leases):
            await emit.sent()
            await self.sampler.next_look()
            for one in self._present(lease):
                for sample in self._newest(one):
                    emit(_stats(one, sample))

    async def now(self) -> Mapping[str, Sample]:
        """Return what each VM uses now, by its id."""
        return await self.sampler.fresh()

    async def moved(self, lease: Lease, since: float) -> Moved:
        """Return what a lease's VM has moved up to now, as far as its tally does not tell it.

        Args:
            lease: The lease.
            since: When hosts are told of that it has spoken with, seconds on the monotonic clock.
        """
        vm = lease.vm
        disk, is_stale = await self.sampler.traffic(vm.machine)
        if vm.tally is not None:
            vm.tally.disk(disk.read, disk.written)
        hosts = lease.network.hosts(vm, since)
        return Moved(
            vm=vm.id, disk_read=disk.read, disk_written=disk.written, stale=is_stale, hosts=tuple(hosts[-MOST_HOSTS:]),
            host_count=len(hosts),
        )  # fmt: skip

    async def _tell_tallies(self) -> None:
        """Tell the tallies what the VMs' disks have moved, whenever that has been measured."""
        while True:
            await self.sampler.next_look()
            latest = self.sampler.latest
            for one in self._roster:
                if one.vm is not None and one.vm.tally is not None and (sample := latest.get(one.id)) is not None:
                    one.vm.tally.disk(int(sample.disk_read), int(sample.disk_written))

    async def _keep_curves(self) -> None:
        """Write down, for reports, what sessions' own VMs have used, whenever that has been measured."""
        while True:
            await self.sampler.next_look()
            latest = self.sampler.latest
            moments = [
                Moment.of(sample, one.lease_id, one.id)
                for one in self._roster
                if one.state == "leased" and (sample := latest.get(one.id)) is not None
            ]
            await asyncio.to_thread(self._curves.take, moments)

    def _present(self, lease: str | None) -> Iterator[Present]:
        return (one for one in self._roster if lease is None or one.lease_id == lease)

    def _newest(self, one: Present) -> list[Sample]:
        sample = self.sampler.latest.get(one.id)
        return [] if sample is None else [sample]

    def subjects(self) -> Iterator[tuple[Machine, Known]]:
        """Return all VMs for the sampler, with what is known of them without measuring."""
        for one in self._roster:
            if one.vm is None or one.lease is None:
                yield one.machine, Known()
                continue
            counters, open_now = one.lease.network.use(one.vm)
            yield one.machine, Known(
                is_running=one.state != "resting",
                executing=one.state == "fork" or (one.state == "leased" and one.lease.executions.are_running),
                network_sent=counters.bytes_sent, network_received=counters.bytes_received, connections=open_now,
                allowed=counters.allowed, refused=counters.refused,
                snapshots=self._sizes.get(one.lease.terms.tree.id, 0),
            )  # fmt: skip

    async def _size_trees(self) -> None:
        """Look now and then how much the snapshots of each notebook take that has a VM."""
        while True:
            trees = {lease.terms.tree.id: lease.terms.tree for lease in self._leases.values()}
            self._sizes = await asyncio.to_thread(_sizes, list(trees.values()))
            began = time.monotonic()
            while time.monotonic() - began < _SIZE_SECONDS:
                await self.sampler.next_look()

    def _labelled(self) -> Iterator[Labelled]:
        """Return the VMs for Prometheus."""
        latest = self.sampler.latest
        for one in self._roster:
            if (sample := latest.get(one.id)) is not None:
                terms = one.lease.terms if one.lease is not None else None
                yield Labelled(one.id, terms.profile if terms else "", terms.flavour if terms else "", sample)

    def _pool(self) -> dict[str, int]:
        """Return how many VMs and blanks there are, by kind."""
        counts = dict.fromkeys(("leased", "fork", "resting", "warm", "blank"), 0)
        for one in self._roster:
            counts[one.state] += 1
        return counts


def _stats(one: Present, sample: Sample) -> VMStats:
    return VMStats.of(sample, one.id, one.lease_id, one.state)


def _sizes(trees: list[Tree]) -> dict[str, int]:
    sizes = {}
    for tree in trees:
        try:
            sizes[tree.id] = tree.contents().size
        except (AgentVMError, OSError) as error:
            _log.info("the snapshots of %r cannot be measured: %s", tree.notebook, error)
    return sizes
