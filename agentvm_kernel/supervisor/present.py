"""The VMs that a supervisor has: leased ones, forks, and what is kept ready."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from agentvm_kernel.supervisor.lease import Lease
from agentvm_kernel.supervisor.operator_messages import VMState
from agentvm_kernel.supervisor.stocks import Stocks
from agentvm_kernel.vm.clone import VM
from agentvm_kernel.vm.hypervisor import Machine


@dataclass(frozen=True)
class Present:
    """One of them.

    Attributes:
        state: What it is there for.
        machine: Its QEMU.
        vm: The VM; ``None`` for a blank.
        lease: The lease that has it; ``None`` for what is kept ready.
    """

    state: VMState
    machine: Machine
    vm: VM | None = None
    lease: Lease | None = None

    @property
    def id(self) -> str:
        """Its id."""
        return self.machine.spec.folder.name

    @property
    def lease_id(self) -> str:
        """Id of the lease that has it; empty for what is kept ready."""
        return "" if self.lease is None else self.lease.terms.id


class Roster:
    """All of them, whenever it is looked at; those that are out come first.

    Args:
        leases: The leases, by their ids.
        stocks: What is kept ready.
    """

    def __init__(self, leases: Mapping[str, Lease], stocks: Stocks) -> None:
        self._leases = leases
        self._stocks = stocks

    def __iter__(self) -> Iterator[Present]:
        for lease in self._leases.values():
            yield Present("leased", lease.vm.machine, lease.vm, lease)
            for fork in lease.forks.values():
                yield Present("resting" if fork.is_resting else "fork", fork.vm.machine, fork.vm, lease)
        for vm in self._stocks.warm:
            yield Present("warm", vm.machine, vm)
        for blank in self._stocks.blanks:
            yield Present("blank", blank.machine)
