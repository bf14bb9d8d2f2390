"""Runs a cell in several clones of a VM at the same time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Final

from agentvm_kernel.errors import AgentVMError, ApiError, SupervisorError, VMEndedError
from agentvm_kernel.firewall.policy import Policy
from agentvm_kernel.kernel.execution import CellResult, running
from agentvm_kernel.kernel.executions import cell_begins, reported
from agentvm_kernel.kernel.forkpoint import ForkEvent, ForkSupervisor
from agentvm_kernel.kernel.guest import Connect
from agentvm_kernel.kernel.outputs import Outputs
from agentvm_kernel.observe.process import read_usage
from agentvm_kernel.supervisor.execution_messages import Execution
from agentvm_kernel.supervisor.fork_messages import ForkEnded, ForkGranted, ForkRequest
from agentvm_kernel.supervisor.messages import Granted

log = logging.getLogger("agentvm.forks")

_KEPT: Final = frozenset({"ok", "error"})
_DEFAULT: Final = Policy()
_SHOWN: Final = 256 << 10
_ALL_SHOWN: Final = 2 << 20
"""Bytes of what one fork, and all of them, show that are kept: the notebook's file gets them."""


@dataclass(frozen=True)
class ForkResult:
    """What came of one fork.

    Attributes:
        fork: Its number, from 1.
        cell: What came of the cell.
        memory: Bytes of the host's memory that its QEMU had for itself at the end, because it wrote them, as the host
            counts them; 0 if it was gone.
        cpu_seconds: CPU time of its QEMU for the cell, likewise.
        kept: It rests and can be adopted.
    """

    fork: int
    cell: CellResult
    memory: int = 0
    cpu_seconds: float = 0.0
    kept: bool = False


@dataclass(frozen=True)
class ForkProgress:
    """How far the forks are.

    Attributes:
        stage: What the supervisor is doing, if it said so.
        running: Forks that run the cell.
        finished: Forks that are done with it.
        count: All forks.
    """

    stage: str
    running: int
    finished: int
    count: int


OnProgress = Callable[[ForkProgress], None]


async def run_forks(
    supervisor: ForkSupervisor,
    lease: str,
    connect: Connect,
    request: ForkRequest,
    code: str,
    *,
    timeout: float,
    on_progress: OnProgress = lambda _progress: None,
    report: Callable[[Execution], None] = lambda _: None,
    policy: Policy = _DEFAULT,
) -> list[ForkResult]:
    """Run a cell in clones of a leased VM, and keep those in which it ended by itself.

    A fork that dies, hangs or floods costs only itself. When this is cancelled or fails, all forks end.

    Args:
        supervisor: Clones.
        lease: Whose VM is cloned.
        connect: Dials a guest; its link should have `execution.LINK_LIMITS`.
        request: How many, and what becomes of their generators.
        code: The cell.
        timeout: Seconds that it may take in each of them; waiting for a place to run does not count.
        on_progress: Called whenever something has changed.
        report: Tells the supervisor's audit log what runs, and how it ended; must not block.
        policy: What may be shown of their output.

    Returns:
        What came of each, by number.

    Raises:
        AgentVMError: there could be no forks at all, or the supervisor went away.
    """
    forking = _Forking(supervisor, lease, connect, request.count, on_progress, report, policy)
    async with supervisor.forks(lease, request) as events:
        try:
            async with asyncio.TaskGroup() as tasks:
                listener = tasks.create_task(forking.listen(events, tasks, code, timeout))
                await forking.complete.wait()
                listener.cancel()
        except ExceptionGroup as group:
            await forking.discard()
            raise group.exceptions[0] from None
        except asyncio.CancelledError:
            await forking.discard()
            raise
    return [forking.results[number] for number in sorted(forking.results)]


