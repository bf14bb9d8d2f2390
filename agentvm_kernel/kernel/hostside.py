"""Carries out host magics, and takes time travel's snapshots."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from agentvm_kernel.errors import AgentVMError
from agentvm_kernel.kernel.answers import OF_HOST, Answers
from agentvm_kernel.kernel.chronicle import Chronicle
from agentvm_kernel.kernel.directive import allowed_hosts
from agentvm_kernel.kernel.facts import CellFacts, Facts
from agentvm_kernel.kernel.fence import PATIENCE
from agentvm_kernel.kernel.host import Host
from agentvm_kernel.kernel.hostcomms import HostComms
from agentvm_kernel.kernel.info import Usage
from agentvm_kernel.kernel.machine import Machine
from agentvm_kernel.kernel.magic import Magic
from agentvm_kernel.kernel.network import cell_of
from agentvm_kernel.kernel.progress import ProgressDisplay
from agentvm_kernel.kernel.requests import Request, RequestTable
from agentvm_kernel.kernel.timeline import Timeline
from agentvm_kernel.kernel.wire import encode


class HostSide:
    """What the host does in the guest's place, or after it.

    Args:
        machine: The VM under the notebook.
        answers: The host's voice.
        progress: Shows what takes long.
        table: What the guest has been asked.
        timeline: Where the notebook stands.
        chronicle: What happened in it.
        host_comms: Widgets of the host's own.
        usage: Measures the VM.
        facts: Measures cells.
        forward: Gives a request to the guest, or refuses it when there is none.
    """

    def __init__(
        self,
        machine: Machine,
        answers: Answers,
        progress: ProgressDisplay,
        table: RequestTable,
        timeline: Timeline,
        chronicle: Chronicle,
        host_comms: HostComms,
        usage: Usage,
        facts: Facts,
        forward: Callable[[Request], Awaitable[None]],
    ) -> None:
        self._machine = machine
        self._answers = answers
        self._progress = progress
        self._table = table
        self._timeline = timeline
        self._chronicle = chronicle
        self._host_comms = host_comms
        self._usage = usage
        self._facts = facts
        self._forward = forward

    async def perform(self, request: Request, magic: Magic) -> bool:
        """Carry out a magic; the guest runs a comment in its place, so that its count and history go on.

        Returns:
            Whether it succeeded.
        """
        if self._machine.guest is None:
            return await self.perform_at_once(request, magic)
        content = json.loads(request.message.content)
        lines = request.code.strip().replace("\0", "\N{REPLACEMENT CHARACTER}").splitlines()  # Python takes no NUL
        content["code"] = "\n".join(f"# {line}" for line in lines)
        request.message.content = encode(content)
        request.hold = True
        await self._forward(request)
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE if magic.discards else None):
                await request.over()
        request.replied = request.idle = False
        return await self._run(request, magic)

    async def perform_at_once(self, request: Request, magic: Magic) -> bool:
        """Carry out a magic without the guest, which is busy, or gone."""
        request.run = self._timeline.next_run()
        await self._answers.busy(request)
        await self._answers.show_input(request)
        return await self._run(request, magic)

    async def _run(self, request: Request, magic: Magic) -> bool:
        host = self._host(request)
        if self._machine.guest is not None:
            self._machine.network.running(cell_of(request))
        began, before = time.monotonic(), self._timeline.snapshot
        try:
            async with self._progress.shown(lambda: request):
                data = await magic.run(host)
        except AgentVMError as error:
            request.facts = self._facts_of_magic(began, before)
            await self._answers.fail(request, error, remedy=False)
            return False
        request.facts = self._facts_of_magic(began, before)
        if data and not request.silent:
            content: dict[str, object] = {"data": dict(data), "metadata": {}}
            if host.display_id:
                content["transient"] = {"display_id": host.display_id}
            await self._answers.publish("display_data", content, request, metadata=dict(OF_HOST))
        reply = request.reply or {"execution_count": self._answers.execution_count, "user_expressions": {}}
        metadata = self._answers.stamp(request, **({"taken": host.taken} if host.taken else {}), **host.told)
        self._answers.reply(request, {"payload": [], **reply, "status": "ok"}, metadata=metadata)
        await self._answers.idle(request)
        return True

    async def run_alone(self, request: Request, *, recorded: bool) -> bool:
        """Let the guest run a cell with what its directives ask for.

        Args:
            request: The cell.
            recorded: Take a snapshot before the client is told that it is idle.

        Returns:
            Whether it could be run, and what waits behind it may be.
        """
        request.run = self._timeline.next_run()
        try:
            async with self._machine.network.allowed(allowed_hosts(request.code), cell_of(request)):
                if recorded:
                    return await self._record(request)
                await self._forward(request)
                await request.over()
        except AgentVMError as error:
            await self._answers.busy(request)
            await self._answers.show_input(request)
            await self._answers.fail(request, error, remedy=False)
            return False
        return True

    async def _record(self, request: Request) -> bool:
        """Let the guest run a cell, and take a snapshot before the client has its reply and is told that it is idle.

        Returns:
            Whether what waits behind it may be run.
        """
        guest = self._machine.guest
        if guest is not None and self._timeline.unseen:
            await self._snapshot_for(request)
        request.keep_idle = True
        await self._forward(request)
        await request.over()
        if guest is not None and self._machine.guest is guest:
            await self._snapshot_for(request)
        request.keep_idle = False
        has_failed = request.late is not None and request.fails(request.late[0])
        self._answers.reply_late(request)
        if request.idle_kept:
            await self._answers.idle(request)
        return not has_failed

    async def _snapshot_for(self, request: Request) -> None:
        self._timeline.unseen = False
        try:
            await self._host(request).snapshot(kind="auto", wait_stored=False)
        except AgentVMError as error:
            text = f"Time travel has no snapshot here: {' '.join(filter(None, (error.message, error.hint)))}\n"
            await self._answers.publish("stream", {"name": "stderr", "text": text}, request)

    def _facts_of_magic(self, began: float, before: str) -> CellFacts:
        """Return what a magic cost; what the VM did meanwhile is no matter of it."""
        return CellFacts(time.monotonic() - began, snapshot_before=before, snapshot_after=self._timeline.snapshot)

    def _host(self, request: Request) -> Host:
        return Host(
            request, self._machine, self._timeline, self._chronicle, self._table, self._usage, self._facts,
            self._host_comms,
        )  # fmt: skip
