"""Runs single cells in a guest and collects what comes of them, where no notebook shows it: forks, experiments."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal

from agentvm_kernel.errors import AgentVMError, LinkError
from agentvm_kernel.firewall.reasons import Reason
from agentvm_kernel.kernel.endings import best_reason, never, watched
from agentvm_kernel.kernel.guest import Agent, Link, Stream
from agentvm_kernel.kernel.jsoncheck import PARSE_LIMIT, is_plain, parse_object
from agentvm_kernel.kernel.outputs import Output, Outputs
from agentvm_kernel.kernel.wire import GuestMessage, WireError, check_guest
from agentvm_kernel.link.limits import Limits

LINK_LIMITS: Final = Limits(max_message=8 << 20)
"""For links that only run cells: many of them may be open, and the host holds whole messages."""

_LAST_WORDS: Final = 0.3
"""Seconds for what a guest's kernel said before it died to be read."""

_BETTER_REASON: Final = 3.0
"""Seconds to wait, when only a stream ended, for a reason."""

_GRACE: Final = 5.0
"""Seconds for an interrupted cell to end."""

_TEXT_BEGINS: Final = re.compile(
    rb'\s*+\{\s*+"name"\s*+:\s*+"(?P<name>stdout|stderr)"\s*+,\s*+"text"\s*+:\s*+"'
    rb"(?P<text>(?:[\x20\x21\x23-\x5b\x5d-\x7e]|[\xc2-\xf4][\x80-\xbf]++|\\u[0-9a-fA-F]{4}|\\[^u]){0,262144})"
)
"""The first characters of a text that is too long to be parsed, in JSON as ipykernel writes it."""

_MAX_NAME: Final = 200
_MAX_TRACEBACK: Final = 100_000

Status = Literal["ok", "error", "timeout", "flood", "died"]


@dataclass(frozen=True)
class CellError:
    """The exception that ended a cell.

    Attributes:
        name: Its class.
        value: Its text.
        traceback: ipykernel's rendering, coloured by escape sequences.
    """

    name: str
    value: str
    traceback: str


@dataclass(frozen=True)
class CellResult:
    """What came of a cell; all that the guest said is only claimed, and may hold escape sequences.

    Attributes:
        status: ``ok``; ``error``: the code raised; ``timeout``: it was interrupted because its time was up; ``flood``:
            it was, because it put out too much; ``died``: its VM or the Python process in it is gone.
        stdout: What it printed, up to a limit; a last line says how much is missing.
        stderr: The same for stderr.
        result: The last expression's value as text; empty without one.
        error: The exception.
        displays: Rich outputs that were displayed.
        outputs: All that it showed, as the firewall let it through; empty unless that was asked for.
        blocked: How much the firewall did not let through, by reason.
        dropped: Bytes of output that are not kept.
        count: The guest's execution count.
        seconds: From the request to the end, as measured on the host.
        reason: Why it timed out, was cut off or died; else empty.
    """

    status: Status
    stdout: str = ""
    stderr: str = ""
    result: str = ""
    error: CellError | None = None
    displays: int = 0
    outputs: tuple[Output, ...] = ()
    blocked: dict[Reason, int] = field(default_factory=dict)
    dropped: int = 0
    count: int | None = None
    seconds: float = 0.0
    reason: str = ""


@dataclass(frozen=True)
class OutputLimits:
    """How much output is kept, and how much is taken at all.

    Attributes:
        kept: Characters kept of stdout, of stderr and of the result, each.
        taken: Bytes of output after which a cell is stopped.
    """

    kept: int = 1 << 20
    taken: int = 64 << 20


class _Text:
    """Text up to a limit."""

    def __init__(self, limit: int) -> None:
        self._parts: list[str] = []
        self._room = limit
        self.dropped = 0

    def add(self, text: str) -> None:
        kept = text[: self._room]
        self._room -= len(kept)
        if kept:
            self._parts.append(kept)
        self.dropped += len(text) - len(kept)

    def __str__(self) -> str:
        text = "".join(self._parts)
        if self.dropped:
            text += f"\n[{self.dropped} more characters were left out]\n"
        return text


