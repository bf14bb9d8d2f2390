"""Comms that the host owns: what it shows in a notebook besides what the guest shows.

They belong to the kernel process, not to the VM: they outlive rollbacks, restarts and the VM's end. Their ids begin
with a prefix that no guest gets through in either direction, so that it can neither write to them nor hear of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from agentvm_kernel.firewall.names import HOST_PREFIX
from agentvm_kernel.kernel.answers import Answers
from agentvm_kernel.kernel.jsoncheck import parse_object
from agentvm_kernel.kernel.requests import NO_REPLY, Request

log = logging.getLogger("agentvm.hostcomms")

_TARGET: Final = "jupyter.widget"
_CONTROL: Final = b"jupyter.widget.control"
_VERSION: Final = {"version": "2.1.0"}
_MARK: Final = HOST_PREFIX.encode()
_LONGEST: Final = 64 << 10
_MOST_KEPT: Final = 1000


class HostWidget(Protocol):
    """A widget of the host's own; `agentvm_kernel.widgets.monitor.Monitor` is one."""

    @property
    def id(self) -> str:
        """Its comm's id, with the prefix."""

    def state(self) -> dict[str, object]:
        """Return the model's whole state, for a front end that does not have it."""

    async def heard(self, content: Mapping[str, object]) -> None:
        """Take a custom message of a front end."""

    async def cell_over(self, request: Request | None) -> None:
        """What the notebook stores may be brought up to date.

        Args:
            request: The cell that is about to be called idle; None where it is the VM that has ended.
        """

    async def close(self) -> None:
        """The kernel process ends."""


class HostComms:
    """Leads what clients say to the host's widgets, at once, whatever the guest is busy with.

    Args:
        answers: The host's voice.
        is_busy: Whether a cell runs.

    Attributes:
        has_viewer: A client has asked for widgets, as front ends do that can show them when they connect.
    """

    def __init__(self, answers: Answers, is_busy: Callable[[], bool]) -> None:
        self._answers = answers
        self.has_viewer = False
        self._is_busy = is_busy
        self._widgets: dict[str, HostWidget] = {}
        self._heard: set[str] = set()
        self._unsaid: list[Request] = []

    def find(self, name: str) -> HostWidget | None:
        """Return the widget of an id, if it has been opened."""
        return self._widgets.get(name)

    def offer(self, widget: HostWidget) -> None:
        """Make a widget known to clients that ask.

        Args:
            widget: It.
        """
        assert widget.id.startswith(HOST_PREFIX)
        self._widgets[widget.id] = widget

    async def open(self, widget: HostWidget, request: Request) -> None:
        """Let the clients know a widget, if there are any that can show it and none has spoken to it yet.

        One that has spoken has its model. Of an earlier kernel process a page may have one that can speak no more, and
        would not take another from an answer of any kind but this.

        Args:
            widget: It.
            request: The cell that shows it.
        """
        self.offer(widget)
        if not self.has_viewer or widget.id in self._heard:
            return
        content: dict[str, object] = {"comm_id": widget.id, "target_name": _TARGET, "data": _data(widget)}
        await self._answers.publish("comm_open", content, request, metadata=dict(_VERSION))

    async def say(self, name: str, content: Mapping[str, object]) -> None:
        """Send a custom message to the front ends of a widget."""
        await self._say(name, {"method": "custom", "content": dict(content)}, None)

    async def display(self, bundle: Mapping[str, object], display_id: str, request: Request | None) -> None:
        """Bring a display up to date that a widget is in.

        Args:
            bundle: What to show now, by MIME type.
            display_id: Of the display; no guest may know it.
            request: A cell that runs: programs that execute notebooks hear of nothing else.
        """
        content = {"data": dict(bundle), "metadata": {}, "transient": {"display_id": display_id}}
        await self._answers.publish("update_display_data", content, request)

    def owned(self, request: Request) -> dict[str, object] | None:
        """Return the content of a comm message that is for the host; None for what is the guest's."""
        message = request.message
        self.has_viewer |= request.target == _TARGET
        if message.msg_type not in NO_REPLY or not (_MARK in message.content or _CONTROL in message.content):
            return None
        try:
            content = parse_object(message.content)
        except ValueError:
            return None  # the guest's kernel says what it thinks of it
        name = content.get("comm_id")
        self.has_viewer |= content.get("target_name") == _CONTROL.decode()
        return content if isinstance(name, str) and name.startswith(HOST_PREFIX) else None

    async def take(self, request: Request, content: Mapping[str, object]) -> None:
        """Take a client's message that is for the host.

        Args:
            request: The message.
            content: Its content, as `owned` returned it.
        """
        name, data = content["comm_id"], content.get("data")
        widget = self._widgets.get(str(name))
        if widget is None:
            if request.message.msg_type != "comm_close":
                await self._answers.publish("comm_close", {"comm_id": name, "data": {}}, request)
        elif request.message.msg_type == "comm_msg" and isinstance(data, dict):
            said = data.get("content")
            if data.get("method") == "request_state":
                await self._say(widget.id, {"method": "update", **_data(widget)}, request)
            elif data.get("method") == "custom" and isinstance(said, dict) and len(request.message.content) < _LONGEST:
                self._heard.add(widget.id)
                await widget.heard(said)
        # What else there is changes nothing: the state is the host's, and so is the end.
        await self._end(request)

    def told(self, target: str = "") -> dict[str, object]:
        """Return what a ``comm_info_reply`` says of the host's comms.

        Args:
            target: Only of that target; empty for any.
        """
        if target not in {"", _TARGET}:
            return {}
        return {name: {"target_name": _TARGET} for name in self._widgets}

    def add_states(self, content: Mapping[str, object]) -> None:
        """Add the host's widgets to the guest's, where it answers a front end that asks for all of them."""
        data = content.get("data")
        states = data.get("states") if isinstance(data, dict) and data.get("method") == "update_states" else None
        if isinstance(states, dict):
            for name, widget in self._widgets.items():
                state = widget.state()
                identity = {key: state[f"_{key}"] for key in ("model_name", "model_module", "model_module_version")}
                states[name] = identity | {"state": state}

    async def cell_over(self, request: Request | None) -> None:
        """Tell the widgets that a cell is about to be called idle, or that the VM has ended."""
        for widget in list(self._widgets.values()):
            await widget.cell_over(request)

    async def say_idle(self) -> None:
        """Publish ``idle`` for the messages that came while a cell ran, if none runs now."""
        while self._unsaid and not self._is_busy():
            await self._answers.idle(self._unsaid.pop(0))

    async def close(self) -> None:
        """End all widgets: this process ends."""
        for widget in self._widgets.values():
            await widget.close()

    async def _say(self, name: str, data: dict[str, object], request: Request | None) -> None:
        await self._answers.publish("comm_msg", {"comm_id": name, "data": data}, request)

    async def _end(self, request: Request) -> None:
        """Publish ``idle`` for a message, but not in the middle of a cell: the kernel would be taken for idle."""
        self._unsaid.append(request)
        del self._unsaid[:-_MOST_KEPT]
        await self.say_idle()


def _data(widget: HostWidget) -> dict[str, object]:
    return {"state": widget.state(), "buffer_paths": []}
