"""A VM for code, without a notebook: run cells in it, save it, go back, fork it.

`agentvm_kernel.session` has the same without an event loop.

async with AsyncSession(image="standard") as session:
    await session.run("import numpy as np; data = np.load('data.npy')")
    tried = await session.fork(8, "score = search(data); score", randomness="diverge")
    best = max((one for one in tried if one.kept), key=lambda one: float(one.cell.result))
    await session.adopt(best.fork)
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self, TypeVar

from agentvm_kernel.config import Paths
from agentvm_kernel.egress.record import Connection
from agentvm_kernel.errors import AgentVMError, LinkError, ProofError, ProtocolError, VMEndedError
from agentvm_kernel.kernel.endings import never
from agentvm_kernel.kernel.execution import LINK_LIMITS, CellResult, Runner
from agentvm_kernel.kernel.executions import cell_begins, copied, reported
from agentvm_kernel.kernel.forkpoint import ForkSupervisor
from agentvm_kernel.kernel.forks import ForkResult, OnProgress, run_forks
from agentvm_kernel.kernel.guest import Agent, Guest
from agentvm_kernel.kernel.machine import Machine
from agentvm_kernel.link.connection import connect
from agentvm_kernel.profiles import Limits
from agentvm_kernel.run.collect import ExecResult, OnOutput, collect
from agentvm_kernel.run.files import Bounds, Received, Sent, get, put
from agentvm_kernel.run.reported import program_reported
from agentvm_kernel.run.unpack import USUAL, no_progress
from agentvm_kernel.run.unpack import OnProgress as OnCopied
from agentvm_kernel.snapshots.notes import Cell
from agentvm_kernel.supervisor.client import SupervisorClient
from agentvm_kernel.supervisor.execution_messages import Execution
from agentvm_kernel.supervisor.fork_messages import ForkRequest
from agentvm_kernel.supervisor.messages import LeaseRequest, LimitsRequest
from agentvm_kernel.supervisor.snapshot_messages import RollbackPlan, SnapshotInfo, SnapshotRequest, SnapshotTree
from agentvm_kernel.validation import checked

__all__ = ["AsyncSession", "Bounds", "CellResult", "ExecResult", "ForkResult", "Received", "Sent"]

_T = TypeVar("_T")

_BETTER_REASON = 3.0
"""Seconds to wait, when the link broke, for the reason of the VM's end."""

_INTERRUPTS: Final = 2
_GRACE: Final = 2.0
"""Seconds for an interrupted cell to end."""

_ANEW: Final = "Open another session; with the same notebook=NAME it can roll back to the snapshots of this one."