@dataclass
class _Cell:
    """A cell while it runs.

    Attributes:
        limits: Bounds of its output.
        outputs: Keeps what it shows, if that is wanted.
        over: Done when both its reply and its last output are there.
        flooded: Done when it has put out too much.
    """

    limits: OutputLimits
    outputs: Outputs | None = None
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    over: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    flooded: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    began: float = field(default_factory=lambda: asyncio.get_running_loop().time())

    def __post_init__(self) -> None:
        self._stdout, self._stderr, self._result = (_Text(self.limits.kept) for _ in range(3))
        self._taken = 0
        self._dropped = 0
        self._displays = 0
        self._error: CellError | None = None
        self._reply: dict[str, object] | None = None
        self._idle = False

    def take(self, channel: str, parts: list[bytes]) -> None:
        """Take a message of the guest's."""
        self._taken += sum(map(len, parts))
        if self._taken > self.limits.taken and not self.flooded.done():
            self.flooded.set_result(None)
        try:
            message = check_guest(channel, parts)
        except WireError:
            return
        if message.parent_id != self.id:
            return
        if message.msg_type == "execute_reply" and self._reply is None:
            self._reply = self._parse(message) or {}
        elif channel == "iopub":
            self._take_output(message)
        if self._reply is not None and self._idle and not self.over.done():
            self.over.set_result(None)

    def _take_output(self, message: GuestMessage) -> None:
        if self.outputs is not None:
            self.outputs.take(message)
        content = self._parse(message)
        if message.msg_type == "status":
            self._idle = self._idle or content.get("execution_state") == "idle"
        elif message.msg_type == "stream":
            text = self._stderr if content.get("name") == "stderr" else self._stdout
            text.add(_string(content, "text"))
        elif message.msg_type == "execute_result":
            data = content.get("data")
            self._result.add(_string(data, "text/plain") if isinstance(data, dict) else "")
        elif message.msg_type == "display_data":
            self._displays += 1
        elif message.msg_type == "error":
            self._error = _error(content)

    def _parse(self, message: GuestMessage) -> dict[str, object]:
        """Return a message's content; if it would take too much memory, only the beginning of a text."""
        if len(message.content) <= PARSE_LIMIT or is_plain(message.content):
            return parse_object(message.content)
        match = _TEXT_BEGINS.match(message.content) if message.msg_type == "stream" else None
        self._dropped += len(message.content) - (match.end() if match else 0)
        if match is None:
            return {}
        text = (
            json.loads(b'"' + match["text"] + b'"') + f"\n[{len(message.content) - match.end()} bytes were left out]\n"
        )
        return {"name": match["name"].decode(), "text": text}

    def finish(self, status: Status, reason: str = "") -> CellResult:
        """Return what came; a cell that ended by itself has the status that its reply claims."""
        reply = self._reply or {}
        error = self._error
        if status == "ok" and reply.get("status") != "ok":
            status, error = "error", error or _error(reply)
        count = reply.get("execution_count")
        return CellResult(
            status=status,
            stdout=str(self._stdout),
            stderr=str(self._stderr),
            result=str(self._result),
            error=error,
            displays=self._displays,
            outputs=self.outputs.shown() if self.outputs else (),
            blocked=dict(self.outputs.firewall.blocked) if self.outputs else {},
            dropped=self._dropped + sum(text.dropped for text in (self._stdout, self._stderr, self._result)),
            count=count if isinstance(count, int) and not isinstance(count, bool) else None,
            seconds=asyncio.get_running_loop().time() - self.began,
            reason=reason,
        )


