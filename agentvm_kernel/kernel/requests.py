"""What clients asked for, and the table that leads the guest's answers back to them."""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from agentvm_kernel.firewall.reasons import Reason
from agentvm_kernel.kernel.called import Called
from agentvm_kernel.kernel.jsoncheck import parse_object
from agentvm_kernel.kernel.wire import ClientMessage
from agentvm_kernel.observe.outputs import Shown
from agentvm_kernel.supervisor.messages import Blocked

if TYPE_CHECKING:
    from agentvm_kernel.kernel.facts import CellFacts

_REMEMBERED: Final = 4096
_INPUTS: Final = 64
_LAST_WORDS: Final = 5.0
"""Seconds for which an `idle` is waited for when there is no reply, or none any more, to wait for: ipykernel drops it
when its output queue is full, as it is where a thread prints without end."""

_CELL_ID: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")
NO_REPLY: Final = frozenset({"comm_open", "comm_msg", "comm_close"})


@dataclass(eq=False)
class Request:
    """One request of a client, from its arrival until the guest is idle again.

    Attributes:
        channel: ``shell`` or ``control``.
        message: As the client sent it; its content is let go once the guest has it.
        code: Of an execute request.
        cell: Id of the notebook's cell, of an execute request whose front end tells it.
        target: Which comms a ``comm_info_request`` asks for; empty for all.
        magic: The host magic that it calls.
        silent: An execute request that is not to be shown.
        allow_stdin: The client can answer `input()`.
        stop_on_error: An error aborts the execute requests that wait behind this one.
        guest_id: The msg_id under which the guest knows it.
        run: Number of the run within this kernel process; 0 for what is no execute request.
        forwarded: The guest has it.
        started: When the host published `busy` for it, ISO 8601; empty until then. A second `busy` is not wanted.
        replied: The client has its reply, or needs none.
        idle: The client has its `idle`.
        idle_lost: It did not come in time.
        keep_idle: The host keeps `idle` back until it has taken a snapshot.
        idle_kept: It has done so.
        hold: The host keeps the reply and `idle` to itself: the request is the stub of a host magic.
        reply: The held reply's content.
        inputs: The guest's unanswered input requests: its header by the host's msg_id.
        ran: Seconds that it has run, without those that do not count.
        overdue_at: How many they were when it was interrupted for its deadline.
        output: Bytes of output that it has put out.
        backlog: Bytes of it that may come at any rate once it is replied.
        cut: The rest of its output is left out.
        error_shown: But for one error, and that has been shown.
        late: A reply's content and metadata, which wait for the snapshot after it.
        facts: What it cost.
        shows_facts: It is to show that, and has not yet.
        shown: What it has put out, as a digest.
        is_clearing: What it puts out next takes the place of all that it has put out.
        answered: Set once it is replied.
        blocked: Connections that were refused while it ran, and that it has not been told of.
        left_out: How often what kind of its output was blocked, that it has not been told of.
        told: Kinds that it has been told of.
        finished: Set once it is replied and idle.
    """

    channel: str
    message: ClientMessage
    code: str = ""
    cell: str = ""
    target: str = ""
    magic: Called | None = None
    silent: bool = False
    allow_stdin: bool = False
    stop_on_error: bool = True
    guest_id: str = ""
    run: int = 0
    forwarded: bool = False
    started: str = ""
    replied: bool = False
    idle: bool = False
    idle_lost: bool = False
    keep_idle: bool = False
    idle_kept: bool = False
    hold: bool = False
    reply: dict[str, object] | None = None
    inputs: OrderedDict[str, bytes] = field(default_factory=OrderedDict)
    ran: float = 0.0
    overdue_at: float | None = None
    output: int = 0
    backlog: int = 64 << 20
    cut: bool = False
    error_shown: bool = False
    blocked: list[Blocked] = field(default_factory=list)
    left_out: dict[tuple[Reason, str], int] = field(default_factory=dict)
    told: set[tuple[Reason, str]] = field(default_factory=set)
    late: tuple[dict[str, object], dict[str, object]] | None = None
    facts: CellFacts | None = None
    shows_facts: bool = False
    shown: Shown = field(default_factory=Shown)
    is_clearing: bool = False
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    finished: asyncio.Event = field(default_factory=asyncio.Event)

    @classmethod
    def of(cls, channel: str, message: ClientMessage) -> Request:
        """Make a request of a client's message.

        Raises:
            ValueError: an execute or ``comm_info`` request whose content is not valid.
        """
        request = cls(channel, message, replied=message.msg_type in NO_REPLY)
        if request.is_execute:
            content = parse_object(message.content)
            code = content.get("code")
            if not isinstance(code, str):
                raise ValueError("an execute request without code")
            request.code = code
            request.cell = _cell_id(message.metadata)
            request.silent = bool(content.get("silent", False))
            request.allow_stdin = bool(content.get("allow_stdin", False))
            request.stop_on_error = bool(content.get("stop_on_error", True))
        elif message.msg_type == "comm_info_request":
            target = parse_object(message.content).get("target_name")
            request.target = target if isinstance(target, str) else ""
        return request

    def start(self) -> bool:
        """Take notice that it begins; false if it had begun before."""
        if self.started:
            return False
        self.started = datetime.now(UTC).isoformat()
        return True

    def leave_out(self, reason: Reason, words: str) -> None:
        """Remember that a part of its output was blocked."""
        kind = (reason, words)
        if reason is not Reason.TERMINAL and kind not in self.told:
            self.left_out[kind] = self.left_out.get(kind, 0) + 1

    @property
    def is_execute(self) -> bool:
        """Whether it runs code."""
        return self.message.msg_type == "execute_request"

    @property
    def reply_type(self) -> str:
        """The only message type that may answer it."""
        return self.message.msg_type.removesuffix("_request") + "_reply"

    @property
    def lane(self) -> str:
        """Requests of one lane keep their order: the control channel, the main shell, each subshell."""
        subshell = self.message.header.get("subshell_id")
        return self.channel if subshell is None else f"{self.channel}/{subshell}"

    @property
    def in_subshell(self) -> bool:
        """Whether it is for a subshell."""
        return self.message.header.get("subshell_id") is not None

    def settle(self, *, replied: bool = False, idle: bool = False) -> None:
        """Note that the reply, or `idle`, has been dealt with."""
        self.replied |= replied
        self.idle |= idle
        if self.replied:
            self.answered.set()
        if self.replied and self.idle:
            self.finished.set()

    def fails(self, content: dict[str, object]) -> bool:
        """Whether a reply means that the cells that wait behind this one are not to be run."""
        return self.is_execute and self.stop_on_error and not self.silent and content.get("status") == "error"

    async def replied_within(self, seconds: float) -> None:
        """Return once it is replied, or that takes too long."""
        if not self.replied:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self.answered.wait()

    async def over(self) -> None:
        """Return when the guest is done with it: idle, or replied so long ago that its `idle` must be lost."""
        if not self.replied:
            await self.answered.wait()
        if not self.idle_lost:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_WORDS):
                    await self.finished.wait()
            self.idle_lost = not self.finished.is_set()

    def expect_input(self, host_id: str, guest_header: bytes) -> bool:
        """Note that the guest asks the user for input; false if it has asked far too often without an answer."""
        if len(self.inputs) >= _INPUTS:
            return False
        self.inputs[host_id] = guest_header
        return True