class AsyncSession:
    """A leased VM, from entering the context to leaving it. Its methods are carried out one after the other.

    Args:
        image: Flavour of the image; by default ``AGENTVM_IMAGE``, or what is configured.
        profile: Name of the profile; by default ``AGENTVM_PROFILE``, or what is configured.
        notebook: What its snapshots belong to; sessions with the same name share them.
        allow: Hosts that it may reach besides those that are configured: ``HOST[:PORT]``.
        paths: The user's folders; found by default.
    """

    def __init__(
        self,
        *,
        image: str = "",
        profile: str = "",
        notebook: str = "experiment",
        allow: Sequence[str] = (),
        paths: Paths | None = None,
    ) -> None:
        image = image or os.environ.get("AGENTVM_IMAGE", "")
        profile = profile or os.environ.get("AGENTVM_PROFILE", "")
        request = checked(
            LeaseRequest, image=image, profile=profile, owner="experiment", notebook=notebook, allow=tuple(allow)
        )
        folders = paths or Paths.of_user()
        self._connect = partial(connect, limits=LINK_LIMITS)
        self._machine = Machine(request, lambda: SupervisorClient(folders), self._connect)
        self._turn = asyncio.Lock()
        self._guest = self._machine.watcher = _GuestOfSession(self._turn)
        self._last = Cell()
        self._background: set[asyncio.Task[object]] = set()

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
        if self._background:
            await asyncio.wait(self._background)

    async def run(self, code: str, *, timeout: float | None = None) -> CellResult:
        """Run a cell, and return its result: an exception, or its VM's end, is one. To cancel this interrupts the cell.

        Args:
            code: The cell.
            timeout: Seconds until it is interrupted; the limit `cell_deadline` by default.

        Raises:
            AgentVMError: the VM has ended before.
        """
        await self._turn.acquire()
        # A cell goes on until it has been interrupted, and so does its turn, even if nobody waits for it any more.
        cell = self._begin(self._run(code, timeout))
        cell.add_done_callback(lambda _: self._turn.release())
        try:
            return await asyncio.shield(cell)
        except asyncio.CancelledError:
            if not cell.done():
                self._begin(self._stop(cell))
            raise

    async def _stop(self, cell: asyncio.Task[CellResult]) -> None:
        """Interrupt a cell; again if it goes on, as one does that the guest had received but not begun."""
        for _ in range(_INTERRUPTS):
            await self.interrupt()
            await asyncio.wait([cell], timeout=_GRACE)
            if cell.done():
                return

    async def _run(self, code: str, timeout: float | None) -> CellResult:
        runner, deadline = self._present(), self._guest.limits.cell_deadline
        ended = reported(self._machine.network.report, self._begins(code))
        self._machine.network.running(Cell(run=self._last.run + 1, code=code[:2000]))
        cell = await runner.run(code, timeout=deadline if timeout is None else timeout)
        ended(cell)
        self._last = Cell(run=self._last.run + 1, count=cell.count, code=code[:2000])
        return cell

    def _begins(self, code: str) -> Execution:
        guest = self._machine.guest
        return cell_begins(code, guest.granted if guest else None, run=self._last.run + 1)

    async def interrupt(self) -> None:
        """Interrupt the cell that runs, as Ctrl-C does; nothing happens if none does, or there is no VM any more."""
        if self._guest.agent is not None:
            with suppress(LinkError):
                await self._guest.agent.interrupt()

    async def limits(self, **changes: float | None) -> Limits:
        """Change limits of the VM, and return all that hold then.

        Args:
            changes: New values by the names in `Limits`; without any, nothing is changed.

        Raises:
            AgentVMError: one is unknown or not valid; or there is no VM any more.
        """
        self._present()
        if changes:
            await self._machine.set_limits(checked(LimitsRequest, changes=changes).changes)
        self._guest.limits = self._machine.limits.now
        return self._guest.limits

    async def connections(self) -> list[Connection]:
        """Return the newest connections of the VM, oldest first, with those that were refused.

        Raises:
            AgentVMError: there is no VM any more.
        """
        return await self._machine.network.connections()

    async def snapshot(self, label: str = "", text: str = "") -> SnapshotInfo:
        """Take a snapshot, and return it.

        Args:
            label: Its name.
            text: What there is to say of it.

        Raises:
            AgentVMError: there is none now; the VM goes on.
        """
        async with self._turn:
            request = checked(SnapshotRequest, label=label, text=text, cell=self._last)
            return await self._machine.snapshot(request)

    async def snapshots(self) -> SnapshotTree:
        """Return all snapshots of the notebook.

        Raises:
            AgentVMError: there is no VM any more.
        """
        return await self._machine.snapshots()

    async def plan_rollback(self, to: SnapshotInfo | str = "") -> RollbackPlan:
        """Say what a rollback would do.

        Args:
            to: As for `rollback`.

        Raises:
            AgentVMError: it would be refused.
        """
        return await self._machine.plan_rollback(_reference(to))

    async def rollback(self, to: SnapshotInfo | str = "") -> SnapshotInfo:
        """Go back to a snapshot, and return it.

        Args:
            to: The snapshot, its label, its id, or ``~N``; the newest by default.

        Raises:
            AgentVMError: the supervisor refused, and the VM goes on; or there is none any more.
        """
        async with self._turn:
            return (await self._machine.rollback(_reference(to))).snapshot

    async def fork(
        self,
        count: int,
        code: str,
        *,
        randomness: Literal["diverge", "common"] = "diverge",
        timeout: float | None = None,
        on_progress: OnProgress = lambda _progress: None,
    ) -> list[ForkResult]:
        """Run a cell in clones of the VM; those in which it ended by itself can be adopted until the next fork.

        Each has its number, from 1, in the environment variable ``AGENTVM_FORK``.

        Args:
            count: How many clones.
            code: The cell.
            randomness: Whether their generators are seeded differently or alike.
            timeout: Seconds that it may take in each; the limit `cell_deadline` by default.
            on_progress: Called whenever something has changed.

        Returns:
            What came of each; a clone that died, hung or flooded its output is a result, too.

        Raises:
            AgentVMError: there could be none.
        """
        request = checked(ForkRequest, count=count, randomness=randomness, cell=self._last)

        async def work(supervisor: ForkSupervisor, lease: str) -> list[ForkResult]:
            seconds = self._guest.limits.cell_deadline if timeout is None else timeout
            return await run_forks(
                supervisor, lease, self._connect, request, code, timeout=seconds, on_progress=on_progress,
                report=self._machine.network.report,
            )  # fmt: skip

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

    async def exec(
        self,
        argv: Sequence[str],
        *,
        cwd: str = "",
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        timeout: float | None = None,
        on_output: OnOutput = lambda _output: None,
    ) -> ExecResult:
        """Run a program in the VM, beside whatever else runs there, and return how it ended; failing is a result.

        Args:
            argv: The program and its arguments. One that cannot be found exits with 127.
            cwd: Where it runs; a relative path begins at the user's home, where cells run, too.
            env: What is added to the environment of a login.
            stdin: Its standard input.
            timeout: Seconds until it is ended; None for no limit.
            on_output: Called with output as it comes.

        Raises:
            AgentVMError: it could not be started, or the VM has ended.
        """
        async with self._with_its_end():
            guest = self._machine.guest
            with program_reported(self._machine.network.report, guest.granted if guest else None, argv) as done:
                result = await collect(
                    self._machine, argv, cwd=cwd, env=env, stdin=stdin, timeout=timeout, on_output=on_output
                )
                done(result.code, result.timed_out)
            return result

    async def put(
        self,
        local: Path | str,
        remote: str = "",
        bounds: Bounds = USUAL,
        on_progress: OnCopied = no_progress,
    ) -> Sent:
        """Copy a file or a folder into the VM, whole or not at all.

        Args:
            local: What is copied.
            remote: What it becomes; a relative path begins at the user's home, one that ends with a slash gets the name
                of what is copied added, and so does none. A file there is replaced, a folder is an error.
            bounds: How much may be copied.
            on_progress: Called with how many bytes are there, and how many there are.

        Returns:
            What was copied, with its SHA-256.

        Raises:
            AgentVMError: it could not be copied, is more than the bounds, or the VM has ended.
        """
        async with self._with_its_end():
            sent = await put(self._machine, Path(local), remote, bounds=bounds, on_progress=on_progress)
            self._machine.network.report(copied("push", str(local), sent.digest, sent.size))
            return sent

    async def get(
        self, remote: str, local: Path | str, bounds: Bounds = USUAL, on_progress: OnCopied = no_progress
    ) -> Received:
        """Copy a file or a folder out of the VM, whole or not at all.

        Args:
            remote: What is copied; a relative path begins at the user's home.
            local: What it becomes. A file there is replaced, and so is an empty folder.
            bounds: How much is taken.
            on_progress: Called with how many bytes have come, and how many there are as the guest claims.

        Returns:
            What came, and what was left out: links that lead out, devices, named pipes, names that cannot be shown.

        Raises:
            AgentVMError: it could not be copied, is more than the bounds, or the VM has ended.
        """
        async with self._with_its_end():
            received = await get(self._machine, remote, Path(local), bounds, on_progress=on_progress)
            self._machine.network.report(copied("pull", remote, received.digest, received.size))
            return received

    @asynccontextmanager
    async def _with_its_end(self) -> AsyncIterator[None]:
        """Tell the VM's end in the place of the broken link that is the first sign of it."""
        self._present()
        guest_ended = self._guest.ended
        assert guest_ended is not None
        try:
            yield
        except (ProtocolError, ProofError):
            raise
        except LinkError as error:
            await asyncio.wait([guest_ended], timeout=_BETTER_REASON)
            raise (guest_ended.result() if guest_ended.done() else error) from error

    def _present(self) -> Runner:
        if self._machine.error or self._guest.runner is None:
            error = self._machine.error or VMEndedError("There is no VM.")
            error.hint = error.hint or _ANEW
            raise error
        return self._guest.runner

    def _begin(self, work: Coroutine[object, object, _T]) -> asyncio.Task[_T]:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task


