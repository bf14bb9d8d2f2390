"""A hypervisor that tells the audit log of every machine it starts, and of every one that is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agentvm_kernel.observe.events.vm import VMCreated, VMStopped
from agentvm_kernel.observe.fields import Event
from agentvm_kernel.vm.hypervisor import Hypervisor, Machine
from agentvm_kernel.vm.spec import DomainSpec


class Witness(Hypervisor):
    """Does what another hypervisor does, and takes note.

    Args:
        hypervisor: The other.
        record: Takes an event into the audit log.
    """

    def __init__(self, hypervisor: Hypervisor, record: Callable[[Event], None]) -> None:
        self._hypervisor = hypervisor
        self._record = record

    async def open(self) -> None:
        """See ``Hypervisor.open``."""
        await self._hypervisor.open()

    async def close(self) -> None:
        """See ``Hypervisor.close``."""
        await self._hypervisor.close()

    async def version(self) -> str:
        """See ``Hypervisor.version``."""
        return await self._hypervisor.version()

    @property
    def owner(self) -> tuple[int, int] | None:
        """See ``Hypervisor.owner``."""
        return self._hypervisor.owner

    def domain_name(self, vm: str) -> str:
        """See ``Hypervisor.domain_name``."""
        return self._hypervisor.domain_name(vm)

    async def start(self, spec: DomainSpec) -> Machine:
        """See ``Hypervisor.start``."""
        machine = await self._hypervisor.start(spec)
        hardware, name = spec.hardware, vm_of(spec)
        self._record(
            VMCreated(
                vm=name, accelerator=hardware.accelerator, vcpus=hardware.vcpus, memory_mib=hardware.memory_mib,
                pid=machine.pid,
            )
        )  # fmt: skip
        machine.ended.add_done_callback(lambda ended: self._note_end(name, ended))
        return machine

    def _note_end(self, name: str, ended: asyncio.Future[str]) -> None:
        self._record(VMStopped(vm=name, reason="" if ended.cancelled() else ended.result()))

    @property
    def reports(self) -> int | None:
        """See ``Hypervisor.reports``."""
        return self._hypervisor.reports

    async def open_network(self) -> None:
        """See ``Hypervisor.open_network``."""
        await self._hypervisor.open_network()

    async def end_leftovers(self) -> list[str]:
        """See ``Hypervisor.end_leftovers``."""
        return await self._hypervisor.end_leftovers()


def vm_of(spec: DomainSpec) -> str:
    """Return the id of a VM, or, of one that boots an image, the name of its domain."""
    return spec.folder.name if spec.boot is None else spec.name
