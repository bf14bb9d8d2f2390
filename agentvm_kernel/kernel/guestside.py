"""Takes what the guest says, checks it, and leads it to the clients it is for."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Final, TypeVar

from agentvm_kernel.errors import AgentVMError, LinkError, ProtocolError
from agentvm_kernel.firewall.context import Block
from agentvm_kernel.firewall.firewall import Firewall
from agentvm_kernel.firewall.reasons import Reason
from agentvm_kernel.kernel.answers import Answers
from agentvm_kernel.kernel.debugging import Debugging
from agentvm_kernel.kernel.facts import CellFacts
from agentvm_kernel.kernel.guest import CHANNELS, Guest
from agentvm_kernel.kernel.hostcomms import HostComms
from agentvm_kernel.kernel.info import with_banner
from agentvm_kernel.kernel.jsoncheck import PARSE_LIMIT, parse_object
from agentvm_kernel.kernel.output import OutputGate, Verdict
from agentvm_kernel.kernel.requests import Request, RequestTable
from agentvm_kernel.kernel.sockets import Sockets
from agentvm_kernel.kernel.timeline import Timeline
from agentvm_kernel.kernel.wire import GuestMessage, WireError, check_guest

log = logging.getLogger("agentvm.guest")

_T = TypeVar("_T")

_SHOWN: Final = frozenset({"stream", "display_data", "update_display_data", "execute_result", "error", "clear_output"})
_ADDED: Final = _SHOWN - {"update_display_data"}
_COMMS: Final = frozenset({"comm_open", "comm_close"})
_STATES: Final = frozenset({"busy", "idle", "starting"})
_LONG: Final = 16 << 10
_LONG_RICH: Final = 1 << 10
"""Bytes of a message from which on cleaning can take long; a thread costs a tenth of a millisecond.