def _cell_id(metadata: bytes) -> str:
    """Return the id of the cell that a front end runs; empty where it does not say."""
    try:
        name = parse_object(metadata).get("cellId")
    except ValueError:
        return ""
    return name if isinstance(name, str) and _CELL_ID.fullmatch(name) else ""


class RequestTable:
    """Finds the request behind the guest's msg_id.

    A request that waits for its reply is never evicted; of the finished ones, whose output may still come (threads,
    widgets), the newest four thousand are remembered.

    Args:
        new_id: Makes a fresh msg_id.

    Attributes:
        heir: Takes over the output of what `clear` forgets.
        stray: Request under which output is shown that belongs to none: of a VM that went back, and where something
            runs on since before.
        frozen: A cell runs on that the snapshot froze.
    """

    def __init__(self, new_id: Callable[[], str]) -> None:
        self.heir: Request | None = None
        self.stray: Request | None = None
        self.frozen = False
        self._new_id = new_id
        self._pending: dict[str, Request] = {}
        self._settled: OrderedDict[str, Request] = OrderedDict()

    def add(self, request: Request) -> None:
        """Give a request its guest-side msg_id.

        That is the client's own, because ipywidgets tells the front end which outputs to capture by the msg_id that
        the guest sees; a fresh one only if another request goes by that name already.
        """
        wanted = request.message.msg_id
        taken = wanted in self._pending or wanted in self._settled or not 0 < len(wanted) <= 256
        request.guest_id = self._new_id() if taken else wanted
        if request.replied:
            self._remember(request)
        else:
            self._pending[request.guest_id] = request

    def find(self, guest_id: str) -> Request | None:
        """Return the request of that guest-side msg_id, pending or remembered."""
        return self._pending.get(guest_id) or self._settled.get(guest_id)

    def of_run(self, run: int) -> Request | None:
        """Return the request of a run, pending or remembered."""
        requests = (*self._pending.values(), *reversed(self._settled.values()))
        return next((request for request in requests if run and request.run == run), None)

    def replied(self, request: Request) -> None:
        """Move a request to the remembered ones once its reply is out."""
        if self._pending.pop(request.guest_id, None) is not None:
            self._remember(request)

    def unfinished(self) -> Iterator[Request]:
        """Iterate over what the guest still owes a reply or an `idle`, oldest first."""
        yield from [r for r in self._settled.values() if not r.finished.is_set()]
        yield from list(self._pending.values())

    def running(self) -> Request | None:
        """Return the execute request that has waited longest for its reply."""
        return next((r for r in self._pending.values() if r.is_execute and not r.hold), None)

    def current(self) -> list[Request]:
        """Return what the guest runs now: on each lane the cell that has waited longest for its reply.

        Where a cell runs on that a snapshot froze, those of the main shell wait for it; it counts as the request under
        which its output is shown.
        """
        first: dict[str, Request] = {}
        if self.frozen and self.stray is not None:
            first[self.stray.lane] = self.stray
        for request in self._pending.values():
            if request.is_execute and not request.hold:
                first.setdefault(request.lane, request)
        return list(first.values())

    def clear(self, *, frozen: bool = False) -> None:
        """Forget everything: the guest that knew these ids is gone.

        Args:
            frozen: The next guest begins in the middle of a cell.
        """
        self._pending.clear()
        self._settled.clear()
        self.stray, self.heir, self.frozen = self.heir, None, frozen

    def _remember(self, request: Request) -> None:
        self._settled[request.guest_id] = request
        if len(self._settled) > _REMEMBERED:
            _, oldest = self._settled.popitem(last=False)
            oldest.settle(idle=True)
