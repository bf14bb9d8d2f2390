"""Keeps what a cell shows that no notebook shows as it comes: as a notebook would store it, and bounded."""

from __future__ import annotations

import json
from typing import Final

from agentvm_kernel.firewall.firewall import Firewall, Shown
from agentvm_kernel.firewall.policy import Policy
from agentvm_kernel.kernel.wire import GuestMessage

_EXTRA: Final = 128
"""Bytes that an output counts besides what is in it: many small ones cost, too."""

_EFFORT: Final = 8
"""How many times the limit is cleaned at most: what is cleared makes room, but not for ever."""

_WIDGET: Final = "application/vnd.jupyter.widget-view+json"
_KINDS: Final = frozenset({"stream", "display_data", "update_display_data", "execute_result", "error", "clear_output"})

Output = dict[str, object]


class Outputs:
    """The outputs of one cell, cleaned by a firewall of its own.

    Widgets are not kept: what they are made of is in the VM that ends.

    Args:
        policy: What the output may be.
        limit: Bytes that are kept.

    Attributes:
        firewall: The firewall.
        left_out: How many outputs there was no room for.
    """

    def __init__(self, policy: Policy, limit: int) -> None:
        self.firewall = Firewall(policy)
        self.left_out = 0
        self._limit = limit
        self._kept: list[Output] = []
        self._named: dict[str, Output] = {}
        self._room = limit
        self._effort = _EFFORT * limit
        self._clearing = False

    def take(self, message: GuestMessage) -> None:
        """Take a message of the cell's on iopub."""
        if message.msg_type not in _KINDS:
            return
        size = len(message.content) + len(message.metadata) + _EXTRA
        self._effort -= size
        if size > self._limit or self._effort < 0:
            self.left_out += 1
            return
        shown = self.firewall.output(
            message.msg_type, message.content, message.metadata, message.buffers, lambda *_: None
        )
        if message.msg_type == "clear_output":
            self._clearing = True
        elif shown is not None:
            self._add(message.msg_type, shown)

    def shown(self) -> tuple[Output, ...]:
        """Return the outputs, with a line of the host's own if some are missing."""
        note = f"{self.left_out} more outputs of this fork are left out: there is room for {self._limit >> 10} KiB.\n"
        rest: Output = {"output_type": "stream", "name": "stderr", "text": note}
        return (*self._kept, rest) if self.left_out else tuple(self._kept)

    def _add(self, kind: str, shown: Shown) -> None:
        if self._clearing and kind != "update_display_data":
            self._clearing = False
            self._kept, self._named, self._room = [], {}, self._limit
        content = shown.content
        output = _stored(kind, content)
        size = len(json.dumps(output)) + _EXTRA
        if output.get("data") == {}:
            return
        if size > self._room:
            self.left_out += 1
            return
        name = _display_id(content)
        if kind == "update_display_data":
            if name in self._named:
                self._room -= size
                self._named[name] |= {key: output[key] for key in ("data", "metadata")}
            return
        self._room -= size
        last = self._kept[-1] if self._kept else {}
        if kind == "stream" and last.get("output_type") == kind and last["name"] == output["name"]:
            last["text"] = f"{last['text']}{output['text']}"
            return
        self._kept.append(output)
        if name:
            self._named[name] = output


def _stored(kind: str, content: dict[str, object]) -> Output:
    """Return what a notebook would store of a message that the firewall has let through."""
    if kind in {"stream", "error"}:
        return {"output_type": kind} | content
    data = content["data"] if isinstance(content["data"], dict) else {}
    told = {"data": {mime: value for mime, value in data.items() if mime != _WIDGET}, "metadata": content["metadata"]}
    if kind == "execute_result":
        return {"output_type": kind, "execution_count": content["execution_count"]} | told
    return {"output_type": "display_data"} | told


def _display_id(content: dict[str, object]) -> str:
    transient = content.get("transient")
    name = transient.get("display_id") if isinstance(transient, dict) else None
    return name if isinstance(name, str) else ""
