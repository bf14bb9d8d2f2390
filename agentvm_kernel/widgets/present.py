"""How a notebook's VM is now: in words, and with the limits that hold."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Final

from agentvm_kernel.egress.record import Connection
from agentvm_kernel.kernel.machine import Machine, State
from agentvm_kernel.widgets.history import History

_MIB: Final = 1 << 20
_MB: Final = 1_000_000
_COMMAND: Final = "%net allow "


@dataclass(frozen=True)
class Present:
    """Now.

    Attributes:
        state: ``running``, ``starting``, ``ended``, or ``held`` while its lease is operated on.
        text: What it is at, or why it ended.
        vm: Its id; empty without one.
        facts: Profile and accelerator.
        cpu: CPU that it may use, percent of one core; 0 where that is not known.
        memory: Bytes of memory that it may use; 0 where that is not known.
        disk: Bytes a second that it may read and write; 0 for no limit.
        open: Connections open now.
        allowed: Connections of the VM that were let through.
        refused: Connections of the VM that were refused.
    """

    state: str
    text: str = ""
    vm: str = ""
    facts: str = ""
    cpu: float = 0
    memory: int = 0
    disk: int = 0
    open: int = 0
    allowed: int = 0
    refused: int = 0

    def as_json(self) -> dict[str, object]:
        """Return it for a front end."""
        return asdict(self)


def present(machine: Machine, history: History) -> Present:
    """Return how a VM is.

    Args:
        machine: The VM.
        history: What was measured of it.
    """
    guest = machine.guest
    if guest is None:
        error = machine.error
        if machine.state is State.STARTING:
            return Present("starting", machine.stage or machine.task)
        return Present("ended", f"{error.message} {error.hint}".strip() if error else "There is no VM.")
    granted, limits, newest = guest.granted, machine.limits.now, history.newest
    emulated = ", software emulation" if granted.accelerator == "tcg" else ""
    known = newest if newest is not None and newest.vm == granted.vm else None
    return Present(
        state="held" if machine.held else "running",
        text=machine.task if machine.held else "",
        vm=granted.vm,
        facts=f"{granted.profile}, {granted.vcpus} vCPU, {granted.memory_mib} MiB{emulated}",
        cpu=100 * min(granted.vcpus, limits.cpu or granted.vcpus),
        memory=granted.memory_mib * _MIB,
        disk=(limits.disk_mb_per_second or 0) * _MB,
        open=known.connections if known else 0,
        allowed=known.allowed if known else 0,
        refused=known.refused if known else 0,
    )


def allowable(connection: Connection) -> str:
    """Return what `%net allow` would have to be given so that a refused connection is let through; else nothing.

    Only where the refusal itself says so: not for raw addresses, for what somebody denied, or while the network is off.
    """
    name = connection.name
    if connection.verdict != "refused" or not name or "*" in name or not connection.hint.startswith(_COMMAND):
        return ""
    host = connection.hint.removeprefix(_COMMAND)
    return host if host in {name, f"{name}:{connection.port}"} else ""
