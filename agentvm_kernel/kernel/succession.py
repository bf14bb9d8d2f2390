"""What becomes of what clients have asked, and of what they see, when a guest comes, ends or is replaced."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from agentvm_kernel.errors import AgentVMError, FreshVMError, VMEndedError
from agentvm_kernel.kernel.answers import Answers
from agentvm_kernel.kernel.chronicle import Chronicle
from agentvm_kernel.kernel.deadline import Watchdog
from agentvm_kernel.kernel.debugging import Debugging
from agentvm_kernel.kernel.executions import Executions
from agentvm_kernel.kernel.facts import CellFacts
from agentvm_kernel.kernel.fence import Lanes
from agentvm_kernel.kernel.guest import Guest
from agentvm_kernel.kernel.guestside import GuestSide
from agentvm_kernel.kernel.host import snapshot_request
from agentvm_kernel.kernel.hostcomms import HostComms
from agentvm_kernel.kernel.machine import Machine
from agentvm_kernel.kernel.output import OutputGate
from agentvm_kernel.kernel.requests import Request, RequestTable
from agentvm_kernel.kernel.sockets import Sockets
from agentvm_kernel.kernel.timeline import Timeline
from agentvm_kernel.supervisor.snapshot_messages import SnapshotInfo, SnapshotRequest


class Succession:
    """Watches the machine under a notebook.

    Args:
        sockets: Where the clients are.
        machine: The machine.
        table: What its guest has been asked.
        answers: The host's voice.
        timeline: Where the notebook stands.
        chronicle: What happened in it.
        debugging: Whether a debugger stops it.
        gate: Bounds its output.
        host_comms: Widgets of the host's own.
        executions: Tells the audit log.
        watchdog: Ends cells that take too long.
        lanes: What waits for the guest.
        replied: Called with a cell, and its reply, when the guest is done with it; see `GuestSide`.
    """

    def __init__(
        self,
        sockets: Sockets,
        machine: Machine,
        table: RequestTable,
        answers: Answers,
        timeline: Timeline,
        chronicle: Chronicle,
        debugging: Debugging,
        gate: OutputGate,
        host_comms: HostComms,
        executions: Executions,
        watchdog: Watchdog,
        lanes: Lanes,
        replied: Callable[[Request, dict[str, object]], Awaitable[CellFacts | None]],
    ) -> None:
        self._sockets = sockets
        self._machine = machine
        self._table = table
        self._answers = answers
        self._timeline = timeline
        self._chronicle = chronicle
        self._debugging = debugging
        self._gate = gate
        self._host_comms = host_comms
        self._executions = executions
        self._watchdog = watchdog
        self._lanes = lanes
        self._replied = replied
        self._guest_side: GuestSide | None = None

    async def guest_ready(self, guest: Guest) -> Awaitable[AgentVMError]:
        """Begin to read what a new guest says."""
        self._timeline.snapshot = guest.granted.snapshot
        self._chronicle.note("vm", guest.granted.vm)
        self._debugging.begin()
        side = GuestSide(
            guest, self._table, self._sockets, self._answers, self._timeline, self._debugging, self._gate,
            self._machine.firewall, self._host_comms, self._executions.blocked, self._replied, self._guest_failed,
        )  # fmt: skip
        self._guest_side = side
        self._watchdog.wake()  # it may be in the middle of a cell
        return side.broken()

    async def guest_quiet(self) -> None:
        """Return when what a dead kernel had said has arrived."""
        if self._guest_side:
            await self._guest_side.quiet()

    async def guest_leaving(self, text: str, patience: float) -> SnapshotRequest:
        """Wait for the running cell, for as long as there is time."""
        if running := self._table.running():
            await asyncio.wait([asyncio.ensure_future(running.finished.wait())], timeout=patience)
        return snapshot_request(self._table, self._timeline, text=text)

    def snapshot_begins(self) -> Callable[[str, bool], None]:
        """Remember what is open now, for a rollback to the snapshot that is about to be taken."""
        taken = self._timeline.begin_snapshot()

        def noted(snapshot: str, busy: bool) -> None:
            taken(snapshot, busy)
            self._chronicle.note("snapshot", snapshot)

        return noted

    async def guest_ended(self, error: AgentVMError) -> None:
        """End everything that the guest still owes an answer: the first with the reason, once."""
        await self._forget_guest(error, remedy=not isinstance(error, FreshVMError))
        self._chronicle.note("end", error.message)
        self._timeline.begin()
        await self._close_comms(0)
        await self._host_comms.cell_over(None)

    async def guest_replaced(self, snapshot: SnapshotInfo) -> None:
        """End what the old guest has not finished, and what the new one does not know."""
        error = VMEndedError("The notebook went back to a snapshot, in another VM, before this was finished.")
        await self._forget_guest(error, remedy=False, frozen=snapshot.busy)
        self._chronicle.note("rollback", snapshot.label or snapshot.id)
        await self._close_comms(self._timeline.go_back(snapshot.id).comms)
        if snapshot.cell.count is not None:
            self._answers.execution_count = snapshot.cell.count

    async def _forget_guest(self, error: AgentVMError, *, remedy: bool = True, frozen: bool = False) -> None:
        side, self._guest_side = self._guest_side, None
        if side:
            await side.close()
        unfinished = list(self._table.unfinished())
        self._table.clear(frozen=frozen)
        failed: set[str] = set()
        for request in unfinished:
            await self._end(request, error, failed, remedy=remedy)
        await self._lanes.fail_fast(failed)

    async def _close_comms(self, since: int) -> None:
        """Tell the clients that the guest has not got what was opened after a moment."""
        for comm_id in self._timeline.comms.end_since(since):
            await self._answers.publish("comm_close", {"comm_id": comm_id, "data": {}}, None)

    async def _end(self, request: Request, error: AgentVMError, failed: set[str], *, remedy: bool) -> None:
        """End one request of a guest that is gone.

        Args:
            request: Not finished.
            error: Why the guest is gone.
            failed: Lanes in which an execute request has already told it, and the rest is aborted.
            remedy: Whether to add how to get a VM back.
        """
        self._executions.lost(request, error)
        self._chronicle.ends(request.run, failed=True)
        if request.hold:
            request.settle(replied=True, idle=True)
        elif request.replied:
            await self._answers.idle(request)
        elif request.is_execute and request.lane in failed:
            await self._answers.abort(request)
        else:
            await self._answers.fail(request, error, remedy=remedy)
            if request.is_execute and request.stop_on_error:
                failed.add(request.lane)

    async def _guest_failed(self, request: Request) -> None:
        await self._lanes.of(request).fail_fast()