def _reference(to: SnapshotInfo | str) -> str:
    return to.id if isinstance(to, SnapshotInfo) else to


class _GuestOfSession:
    """Hears of the machine's guests, and has what is needed of the present one.

    Args:
        turn: Held while something is done with it.
    """

    def __init__(self, turn: asyncio.Lock) -> None:
        self._turn = turn
        self.runner: Runner | None = None
        self.agent: Agent | None = None
        self.limits = Limits()
        self.ended: asyncio.Future[AgentVMError] | None = None

    async def guest_ready(self, guest: Guest) -> Awaitable[AgentVMError]:
        self.ended = asyncio.get_running_loop().create_future()
        self.agent, self.limits = guest.agent, guest.granted.limits
        self.runner = Runner(guest.streams["shell"], guest.streams["iopub"], guest.agent, self.ended)
        return never()

    async def guest_quiet(self) -> None:
        """Let the machine go on: what was received can still be read."""

    async def guest_ended(self, error: AgentVMError) -> None:
        if self.ended is not None and not self.ended.done():
            self.ended.set_result(error)

    async def guest_replaced(self, snapshot: SnapshotInfo) -> None:
        await self.guest_ended(VMEndedError("Another VM has taken this one's place."))

    async def guest_leaving(self, text: str, patience: float) -> SnapshotRequest:
        """Say what there is to say; a cell that runs is frozen."""
        return SnapshotRequest(text=text, busy=self._turn.locked())

    def snapshot_begins(self) -> Callable[[str, bool], None]:
        return lambda _snapshot, _busy: None
