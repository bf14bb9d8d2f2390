"""What an administrator can see and do: VMs, pool, configuration, the supervisor's end."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Final

from agentvm_kernel.config import load_settings
from agentvm_kernel.errors import RequestError, SupervisorError
from agentvm_kernel.observe.claims import Claims
from agentvm_kernel.observe.events.supervisor import ConfigurationChanged
from agentvm_kernel.observe.sample import Sample
from agentvm_kernel.settings import Settings
from agentvm_kernel.supervisor.core import Supervisor
from agentvm_kernel.supervisor.messages import Ended, Leaving
from agentvm_kernel.supervisor.operator_messages import DiskCopied, DiskRequest, Held, PoolInfo, Resumed, VMInfo, VMList
from agentvm_kernel.supervisor.present import Present
from agentvm_kernel.vm.disk_copy import copy_disk

# What is made with these when the supervisor starts stays as it is.
_FROM_THE_NEXT_START: Final = frozenset({"uri", "accelerator", "transport"})
_KEEP_SECONDS: Final = 60.0


class NoVMError(SupervisorError):
    """There is no VM of that id."""

    code = "no_vm"


class Operator:
    """The administrator's side of a supervisor.

    Args:
        supervisor: It.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    async def vms(self) -> VMList:
        """Return all VMs, with what they use."""
        samples = await self._supervisor.stats.now()
        claims, responses = self._supervisor.anomalies.claims, self._supervisor.anomalies.responses
        return VMList(
            vms=tuple(
                _describe(one, samples.get(one.id), claims.of(one.machine), responses.of(one.machine))
                for one in self._supervisor.roster
            )
        )

    def pool_info(self) -> PoolInfo:
        """Return what is ready, who waits and why."""
        supervisor = self._supervisor
        admission, pool = supervisor.admission, supervisor.pool
        pool.plan()
        return PoolInfo(
            stocks=pool.stocks.describe(), out=admission.out, max_vms=admission.most, room=pool.room(),
            waiting=admission.waiting, drained=pool.stocks.is_drained,
        )  # fmt: skip

    async def kill(self, vm: str) -> None:
        """End a VM; whose session it is hears why.

        Args:
            vm: Its id.

        Raises:
            NoVMError: there is none of that id.
        """
        found = self._find(vm)
        self._supervisor.pool.give_reason(vm, "ended by an administrator")
        if found.state == "leased" and found.lease is not None:
            hint = "Restart the kernel, or run %vm restart, for a fresh VM."
            await found.lease.end(Ended(code="killed", reason="The VM was ended by `agentvm vm kill`.", hint=hint))
        else:
            await found.machine.end()
            await self._supervisor.pool.tend()

    async def resume(self, vm: str) -> Resumed:
        """Let a VM run on that was slowed down or stopped because of an anomaly; nothing happens if it was not.

        Args:
            vm: Its id.

        Raises:
            NoVMError: there is none of that id.
            AgentVMError: it cannot run on.
        """
        found = self._find(vm)
        if found.vm is None or found.lease is None:
            return Resumed(was_paused=False, was_slowed=False)
        return await self._supervisor.anomalies.responses.resume(found.lease, found.vm)

    async def copy_disk(self, vm: str, wanted: DiskRequest) -> DiskCopied:
        """Copy the disk of a session's VM into a file, with its file systems frozen for a moment.

        Args:
            vm: Its id.
            wanted: What is wanted.

        Raises:
            NoVMError: there is none of that id.
            AgentVMError: the disk cannot be copied.
        """
        found, target = self._find(vm), Path(wanted.file)
        lease = found.lease
        if lease is None or found.vm is not lease.vm:
            raise RequestError(f"{vm} is no session's own VM.", "`agentvm vm list` shows which are leased.")
        if not await asyncio.to_thread(_can_be_made, target):
            raise RequestError(
                f"{wanted.file!a:.200} is no absolute path of a file to create.",
                "Name one that is not there, in a folder that is.",
            )
        async with lease.turn:
            lease.check_runs()
            reason = await copy_disk(lease.vm, target, self._supervisor.qemu_owner)
        self._supervisor.audit.record(ConfigurationChanged(**lease.subject, what=f"disk: copied to {target}"))
        return DiskCopied(size=target.stat().st_size, unfrozen=reason)

    def _find(self, vm: str) -> Present:
        found = next((one for one in self._supervisor.roster if one.id == vm), None)
        if found is None:
            raise NoVMError(f"There is no VM {vm!r:.40}.", "`agentvm vm list` shows those that there are.")
        return found

    async def drain(self) -> None:
        """End what is kept ready, and keep nothing ready until ``fill``."""
        await self._supervisor.pool.drain()

    def fill(self) -> None:
        """Keep VMs ready again."""
        self._supervisor.pool.fill()

    def reload(self) -> list[str]:
        """Read the configuration again.

        Returns:
            The names of what has changed; of what takes effect only from the next start, with a remark.

        Raises:
            ConfigError: it is not valid, and what held before holds on.
        """
        supervisor = self._supervisor
        old, new = supervisor.settings, load_settings(supervisor.paths)
        supervisor.networks.configure(new.network)
        supervisor.settings = new
        supervisor.audit.days = new.audit.days
        supervisor.pool.stocks.target = new.pool
        supervisor.budget.share = new.memory_share
        supervisor.admission.most = new.max_vms
        supervisor.store.quota = new.snapshots.quota
        supervisor.bases.limit = new.snapshots.complete
        supervisor.stats.sampler.every = new.metrics.interval
        supervisor.anomalies.configure(new.anomalies)
        if new.metrics.listen != old.metrics.listen:
            supervisor.exposition.move(new.metrics.listen)
        supervisor.admission.look()
        supervisor.pool.refill()
        names = [name for name in Settings.model_fields if getattr(old, name) != getattr(new, name)]
        if names:
            supervisor.audit.record(ConfigurationChanged(what=", ".join(names)))
        return [f"{name} (from the next start)" if name in _FROM_THE_NEXT_START else name for name in names]

    async def leave(self) -> None:
        """Get ready to end: let sessions keep their VMs, if that is configured, and give them time for it."""
        supervisor = self._supervisor
        if supervisor.settings.on_shutdown != "keep":
            return
        supervisor.is_leaving = True
        for lease in supervisor.leases.values():
            lease.tell(Leaving(seconds=_KEEP_SECONDS))
        async with supervisor.released:
            try:
                async with asyncio.timeout(_KEEP_SECONDS):
                    await supervisor.released.wait_for(lambda: not supervisor.leases)
            except TimeoutError:
                for lease in supervisor.leases.values():
                    supervisor.pool.give_reason(lease.vm.id, "its session did not keep it in time")


