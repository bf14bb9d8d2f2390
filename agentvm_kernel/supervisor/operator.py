"""What an administrator can see and do: VMs, pool, configuration, the supervisor's end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import psutil  # type: ignore[import-untyped]

from agentvm_kernel.config import Settings, load_settings
from agentvm_kernel.errors import SupervisorError
from agentvm_kernel.observe.events import ConfigurationChanged
from agentvm_kernel.supervisor.lease import Lease
from agentvm_kernel.supervisor.messages import Ended, Leaving, PoolInfo, VMInfo, VMList, VMState
from agentvm_kernel.vm.hypervisor import Machine

if TYPE_CHECKING:
    from agentvm_kernel.supervisor.core import Supervisor

# What is made with these when the supervisor starts stays as it is.
_FROM_THE_NEXT_START: Final = frozenset({"uri", "accelerator", "transport"})
_KEEP_SECONDS: Final = 60.0


class NoVMError(SupervisorError):
    """There is no VM of that id."""

    code = "no_vm"


@dataclass(frozen=True)
class _Present:
    state: VMState
    machine: Machine
    lease: Lease | None = None


class Operator:
    """The administrator's side of a supervisor.

    Args:
        supervisor: It.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    async def vms(self) -> VMList:
        """Return all VMs, with what they use."""
        present = list(self._present())
        return VMList(vms=tuple(await asyncio.to_thread(lambda: [_describe(one) for one in present])))

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
        found = next((one for one in self._present() if one.machine.spec.folder.name == vm), None)
        if found is None:
            raise NoVMError(f"There is no VM {vm!r:.40}.", "`agentvm vm list` shows those that there are.")
        self._supervisor.pool.give_reason(vm, "ended by an administrator")
        if found.state == "leased" and found.lease is not None:
            hint = "Restart the kernel, or run %vm restart, for a fresh VM."
            await found.lease.end(Ended(code="killed", reason="The VM was ended by `agentvm vm kill`.", hint=hint))
        else:
            await found.machine.end()
            await self._supervisor.pool.tend()

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

    def _present(self) -> Iterator[_Present]:
        for lease in self._supervisor.leases.values():
            yield _Present("leased", lease.vm.machine, lease)
            for fork in lease.forks.values():
                yield _Present("resting" if fork.is_resting else "fork", fork.vm.machine, lease)
        for vm in self._supervisor.pool.stocks.warm:
            yield _Present("warm", vm.machine)
        for blank in self._supervisor.pool.stocks.blanks:
            yield _Present("blank", blank.machine)


def _describe(one: _Present) -> VMInfo:
    machine, lease = one.machine, one.lease
    hardware = machine.spec.hardware
    age, cpu, memory = _measure(machine.pid)
    return VMInfo(
        id=machine.spec.folder.name, state=one.state, lease=lease.terms.id if lease else "",
        owner=lease.terms.request.owner if lease else "", notebook=lease.terms.request.notebook if lease else "",
        profile=lease.terms.profile if lease else "", vcpus=hardware.vcpus, memory_mib=hardware.memory_mib,
        pid=machine.pid, age=age, cpu_seconds=cpu, memory=memory, disk=_disk(machine),
    )  # fmt: skip


def _measure(pid: int) -> tuple[float, float, int]:
    """Return age, CPU seconds and private memory of a process; zeros of one that is gone."""
    try:
        process = psutil.Process(pid)
        times = process.cpu_times()
        age = time.time() - process.create_time()
        try:
            memory = process.memory_full_info().uss
        except psutil.AccessDenied:
            memory = process.memory_info().rss
    except psutil.Error:
        return 0.0, 0.0, 0
    return max(0.0, age), float(times.user + times.system), int(memory)


def _disk(machine: Machine) -> int:
    try:
        return sum(path.lstat().st_blocks * 512 for path in machine.spec.folder.iterdir())
    except FileNotFoundError:
        return 0
