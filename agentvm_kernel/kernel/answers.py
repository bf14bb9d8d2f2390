"""What the host itself says to the clients: replies, statuses, errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from agentvm_kernel.errors import AgentVMError
from agentvm_kernel.firewall.policy import note as blocked_note
from agentvm_kernel.kernel import footer
from agentvm_kernel.kernel.network import note
from agentvm_kernel.kernel.requests import NO_REPLY, Request
from agentvm_kernel.kernel.sockets import Sockets
from agentvm_kernel.supervisor.execution_messages import digest_of

REMEDY: Final = "Restart the kernel, or run %vm restart."

OF_HOST: Final[dict[str, object]] = {"agentvm": {"host": True}}
"""Metadata of the message in which a magic shows its result; what a guest shows is passed on without any."""

OF_PROGRESS: Final[dict[str, object]] = {"agentvm": {"host": True, "progress": True}}
"""The same of a message that shows how far the host is."""

_EMPTY_REPLIES: Final[dict[str, dict[str, object]]] = {
    "comm_info_request": {"status": "ok", "comms": {}},
    "is_complete_request": {"status": "unknown"},
}


class Answers:
    """Speaks to clients in the host's own name.

    Args:
        sockets: Where the clients are.
        place: Tells the VM and the snapshot that it descends from, for the metadata of replies to cells.

    Attributes:
        execution_count: The last one that the guest gave.
        on_idle: Called with a request once all that it shows is published.
    """

    def __init__(self, sockets: Sockets, place: Callable[[], dict[str, str]]) -> None:
        self._sockets = sockets
        self._place = place
        self.execution_count = 0
        self.on_idle: Callable[[Request], None] = lambda _: None

    def stamp(self, request: Request, **more: object) -> dict[str, object]:
        """Return what the host knows about a run, for its reply's metadata."""
        # JupyterLab records when a cell started by this, as ipykernel has it.
        facts = {"facts": request.facts.metadata()} if request.facts else {}
        run = {"run": request.run, "code": digest_of(request.code)}
        return {"started": request.started, "agentvm": {**run, **self._place(), **more, **facts}}

    def reply(
        self,
        request: Request,
        content: bytes | dict[str, object],
        *,
        msg_type: str = "",
        metadata: bytes | dict[str, object] = b"{}",
        buffers: Sequence[bytes] = (),
    ) -> None:
        """Answer a request, on the channel and to the client it came from."""
        _, frames = self._sockets.wire.pack(
            msg_type or request.reply_type,
            content,
            parent=request.message.raw_header,
            metadata=metadata,
            buffers=buffers,
        )
        self._sockets.send(request.channel, request.message.idents, frames)

    async def publish(
        self,
        msg_type: str,
        content: bytes | dict[str, object],
        request: Request | None,
        *,
        metadata: bytes | dict[str, object] = b"{}",
        buffers: Sequence[bytes] = (),
    ) -> None:
        """Publish on iopub, as an answer to a request where there is one."""
        parent = request.message.raw_header if request else b"{}"
        _, frames = self._sockets.wire.pack(msg_type, content, parent=parent, metadata=metadata, buffers=buffers)
        await self._sockets.publish(msg_type, frames)
        if request is not None and isinstance(content, dict):
            request.shown.take(msg_type, content)
            if content.get("execution_state") == "idle":
                self.on_idle(request)

    async def busy(self, request: Request) -> None:
        """Publish `busy` for a request, once."""
        if request.start():
            await self.publish("status", {"execution_state": "busy"}, request)

    async def tell_blocked(self, request: Request) -> None:
        """Tell a cell which of its connections were refused, if it has not been told."""
        blocked, request.blocked = request.blocked, []
        if blocked and not request.silent:
            await self.publish("stream", {"name": "stderr", "text": note(blocked)}, request)
        await self.tell_left_out(request)

    async def tell_left_out(self, request: Request) -> None:
        """Tell a cell what of its output was blocked, each kind once."""
        left_out, request.left_out = request.left_out, {}
        request.told |= left_out.keys()
        if left_out and not request.silent:
            await self.publish("stream", {"name": "stderr", "text": blocked_note(left_out)}, request)

    def reply_late(self, request: Request) -> None:
        """Send the reply to a cell that was kept until there was a snapshot of what the cell led to, if one was."""
        late, request.late = request.late, None
        if late is not None:
            content, metadata = late
            if request.facts is not None:
                after = self._place().get("snapshot", request.facts.snapshot_after)
                request.facts = replace(request.facts, snapshot_after=after)
                metadata["agentvm"]["facts"] = request.facts.metadata()  # type: ignore[index]
            self.reply(request, content, metadata=metadata)

    async def tell_facts(self, request: Request) -> None:
        """Show under a cell what it cost, if that is wanted; not where that would take the place of its output."""
        if request.shows_facts and request.facts is not None and not request.is_clearing:
            request.shows_facts = False
            await self.publish("display_data", footer.content(request.facts), request)

    async def idle(self, request: Request) -> None:
        """Publish `idle` for a request."""
        self.reply_late(request)
        await self.tell_blocked(request)
        await self.tell_facts(request)
        await self.publish("status", {"execution_state": "idle"}, request)
        request.settle(idle=True)

    async def answer(self, request: Request, content: dict[str, object]) -> None:
        """Answer a request wholly: busy, reply, idle."""
        await self.busy(request)
        self.reply(request, content)
        request.settle(replied=True)
        await self.idle(request)

    async def abort(self, request: Request) -> None:
        """Say that a request is not carried out because an earlier one failed."""
        await self.busy(request)
        self.reply(request, {"status": "aborted"}, metadata={"status": "aborted"})
        request.settle(replied=True)
        await self.idle(request)

    async def fail(self, request: Request, error: AgentVMError | KeyboardInterrupt, *, remedy: bool = True) -> None:
        """End a request with an error: shown where it is an execute request, replied where it wants a reply.

        Args:
            request: Not yet replied.
            error: What happened; its class's name is shown as well.
            remedy: Whether to add how to get a VM back.
        """
        await self.busy(request)
        if request.message.msg_type not in NO_REPLY:
            content = error_content(error, remedy=remedy)
            if request.is_execute and not request.silent:
                await self.publish("error", content, request)
            content = {"status": "error", **content}
            if request.is_execute:
                content |= {"execution_count": self.execution_count, "user_expressions": {}, "payload": []}
            metadata = self.stamp(request, **_described(error)) if request.run else {}
            self.reply(request, _EMPTY_REPLIES.get(request.message.msg_type, content), metadata=metadata)
        request.settle(replied=True)
        await self.idle(request)

    async def show_input(self, request: Request) -> None:
        """Publish the code of a request that the guest does not get to see."""
        if not request.silent:
            content: dict[str, object] = {"code": request.code, "execution_count": self.execution_count}
            await self.publish("execute_input", content, request)


def _described(error: AgentVMError | KeyboardInterrupt) -> dict[str, object]:
    """Return an error as programs tell it from others."""
    if isinstance(error, KeyboardInterrupt):
        return {}
    return {"error": {"code": error.code, "message": error.message, "hint": error.hint}}


def error_content(error: AgentVMError | KeyboardInterrupt, *, remedy: bool) -> dict[str, object]:
    """Return an error as Jupyter shows it."""
    name = type(error).__name__
    if isinstance(error, KeyboardInterrupt):
        return {"ename": name, "evalue": "", "traceback": [f"\x1b[31m{name}\x1b[39m: the cell was interrupted"]}
    hints = [hint for hint in (error.hint, REMEDY if remedy else "") if hint]
    lines = [f"\x1b[31m{name}\x1b[39m: {error.message}", *hints]
    return {"ename": name, "evalue": " ".join([error.message, *hints]), "traceback": lines}
