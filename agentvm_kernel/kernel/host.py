"""What a host magic can do for the cell that calls it."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final, Literal, TypeVar

from agentvm_kernel.errors import AgentVMError
from agentvm_kernel.kernel.chronicle import Chronicle
from agentvm_kernel.kernel.executions import copied
from agentvm_kernel.kernel.facts import Facts
from agentvm_kernel.kernel.hostcomms import HostComms
from agentvm_kernel.kernel.info import Usage
from agentvm_kernel.kernel.machine import Machine, State
from agentvm_kernel.kernel.requests import Request, RequestTable
from agentvm_kernel.kernel.timeline import Timeline, beginning
from agentvm_kernel.snapshots.notes import Cell
from agentvm_kernel.supervisor.snapshot_messages import Replaced, SnapshotInfo, SnapshotKind, SnapshotRequest

_T = TypeVar("_T")
_PATH: Final = 300


class Host:
    """The host, on behalf of one request.

    Args:
        request: The cell.
        machine: The VM under the notebook.
        timeline: Where the notebook stands.
        chronicle: What happened in it.
        table: What the guest has been asked.
        usage: Measures the VM.
        facts: Measures cells.
        comms: Widgets of the host's own.

    Attributes:
        request: The cell.
        taken: Id of the snapshot that was taken for the cell.
        display_id: By which what the magic shows can be brought up to date; empty if it will not be.
        told: What else the reply's metadata says of the magic.
    """

    def __init__(
        self,
        request: Request,
        machine: Machine,
        timeline: Timeline,
        chronicle: Chronicle,
        table: RequestTable,
        usage: Usage,
        facts: Facts,
        comms: HostComms,
    ) -> None:
        self.machine = machine
        self.timeline = timeline
        self.chronicle = chronicle
        self.comms = comms
        self.usage = usage
        self.facts = facts
        self.taken = self.display_id = ""
        self.told: dict[str, object] = {}
        self.request = request
        self._table = table

    async def snapshot(
        self, label: str = "", text: str = "", *, kind: SnapshotKind = "manual", wait_stored: bool = True
    ) -> SnapshotInfo:
        """Take a snapshot of the VM, in the middle of a cell if one is running.

        Raises:
            AgentVMError: there is none now.
        """
        request = snapshot_request(
            self._table, self.timeline, label=label, text=text, kind=kind, wait_stored=wait_stored
        )
        info = await self.machine.snapshot(request)
        self.taken = info.id
        self.chronicle.name(info.id, info.label)
        return info

    async def rollback(self, to: str) -> Replaced:
        """Go back to a snapshot; a VM that has ended is replaced by a fresh one first.

        Args:
            to: See `RollbackRequest`.

        Raises:
            AgentVMError: the VM goes on as it was, or cannot be had; the error says so.
        """
        if self.machine.state is State.ENDED:
            to = to or self.timeline.snapshot
            await self.machine.restart()
            await self.machine.settled()
        return await self._inherit(self.machine.rollback(to))

    async def adopt(self, fork: int) -> Replaced:
        """Put a fork in the VM's place.

        Raises:
            AgentVMError: the VM goes on as it was, or cannot be had; the error says so.
        """
        replaced = await self._inherit(self.machine.adopt(fork))
        self.timeline.ran(self.request.run, None, self.request.code)
        self.timeline.unseen = self.timeline.travelling
        return replaced

    def note_copy(self, way: Literal["push", "pull"], path: str, digest: str, size: int) -> None:
        """Let the reply's metadata and the audit log tell what was copied.

        Args:
            way: Into the VM, or out of it.
            path: Which file or folder, as the magic names it.
            digest: See `Sent` and `Received`.
            size: Bytes of content.
        """
        self.told["copied"] = {"way": way, "path": path[-_PATH:], "sha256": digest, "size": size}
        self.machine.network.report(copied(way, path, digest, size, self.request.run))

    def note_share(self, path: str, *, writable: bool) -> None:
        """Let the reply's metadata tell what is shared with the VM from now on.

        Args:
            path: Which folder; empty for none.
            writable: Whether the VM may change it.
        """
        self.told["shared"] = {"path": path[-_PATH:], "writable": writable}

    async def _inherit(self, replacing: Awaitable[_T]) -> _T:
        """Show under the cell what something in the new VM prints that was begun before it."""
        self._table.heir = self.request
        try:
            return await replacing
        except AgentVMError:
            self._table.heir = None
            raise


def snapshot_request(
    table: RequestTable,
    timeline: Timeline,
    *,
    label: str = "",
    text: str = "",
    kind: SnapshotKind = "manual",
    wait_stored: bool = True,
) -> SnapshotRequest:
    """Describe a snapshot that is to be taken now.

    Args:
        table: What the guest has been asked.
        timeline: Where the notebook stands.
        label: See `SnapshotRequest`; so for the rest.
        text: What the user says of it.
        kind: Why it is taken.
        wait_stored: Answer once it is safe on disk.
    """
    running = table.running()
    cell = Cell(run=running.run, code=beginning(running.code)) if running else timeline.cell
    busy = running is not None or table.frozen
    return SnapshotRequest(label=label, text=text, kind=kind, cell=cell, busy=busy, wait_stored=wait_stored)
