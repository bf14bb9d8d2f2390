"""What the router knows about host magics; the magics themselves are in `agentvm_kernel.magics`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from agentvm_kernel.kernel.called import Called
from agentvm_kernel.kernel.chronicle import Chronicle
from agentvm_kernel.kernel.host import Host
from agentvm_kernel.kernel.hostcomms import HostComms
from agentvm_kernel.kernel.machine import Machine


class Magic(Called, Protocol):
    """A host magic that can be carried out."""

    async def run(self, host: Host) -> Mapping[str, object]:
        """Carry it out.

        Returns:
            What to display, by MIME type.

        Raises:
            AgentVMError: it was called wrongly, or failed; becomes the cell's error.
        """


class Magics(Protocol):
    """Recognises host magics."""

    def find(self, code: str) -> Magic | None:
        """Return the magic that a cell calls; None for a cell that is the guest's."""

    def revive(self, notebook: Path, machine: Machine, chronicle: Chronicle, comms: HostComms) -> None:
        """Let live again what a notebook shows of an earlier kernel process. Called before clients are served.

        Args:
            notebook: Its file, if there is one.
            machine: The VM under it.
            chronicle: What happens in it.
            comms: Lead to what is shown.
        """


class NoMagics:
    """Every cell is the guest's."""

    def find(self, code: str) -> Magic | None:
        """Return None."""
        return None

    def revive(self, notebook: Path, machine: Machine, chronicle: Chronicle, comms: HostComms) -> None:
        """Do nothing."""
