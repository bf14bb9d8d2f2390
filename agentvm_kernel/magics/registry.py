"""Which host magics there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from agentvm_kernel.kernel.info import Usage
from agentvm_kernel.kernel.machine import Machine
from agentvm_kernel.magics import vm
from agentvm_kernel.magics.call import Call, UsageError, find_call


class Family(Protocol):
    """A module of magics."""

    HELP: str

    async def run(self, call: Call, machine: Machine, usage: Usage) -> Mapping[str, str]:
        """Carry out a call; return what to display by MIME type."""


_FAMILIES: Final[dict[str, Family]] = {"vm": vm}


@dataclass(frozen=True)
class BoundMagic:
    """A call and the module that carries it out.

    Attributes:
        call: As it stands in the cell.
        family: Carries it out.
    """

    call: Call
    family: Family

    async def run(self, machine: Machine, usage: Usage) -> Mapping[str, str]:
        """Carry it out, or show its help.

        Raises:
            AgentVMError: it was called wrongly, or failed.
        """
        if not self.call.alone:
            raise UsageError(f"%{self.call.name} must be alone in its cell.", "Put the other lines into another cell.")
        if self.call.help:
            return {"text/plain": self.family.HELP}
        return await self.family.run(self.call, machine, usage)


class Registry:
    """Recognises the host magics of this package."""

    def find(self, code: str) -> BoundMagic | None:
        """Return the magic that a cell calls; None for a cell that is the guest's."""
        call = find_call(code, _FAMILIES.keys()) if "%" in code else None
        return BoundMagic(call, _FAMILIES[call.name]) if call else None
