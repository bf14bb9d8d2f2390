"""Which host magics there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from agentvm_kernel.kernel.chronicle import Chronicle
from agentvm_kernel.kernel.host import Host
from agentvm_kernel.kernel.hostcomms import HostComms
from agentvm_kernel.kernel.machine import Machine
from agentvm_kernel.magics import (
    adopt,
    audit,
    fork,
    limits,
    monitor,
    net,
    pull,
    push,
    report,
    rollback,
    snapshot,
    snapshots,
    timetravel,
    undo,
    vm,
    workspace,
)
from agentvm_kernel.magics.call import Call, UsageError, find_call


class Family(Protocol):
    """A module of magics."""

    HELP: str

    async def run(self, call: Call, host: Host) -> Mapping[str, object]:
        """Carry out a call; return what to display by MIME type."""


_FAMILIES: Final[dict[str, Family]] = {
    "vm": vm,
    "limits": limits,
    "net": net,
    "audit": audit,
    "monitor": monitor,
    "report": report,
    "snapshot": snapshot,
    "snapshots": snapshots,
    "rollback": rollback,
    "timetravel": timetravel,
    "undo": undo,
    "%fork": fork,
    "adopt": adopt,
    "push": push,
    "pull": pull,
    "workspace": workspace,
}
_DISCARDS: Final = frozenset({("vm", "restart"), ("vm", "stop"), ("rollback", ""), ("undo", ""), ("adopt", "")})


@dataclass(frozen=True)
class BoundMagic:
    """A call and the module that carries it out.

    Attributes:
        call: As it stands in the cell.
        family: Carries it out.
    """

    call: Call
    family: Family

    @property
    def at_once(self) -> bool:
        """Whether it is carried out while a cell runs, instead of behind it."""
        name, words = self.call.name, self.call.words
        return (name == "snapshot" and "--now" in words) or (name == "vm" and words == ("resume",))

    @property
    def discards(self) -> bool:
        """Whether it throws the VM away, so that it does not wait long for one that hangs."""
        name, words = self.call.name, self.call.words
        changes_profile = name == "vm" and words[:1] == ("profile",) and len(words) > 1
        return changes_profile or (name, "") in _DISCARDS or (name, *words[:1]) in _DISCARDS

    @property
    def ends_waiting(self) -> bool:
        """Whether it does not wait for a VM that is on its way, but for none."""
        return self.call.name == "vm" and self.call.words == ("stop",)

    async def run(self, host: Host) -> Mapping[str, object]:
        """Carry it out, or show its help.

        Raises:
            AgentVMError: it was called wrongly, or failed.
        """
        call = self.call
        if call.help:
            return {"text/plain": self.family.HELP}
        if not call.alone and not call.name.startswith("%"):
            raise UsageError(f"%{call.name} must be alone in its cell.", "Put the other lines into another cell.")
        return await self.family.run(call, host)


class Registry:
    """Recognises the host magics of this package."""

    def find(self, code: str) -> BoundMagic | None:
        """Return the magic that a cell calls; None for a cell that is the guest's."""
        call = find_call(code, _FAMILIES.keys()) if "%" in code else None
        return BoundMagic(call, _FAMILIES[call.name]) if call else None

    def revive(self, notebook: Path, machine: Machine, chronicle: Chronicle, comms: HostComms) -> None:
        """Let the monitor live again that a notebook shows; see `Magics`."""
        monitor.revive(notebook, machine, chronicle, comms)
