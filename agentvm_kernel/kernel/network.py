"""The network of a notebook's VM, as the kernel process knows it; what decides is the supervisor."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from agentvm_kernel.egress.record import Connection
from agentvm_kernel.errors import AgentVMError
from agentvm_kernel.kernel.requests import Request
from agentvm_kernel.kernel.timeline import beginning
from agentvm_kernel.observe.chain import Record
from agentvm_kernel.snapshots.notes import Cell
from agentvm_kernel.supervisor.execution_messages import Report
from agentvm_kernel.supervisor.messages import Blocked, LeaseRequest
from agentvm_kernel.supervisor.network_messages import (
    MOST_EXECUTIONS,
    CassetteRequest,
    CellRequest,
    NetworkInfo,
    NetworkRequest,
)
from agentvm_kernel.validation import checked

if TYPE_CHECKING:
    from agentvm_kernel.kernel.roles import Tenure

log = logging.getLogger("agentvm.network")

_NAMED: Final = 5
_MOST_REPORTS: Final = 1000
_ROOM: Final = 32 << 10
"""Bytes of reports in one request, of which the supervisor takes 64 KiB."""

_SOON: Final = 0.5
"""Seconds in which the next cell often begins, so that one request can tell both."""

_PATIENCE: Final = 1.0
"""Seconds to wait for the supervisor before a VM is given back."""


class NotebookNetwork:
    """What the notebook's user has changed, which outlives the lease; and who tells the supervisor which cell runs.

    Args:
        tenure: Returns who keeps the VM; raises `AgentVMError` where there is none.

    Attributes:
        wanted: What the user has changed.
        on_blocked: Called with each connection that was refused; whoever shows them sets it.
    """

    def __init__(self, tenure: Callable[[], Tenure]) -> None:
        self.wanted = NetworkRequest()
        self.on_blocked: Callable[[Blocked], None] = lambda _: None
        self._tenure = tenure
        self._given: tuple[str, ...] = ()
        self._running = CellRequest()
        self._teller: asyncio.Task[None] | None = None
        self._reports: deque[Report] = deque()
        self._unsaid = 0
        self._timer: asyncio.TimerHandle | None = None

    def asked(self, request: LeaseRequest) -> LeaseRequest:
        """Return a request for a lease in which the changes hold from the beginning."""
        self._given = request.allow
        wanted = self.wanted
        if wanted == NetworkRequest():
            return request
        own = {"mode": wanted.mode or request.mode, "allow": self._allowed(wanted), "deny": wanted.deny}
        return request.model_copy(update={**own, "inspect": wanted.inspect})

    def _allowed(self, wanted: NetworkRequest) -> tuple[str, ...]:
        """Return the hosts that are allowed: those that the lease was asked for with, and what the user has added."""
        return tuple(dict.fromkeys([*(host for host in self._given if host not in wanted.deny), *wanted.allow]))

    async def status(self) -> NetworkInfo:
        """Return what holds, and what was done."""
        tenure = self._tenure()
        return await tenure.supervisor.network(tenure.lease)

    async def change(self, wanted: NetworkRequest) -> NetworkInfo:
        """Change it, for this VM and for those that take its place.

        Raises:
            AgentVMError: the supervisor refused; what held holds on.
        """
        tenure = self._tenure()
        whole = wanted.model_copy(update={"allow": self._allowed(wanted)})
        info = await tenure.supervisor.set_network(tenure.lease, whole)
        self.wanted = wanted
        return info

    async def amend(self, allow: Sequence[str] = (), deny: Sequence[str] = ()) -> NetworkInfo:
        """Add hosts to one list, and take the same off the other.

        Raises:
            AgentVMError: the supervisor refused; what held holds on.
        """
        own = self.wanted
        wanted = checked(
            NetworkRequest, mode=own.mode, inspect=own.inspect,
            allow=tuple(dict.fromkeys([*(host for host in own.allow if host not in deny), *allow])),
            deny=tuple(dict.fromkeys([*(host for host in own.deny if host not in allow), *deny])),
        )  # fmt: skip
        return await self.change(wanted)

    async def play(self, action: Literal["record", "replay", "off"], name: str = "") -> NetworkInfo:
        """Record what inspected hosts say, or replay it, from a file beside the notebook.

        Args:
            action: What is done from now on.
            name: The recording's name.

        Raises:
            AgentVMError: the supervisor refused; what was done goes on.
        """
        tenure = self._tenure()
        request = checked(CassetteRequest, action=action, name=name, folder=str(Path.cwd()))
        return await tenure.supervisor.play_cassette(tenure.lease, request)

    async def connections(self) -> list[Connection]:
        """Return the lease's newest connections, oldest first."""
        tenure = self._tenure()
        async with tenure.supervisor.connections(tenure.lease) as events:
            return [event async for event in events]

    async def audit(self, last: int) -> tuple[Record, ...]:
        """Return what the audit log says of the notebook, after having told the supervisor what there is to tell.

        Args:
            last: How many of the newest records.
        """
        await self.told()
        tenure = self._tenure()
        return (await tenure.supervisor.audit(tenure.lease, last)).records

    def blocked(self, event: Blocked) -> None:
        """Take note of a connection that was refused."""
        self.on_blocked(event)

    def running(self, cell: Cell) -> None:
        """Tell the supervisor, in the background, which cell runs."""
        self._running = self._running.model_copy(update={"cell": cell})
        self._wake()

    def report(self, report: Report) -> None:
        """Tell the supervisor what has happened to an execution, or what was copied, for its audit log.

        That goes along when the supervisor is told which cell runs next, or is told by itself soon. Without a VM it
        waits for the next, as far as there is room.
        """
        if len(self._reports) >= _MOST_REPORTS:
            self._unsaid += 1
        else:
            self._reports.append(report)
        self._soon()

    def put_out(self, output: int) -> None:
        """Tell the supervisor, soon, how much the cells have put out.

        Args:
            output: Bytes so far.
        """
        self._running = self._running.model_copy(update={"output": output})
        self._soon()

    async def travelling(self, on: bool) -> None:
        """Tell the supervisor whether a snapshot is taken after every cell; it is known on return, as a rule.

        Args:
            on: Whether it is.
        """
        self._running = self._running.model_copy(update={"travelling": on})
        self._wake()
        await self.told()

    async def told(self) -> None:
        """Wait until the supervisor knows all, but not for long. Called before the VM is given back."""
        if self._reports:
            self._wake()
        if self._teller is not None:
            await asyncio.wait([self._teller], timeout=_PATIENCE)

    def _soon(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_SOON, self._wake)

    def _wake(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._teller is None or self._teller.done():
            self._teller = asyncio.create_task(self._tell())

    async def _tell(self) -> None:
        told: CellRequest | None = None
        while told != self._running or self._reports:
            told = self._running
            try:
                tenure = self._tenure()
            except AgentVMError as error:
                log.info("the supervisor does not know yet which cell runs: %s", error.message)
                return
            unsaid, self._unsaid = self._unsaid, 0
            reports = self._some_reports()
            request = told.model_copy(update={"executions": reports, "unsaid": unsaid})
            try:
                await tenure.supervisor.set_cell(tenure.lease, request)
            except AgentVMError as error:
                self._unsaid += unsaid + len(reports)
                log.info("the supervisor does not know which cell runs: %s", error.message)
                return

    def _some_reports(self) -> tuple[Report, ...]:
        """Take as many reports as go into one request, at least one if there is any."""
        taken: list[Report] = []
        room = _ROOM
        while self._reports and len(taken) < MOST_EXECUTIONS:
            room -= len(self._reports[0].model_dump_json())
            if taken and room < 0:
                break
            taken.append(self._reports.popleft())
        return tuple(taken)

    @asynccontextmanager
    async def allowed(self, hosts: Sequence[str], cell: Cell) -> AsyncIterator[None]:
        """Let the VM reach hosts within the context.

        Args:
            hosts: Which.
            cell: The cell that runs in it.

        Raises:
            AgentVMError: the supervisor refused.
        """
        if not hosts:
            yield
            return
        if self._teller is not None:
            await asyncio.wait([self._teller])
        request = self._running.model_copy(update={"cell": cell, "allow": tuple(hosts)})
        tenure = self._tenure()
        await tenure.supervisor.set_cell(tenure.lease, request)
        self._running = request
        try:
            yield
        finally:
            self._running = self._running.model_copy(update={"allow": ()})
            self._wake()
            if self._teller is not None:
                await asyncio.wait([self._teller])  # before the next cell begins


def cell_of(request: Request) -> Cell:
    """Return what is said of a cell that runs."""
    return Cell(run=request.run, code=beginning(request.code))


def note(blocked: Sequence[Blocked]) -> str:
    """Return what a cell is told whose connections were refused.

    Args:
        blocked: The connections, not none.
    """
    hints = dict.fromkeys(_plain(one.hint) for one in blocked if one.hint)
    named = ", ".join(f"{_plain(one.name)}:{one.port}" for one in blocked[:_NAMED])
    more = f" and {len(blocked) - _NAMED} more" if len(blocked) > _NAMED else ""
    lines = [f"Refused by the network policy: {named}{more}.", *list(hints)[:_NAMED], "%net log shows all."]
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text[:300])