class _Forking:
    """One request's forks on their way.

    Attributes:
        results: Of those that are done, by number.
        complete: All are done.
    """

    def __init__(
        self,
        supervisor: ForkSupervisor,
        lease: str,
        connect: Connect,
        count: int,
        on_progress: OnProgress,
        report: Callable[[Execution], None],
        policy: Policy,
    ) -> None:
        self.results: dict[int, ForkResult] = {}
        self.complete = asyncio.Event()
        self._supervisor = supervisor
        self._lease = lease
        self._connect = connect
        self._count = count
        self._on_progress = on_progress
        self._report_execution = report
        self._policy = policy
        self._stage = ""
        self._lost: dict[int, asyncio.Future[AgentVMError]] = {}
        self._work: set[asyncio.Task[None]] = set()

    async def listen(
        self, events: AsyncIterator[ForkEvent], tasks: asyncio.TaskGroup, code: str, timeout: float
    ) -> None:
        """Take the supervisor's events, and run the cell in each fork that is granted.

        Raises:
            AgentVMError: there are no forks, or no more of them.
        """
        async for event in events:
            if isinstance(event, ForkGranted):
                self._lost[event.fork] = asyncio.get_running_loop().create_future()
                self._work.add(tasks.create_task(self._serve(event.fork, event.granted, code, timeout)))
            elif isinstance(event, ForkEnded):
                self._ended(event)
            else:
                self._stage = event.stage[:200]
            self._report()
        if self._work:
            await asyncio.wait(self._work)
        if len(self.results) < self._count:
            raise SupervisorError("The supervisor went away before all forks were done.")

    async def discard(self) -> None:
        """End all forks, those that rest, too."""
        for number in self._lost:
            if number not in self.results or self.results[number].kept:
                await self._end(number)

    def _ended(self, event: ForkEnded) -> None:
        if event.fork == 0:
            raise ApiError(event.code, event.reason, event.hint)
        error = VMEndedError(event.reason[:2000], event.hint[:2000])
        lost = self._lost.get(event.fork)
        if event.fork in self.results:
            self.results[event.fork] = replace(self.results[event.fork], kept=False)
        elif lost is None:
            self._finish(ForkResult(event.fork, CellResult("died", reason=error.message)))
        elif not lost.done():
            lost.set_result(error)

    async def _serve(self, number: int, granted: Granted, code: str, timeout: float) -> None:
        ended = reported(self._report_execution, cell_begins(code, granted, fork=number))
        try:
            result = await self._run(number, granted, code, timeout)
        except asyncio.CancelledError:
            ended(CellResult("died", reason="It was interrupted."))
            raise
        ended(result.cell)
        kept = result.cell.status in _KEPT and await self._rest(number)
        if not kept and not self._lost[number].done():
            await self._end(number)
        self._finish(replace(result, kept=kept))

    async def _run(self, number: int, granted: Granted, code: str, timeout: float) -> ForkResult:
        lost, before = self._lost[number], read_usage(granted.pid)
        try:
            link = await self._connect(granted.link, key=bytes.fromhex(granted.key), epoch=granted.epoch)
            try:
                async with running(link, asyncio.shield(lost)) as runner:
                    kept = Outputs(self._policy, min(_SHOWN, _ALL_SHOWN // self._count))
                    cell = await runner.run(code, timeout=timeout, outputs=kept)
            finally:
                await link.close()
        except AgentVMError as error:
            cell = CellResult("died", reason=(lost.result() if lost.done() else error).message)
        # Its proportional set size would tell no more, and to walk through all its page tables holds up the others.
        after = read_usage(granted.pid)
        if before is None or after is None:
            return ForkResult(number, cell)
        return ForkResult(number, cell, after.written, after.cpu_seconds - before.cpu_seconds)

    async def _rest(self, number: int) -> bool:
        try:
            await self._supervisor.rest_fork(self._lease, number)
        except AgentVMError as error:
            log.info("fork %d cannot be kept: %s", number, error.message)
            return False
        return True

    async def _end(self, number: int) -> None:
        try:
            await self._supervisor.end_fork(self._lease, number)
        except AgentVMError as error:
            log.info("fork %d has ended already: %s", number, error.message)

    def _finish(self, result: ForkResult) -> None:
        self.results[result.fork] = result
        self._report()
        if len(self.results) == self._count:
            self.complete.set()

    def _report(self) -> None:
        running = sum(number not in self.results for number in self._lost)
        self._on_progress(ForkProgress(self._stage, running, len(self.results), self._count))
