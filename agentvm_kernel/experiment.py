"""A VM for code, without a notebook: run cells in it, save it, go back, fork it.

async with Session(image="standard") as session:
    await session.run("import numpy as np; data = np.load('data.npy')")
    tried = await session.fork(8, "score = search(data); score", randomness="diverge")
    best = max((one for one in tried if one.kept), key=lambda one: float(one.cell.result))
    await session.adopt(best.fork)
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from types import TracebackType
from typing import Final, Literal, Self

from agentvm_kernel.config import Paths
from agentvm_kernel.errors import AgentVMError, VMEndedError
from agentvm_kernel.kernel.endings import never
from agentvm_kernel.kernel.execution import LINK_LIMITS, CellResult, Runner
from agentvm_kernel.kernel.forkpoint import ForkSupervisor
from agentvm_kernel.kernel.forks import ForkResult, OnProgress, run_forks
from agentvm_kernel.kernel.guest import Guest
from agentvm_kernel.kernel.machine import Machine
from agentvm_kernel.link.connection import connect
from agentvm_kernel.snapshots.notes import Cell
from agentvm_kernel.supervisor.client import SupervisorClient
from agentvm_kernel.supervisor.messages import ForkRequest, LeaseRequest, SnapshotInfo, SnapshotRequest

__all__ = ["CellResult", "ForkResult", "Session"]

_CELL_SECONDS: Final = 300.0


class Session:
    """A leased VM, from entering the context to leaving it. Its methods are carried out one after the other.

    Args:
        image: Flavour of the image; empty for the configured default.
        profile: Name of the profile; empty for the configured default.
        notebook: What its snapshots belong to; sessions with the same name share them.
        paths: The user's folders; found by default.
    """

    def __init__(
        self, *, image: str = "", profile: str = "", notebook: str = "experiment", paths: Paths | None = None
    ) -> None:
        request = LeaseRequest(image=image, profile=profile, owner="experiment", notebook=notebook)
        folders = paths or Paths.of_user()
        self._connect = partial(connect, limits=LINK_LIMITS)
        self._machine = Machine(request, lambda: SupervisorClient(folders), self._connect)
        self._guest = self._machine.watcher = _GuestOfSession()
        self._turn = asyncio.Lock()
        self._last = Cell()

    async def __aenter__(self) -> Self:
        """Lease the VM.

        Raises:
            AgentVMError: it cannot be had.
        """
        self._machine.start()
        try:
            await self._machine.settled()
            self._present()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the VM back."""
        await self._machine.close(VMEndedError("The session is over."))

    async def run(self, code: str, *, timeout: float = _CELL_SECONDS) -> CellResult:
        """Run a cell; an exception in it, or its VM's end, is a result.

        Args:
            code: The cell.
            timeout: Seconds until it is interrupted.

        Raises:
            AgentVMError: the VM has ended before.
        """
        async with self._turn:
            cell = await self._present().run(code, timeout=timeout)
            self._last = Cell(run=self._last.run + 1, count=cell.count, code=code[:2000])
        return cell

    async def snapshot(self, label: str = "", text: str = "") -> SnapshotInfo:
        """Take a snapshot.

        Args:
            label: Its name.
            text: What there is to say of it.

        Raises:
            AgentVMError: there is none now; the VM goes on.
        """
        async with self._turn:
            return await self._machine.snapshot(SnapshotRequest(label=label, text=text, cell=self._last))

    async def rollback(self, to: str = "") -> SnapshotInfo:
        """Go back to a snapshot, and return it.

        Args:
            to: Its label, id, or ``~N``; the newest by default.

        Raises:
            AgentVMError: the supervisor refused, and the VM goes on; or there is none any more.
        """
        async with self._turn:
            return (await self._machine.rollback(to)).snapshot

    async def fork(
        self,
        count: int,
        code: str,
        *,
        randomness: Literal["diverge", "common"] = "diverge",
        timeout: float = _CELL_SECONDS,
        on_progress: OnProgress = lambda _progress: None,
    ) -> list[ForkResult]:
        """Run a cell in clones of the VM; those in which it ended by itself can be adopted until the next fork.

        Args:
            count: How many clones.
            code: The cell.
            randomness: Whether their generators are seeded differently or alike.
            timeout: Seconds that it may take in each.
            on_progress: Called whenever something has changed.

        Returns:
            What came of each; a clone that died, hung or flooded its output is a result, too.

        Raises:
            AgentVMError: there could be none.
        """
        request = ForkRequest(count=count, randomness=randomness, cell=self._last)

        async def work(supervisor: ForkSupervisor, lease: str) -> list[ForkResult]:
            return await run_forks(
                supervisor, lease, self._connect, request, code, timeout=timeout, on_progress=on_progress
            )

        async with self._turn:
            return await self._machine.fork(work)

    async def adopt(self, fork: int) -> None:
        """Go on in a fork.

        Args:
            fork: Its number.

        Raises:
            AgentVMError: the supervisor refused, and the VM goes on; or there is none any more.
        """
        async with self._turn:
            await self._machine.adopt(fork)

    def _present(self) -> Runner:
        if self._machine.error or self._guest.runner is None:
            raise self._machine.error or VMEndedError("There is no VM.")
        return self._guest.runner


class _GuestOfSession:
    """Hears of the machine's guests, and has the runner of the present one."""

    def __init__(self) -> None:
        self.runner: Runner | None = None
        self._ended: asyncio.Future[AgentVMError] | None = None

    async def guest_ready(self, guest: Guest) -> Awaitable[AgentVMError]:
        self._ended = asyncio.get_running_loop().create_future()
        self.runner = Runner(guest.streams["shell"], guest.streams["iopub"], guest.agent, self._ended)
        return never()

    async def guest_quiet(self) -> None:
        """Let the machine go on: what was received can still be read."""

    async def guest_ended(self, error: AgentVMError) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(error)

    async def guest_replaced(self, snapshot: SnapshotInfo) -> None:
        await self.guest_ended(VMEndedError("Another VM has taken this one's place."))

    def snapshot_begins(self) -> Callable[[str, bool], None]:
        return lambda _snapshot, _busy: None