A text takes nanoseconds a byte, but 16 KiB of SVG with a style sheet 100 ms.
"""

_QUIET: Final = 0.1
_QUIET_LIMIT: Final = 2.0


class GuestSide:
    """Reads the four Jupyter streams of one guest.

    All of it is hostile: a message that is not well-formed, not allowed on its channel or not asked for is dropped and
    counted. A guest cannot answer what it was not asked, answer twice, answer with another type, or ask the user for
    input on behalf of a request that does not allow it.

    Args:
        guest: The guest.
        table: Its requests.
        sockets: The clients.
        answers: The host's voice on iopub and for replies.
        timeline: Takes notice of runs, comms and subshells.
        debugging: Takes notice of a debugger that stops it.
        gate: Bounds its output.
        firewall: Cleans it.
        host_comms: The host's own comms, which clients hear of in the same answers.
        blocked: Called with each part of its output that is left out, and whose it is.
        replied: Called with a cell, and its reply, when the guest is done with it and may begin with the next; tells
            what it cost.
        failed: Called after an error reply that is to abort what waits behind its request.
    """

    def __init__(
        self,
        guest: Guest,
        table: RequestTable,
        sockets: Sockets,
        answers: Answers,
        timeline: Timeline,
        debugging: Debugging,
        gate: OutputGate,
        firewall: Firewall,
        host_comms: HostComms,
        blocked: Callable[[Request | None, Reason], None],
        replied: Callable[[Request, dict[str, object]], Awaitable[CellFacts | None]],
        failed: Callable[[Request], Awaitable[None]],
    ) -> None:
        self.dropped: Counter[str] = Counter()
        self._blocked = blocked
        self._replied = replied
        self._failed = failed
        self._guest = guest
        self._table = table
        self._sockets = sockets
        self._answers = answers
        self._timeline = timeline
        self._debugging = debugging
        self._gate = gate
        self._firewall = firewall
        self._host_comms = host_comms
        self._heard = asyncio.Event()
        self._tasks = [asyncio.create_task(self._read(channel), name=f"guest-{channel}") for channel in CHANNELS]

    async def close(self) -> None:
        """Stop reading."""
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    async def broken(self) -> AgentVMError:
        """Return once a reader failed on something that was not foreseen, which ends the guest."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_EXCEPTION)
        failures = [error for task in done if not task.cancelled() and (error := task.exception())]
        if not failures:
            await asyncio.Event().wait()
        log.error("a message of the guest could not be handled", exc_info=failures[0])
        return ProtocolError(f"A message of the VM could not be handled ({type(failures[0]).__name__}).")

    async def quiet(self) -> None:
        """Return when nothing more comes, at the latest after two seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_QUIET_LIMIT):
                while await self._heard_within(_QUIET):
                    pass

    async def _heard_within(self, seconds: float) -> bool:
        self._heard.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._heard.wait()
        except TimeoutError:
            return False
        return True

    async def _read(self, channel: str) -> None:
        stream = self._guest.streams[channel]
        handle = {"shell": self._reply, "control": self._reply, "stdin": self._input, "iopub": self._iopub}[channel]
        while True:
            try:
                parts = await stream.receive()
            except LinkError:
                return  # the machine, which watches the link, tells everybody why
            self._heard.set()
            try:
                await handle(channel, check_guest(channel, parts))
            except WireError as error:
                self.drop(channel, str(error))

    def drop(self, channel: str, why: str) -> None:
        """Count a message that is not passed on; the log gets the first of a kind, so that it cannot be flooded."""
        if len(self.dropped) < 100 and not self.dropped[why]:
            log.warning("dropped a message of the guest on %s: %s", channel, why)
        self.dropped[why if len(self.dropped) < 100 else "others"] += 1

    async def _reply(self, channel: str, message: GuestMessage) -> None:
        request = self._table.find(message.parent_id)
        if request is None or request.replied or request.channel != channel:
            raise WireError("a reply to what was not asked")
        if message.msg_type != request.reply_type:
            raise WireError("a reply of another type than asked for")
        clean = partial(self._firewall.reply, message.msg_type, message.content)
        content = await self._cleaned(message, self._block(request), clean)
        self._table.replied(request)
        metadata: dict[str, object] = {}
        if message.msg_type == "kernel_info_reply":
            content = with_banner(content)
        if message.msg_type == "comm_info_reply" and isinstance(known := content.get("comms"), dict):
            known |= self._host_comms.told(request.target)
        if message.msg_type == "create_subshell_reply":
            self._timeline.comms.subshell_opened(content)
        if request.is_execute:
            self._note_run(request, content)
            request.facts = await self._replied(request, content)
            metadata = self._answers.stamp(request)
        if request.hold:
            request.reply = content
        elif request.keep_idle:
            request.late = (content, metadata)
        else:
            self._answers.reply(request, content, msg_type=message.msg_type, metadata=metadata)
        request.settle(replied=True)
        if request.fails(content) and request.late is None:
            await self._failed(request)

    def _note_run(self, request: Request, content: dict[str, object]) -> None:
        count = _count(content)
        if count is not None:
            self._answers.execution_count = count
        if not (request.hold or request.silent or content["status"] == "aborted"):
            self._timeline.ran(request.run, count, request.code)

    async def _input(self, channel: str, message: GuestMessage) -> None:
        request = self._table.find(message.parent_id)
        if request is None or request.replied or not request.allow_stdin:
            raise WireError(f"an input request on {channel} that no running cell allows")
        prompt = self._firewall.prompt(message.content, request.code, self._block(request))
        host_id, frames = self._sockets.wire.pack("input_request", prompt, parent=request.message.raw_header)
        if not request.expect_input(host_id, message.raw_header):
            raise WireError("too many input requests without an answer")
        self._sockets.send("stdin", request.message.idents, frames)

    async def _iopub(self, channel: str, message: GuestMessage) -> None:
        request = self._table.find(message.parent_id)
        if message.msg_type == "status":
            await self._status(request, self._state(message))
            return
        if request is None and message.msg_type in _SHOWN:
            request = self._table.stray
        if await self._is_shown(request, message):
            await self._show(request, message)
        await self._gate.pace(request, message)

    async def _status(self, request: Request | None, state: str) -> None:
        """Pass on a status, and before `idle` what belongs to its cell."""
        ends = request is not None and state == "idle"
        if request and ends:
            await self._answers.tell_blocked(request)
            if request.is_execute and not request.hold:
                await self._host_comms.cell_over(request)
        if request and await self._keeps(request, state):
            return
        if request and ends and request.shows_facts:
            await request.replied_within(_QUIET_LIMIT)
            await self._answers.tell_facts(request)
        self._table.frozen &= state != "idle" or request is not None
        await self._answers.publish("status", {"execution_state": state}, request)
        if request and ends:
            request.settle(idle=True)

    async def _show(self, request: Request | None, message: GuestMessage) -> None:
        """Pass on what the firewall lets through."""
        if message.msg_type == "execute_input":
            if request is not None:
                shown = {"code": request.code, "execution_count": _count(_small(message.content)) or 0}
                await self._answers.publish("execute_input", shown, request)
            return
        parts = (message.msg_type, message.content, message.metadata, message.buffers)
        cleaned = await self._cleaned(message, self._block(request), partial(self._firewall.output, *parts))
        if cleaned is not None:
            self._take_note(message, cleaned.content)
            if request is not None and message.msg_type in _ADDED:
                request.is_clearing = cleaned.content.get("wait") is True and message.msg_type == "clear_output"
            await self._answers.publish(
                message.msg_type, cleaned.content, request, metadata=cleaned.metadata, buffers=cleaned.buffers
            )
        if request and request.idle:
            await self._answers.tell_left_out(request)

    async def _cleaned(self, message: GuestMessage, block: Block, clean: Callable[[Block], _T]) -> _T:
        """Have the firewall clean a message; a long one in a thread, so that clients are answered meanwhile."""
        if message.size < (_LONG if message.msg_type == "stream" else _LONG_RICH):
            return clean(block)
        found: list[tuple[Reason, str]] = []
        work = asyncio.create_task(asyncio.to_thread(clean, lambda *what: found.append(what)))
        try:
            cleaned = await asyncio.shield(work)
        finally:
            await asyncio.wait([work])  # the firewall is for the next guest, too
        for reason, words in found:
            block(reason, words)
        return cleaned

    def _block(self, request: Request | None) -> Block:
        """Return who takes note of what is blocked."""

        def take(reason: Reason, words: str) -> None:
            self._blocked(request, reason)
            if request is not None:
                request.leave_out(reason, words)

        return take

    async def _is_shown(self, request: Request | None, message: GuestMessage) -> bool:
        """Whether an output is passed on; the first that is too much gets a note in its place."""
        verdict = self._gate.judge(request, message)
        if verdict is Verdict.LAST:
            content: dict[str, object] = {"name": "stderr", "text": self._gate.note()}
            await self._answers.publish("stream", content, request)
        return verdict is Verdict.SHOWN

    def _take_note(self, message: GuestMessage, content: dict[str, object]) -> None:
        if message.msg_type == "comm_msg":
            self._host_comms.add_states(content)
        elif message.msg_type in _COMMS:
            self._timeline.comms.note(message.msg_type, content)
        elif message.msg_type == "debug_event":
            self._debugging.said(message.content)

    def _state(self, message: GuestMessage) -> str:
        state = parse_object(message.content).get("execution_state") if len(message.content) < 4096 else ""
        if not isinstance(state, str) or state not in _STATES:
            raise WireError("a status that does not exist")
        return state

    async def _keeps(self, request: Request, state: str) -> bool:
        """Whether a status is not passed on: a second `busy`, the `idle` of a stub or before a snapshot."""
        if state == "busy":
            return not request.start()
        if state == "idle" and (request.hold or request.keep_idle):
            request.idle_kept = True
            request.settle(idle=True)
            return True
        return False


def _small(content: bytes) -> dict[str, object]:
    return parse_object(content) if len(content) <= PARSE_LIMIT else {}


def _count(content: dict[str, object]) -> int | None:
    count = content.get("execution_count")
    return count if isinstance(count, int) and not isinstance(count, bool) and 0 <= count < 1 << 31 else None