class Runner:
    """Runs cells in a guest, one at a time. Made by `running`.

    Args:
        shell: The guest's stream of that name.
        iopub: The guest's stream of that name.
        agent: Interrupts.
        ended: Done when the guest has ended; says why.
    """

    def __init__(self, shell: Stream, iopub: Stream, agent: Agent, ended: asyncio.Future[AgentVMError]) -> None:
        self._streams = {"shell": shell, "iopub": iopub}
        self._agent = agent
        self._ended = ended

    async def run(
        self,
        code: str,
        *,
        timeout: float,
        limits: OutputLimits = OutputLimits(),
        outputs: Outputs | None = None,
    ) -> CellResult:
        """Run a cell to its end; whatever becomes of it is a result.

        Args:
            code: The cell.
            timeout: Seconds until it is interrupted.
            limits: Bounds of its output.
            outputs: Keeps what it shows.
        """
        cell = _Cell(limits, outputs)
        work = (self._send(cell.id, code), self._read("shell", cell), self._read("iopub", cell))
        async with watched(*work) as broken:
            ends = (self._ended, *broken)
            await _first(cell.over, cell.flooded, *ends, timeout=timeout)
            if not cell.over.done() and any(end.done() for end in ends):
                await _first(cell.over, timeout=_LAST_WORDS)
                if not cell.over.done():
                    return cell.finish("died", await self._reason(broken))
            if cell.over.done():
                return cell.finish("ok")
            with suppress(LinkError):
                await self._agent.interrupt()
                # A moment to end, so that the guest can be used again.
                await _first(cell.over, *ends, timeout=_GRACE)
        if cell.flooded.done():
            return cell.finish("flood", f"It put out more than {limits.taken / (1 << 20):g} MiB.")
        return cell.finish("timeout", f"It was not done within {timeout:g} s.")

    async def _reason(self, broken: list[asyncio.Task[AgentVMError]]) -> str:
        await _first(self._ended, timeout=_BETTER_REASON)
        ends = (self._ended, *broken)
        return next(end.result().message for end in ends if end.done())

    async def _send(self, msg_id: str, code: str) -> AgentVMError:
        header = {
            "msg_id": msg_id,
            "msg_type": "execute_request",
            "session": "agentvm",
            "username": "agentvm",
            "date": datetime.now(UTC).isoformat(),
            "version": "5.4",
        }
        content = {
            "code": code,
            "silent": False,
            "store_history": True,
            "user_expressions": {},
            "allow_stdin": False,
            "stop_on_error": False,
        }
        await self._streams["shell"].send([json.dumps(part).encode() for part in (header, {}, {}, content)])
        return await never()

    async def _read(self, channel: str, cell: _Cell) -> AgentVMError:
        while True:
            cell.take(channel, await self._streams[channel].receive())


@asynccontextmanager
async def running(link: Link, lost: Awaitable[AgentVMError]) -> AsyncIterator[Runner]:
    """Open a guest's streams, to run cells in it within the context.

    Args:
        link: To the guest.
        lost: Ends when its VM has, and says why.

    Raises:
        LinkError: the link ended.
    """
    shell, iopub = await link.open("shell"), await link.open("iopub")
    agent = Agent(await link.open("agent"))
    async with watched(lost, agent.watch(), link.wait_closed()) as ends, watched(_first_end(*ends)) as (ended,):
        yield Runner(shell, iopub, agent, ended)


async def _first_end(
    lost: asyncio.Task[AgentVMError], died: asyncio.Task[AgentVMError], closed: asyncio.Task[AgentVMError]
) -> AgentVMError:
    await asyncio.wait((lost, died, closed), return_when=asyncio.FIRST_COMPLETED)
    return await best_reason(lost, died, closed)


async def _first(*futures: asyncio.Future[Any], timeout: float) -> None:
    await asyncio.wait(futures, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)


def _string(content: dict[str, object], key: str) -> str:
    value = content.get(key)
    return _clean(value) if isinstance(value, str) else ""


def _clean(text: str) -> str:
    """Replace halves of surrogate pairs, which JSON can hold and no file can."""
    return text if text.isascii() else text.encode(errors="replace").decode()


def _error(content: dict[str, object]) -> CellError:
    lines = content.get("traceback")
    traceback = "\n".join(str(line) for line in lines) if isinstance(lines, list) else ""
    return CellError(
        _string(content, "ename")[:_MAX_NAME],
        _string(content, "evalue")[:_MAX_TRACEBACK],
        _clean(traceback[:_MAX_TRACEBACK]),
    )