def _can_be_made(path: Path) -> bool:
    try:
        path.lstat()
    except FileNotFoundError:
        return path.is_absolute() and path.parent.is_dir() and os.access(path.parent, os.W_OK)
    except (OSError, ValueError):  # its name is too long, or none at all
        return False
    return False


def _describe(one: Present, sample: Sample | None, claims: Claims | None, held: Held) -> VMInfo:
    machine, terms = one.machine, one.lease.terms if one.lease is not None else None
    hardware, own = machine.spec.hardware, one.lease if one.state == "leased" else None
    info = VMInfo(
        id=one.id, state=one.state, lease=one.lease_id, owner=terms.request.owner if terms else "",
        notebook=terms.request.notebook if terms else "", profile=terms.profile if terms else "",
        vcpus=hardware.vcpus, memory_mib=hardware.memory_mib, pid=machine.pid, claimed=claims,
        travelling=bool(own and own.is_travelling), snapshot=own.current if own else "", held=held,
    )  # fmt: skip
    if sample is None:  # it has just ended
        return info
    return info.model_copy(
        update={
            "age": sample.age, "cpu_seconds": sample.cpu_seconds, "cpu_percent": sample.cpu_percent,
            "memory": int(sample.memory_private), "memory_cost": int(sample.memory), "disk": int(sample.disk_space),
            "disk_read": int(sample.disk_read), "disk_written": int(sample.disk_written),
            "network_sent": int(sample.network_sent), "network_received": int(sample.network_received),
            "executing": bool(sample.executing),
        }
    )  # fmt: skip
