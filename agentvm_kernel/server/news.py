"""What pages are told without asking: the schema of these events, and how often they come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, Literal, get_args

EVENT_SCHEMA: Final = "urn:agentvm-kernel:machine"
"""The events' id."""

What = Literal["stats", "machine", "snapshots", "connections", "blocked", "anomalies", "gone"]

SCHEMA: Final[dict[str, Any]] = {
    "$id": EVENT_SCHEMA,
    "version": "1",
    "title": "The machine under a notebook",
    "description": "Something has changed with the virtual machine under a notebook, or it was measured.",
    "type": "object",
    "required": ["kernel_id", "what"],
    "additionalProperties": False,
    "properties": {
        "kernel_id": {"title": "The notebook's kernel", "type": "string"},
        "what": {
            "title": "What it is about",
            "description": "All but stats, and gone, say only that it is worth asking again.",
            "enum": list(get_args(What)),
        },
        "stats": {"title": "What the machine uses, as measured on the host", "type": "object"},
        "restored": {"title": "Id of the snapshot that the notebook has gone back to", "type": "string"},
    },
}

_PAUSE: Final[dict[What, float]] = {"stats": 1.0}
_USUAL_PAUSE: Final = 0.5
_REMEMBERED: Final = 1024


class Herald:
    """Tells pages what has changed: of a kernel and a kind, twice a second at most, and stats once.

    Args:
        emit: Sends an event's data.
    """

    def __init__(self, emit: Callable[[dict[str, object]], object]) -> None:
        self._emit = emit
        self._due: dict[tuple[str, What], float] = {}
        self._waiting: dict[tuple[str, What], tuple[asyncio.TimerHandle, dict[str, object]]] = {}

    def tell(self, kernel: str, what: What, **more: object) -> None:
        """Tell pages something; what comes too soon is told together with what else comes meanwhile.

        Args:
            kernel: The kernel's id.
            what: What it is about.
            more: What else is told; of two that are told together, the later one's.
        """
        key, loop = (kernel, what), asyncio.get_running_loop()
        if key in self._waiting:
            self._waiting[key][1].update(more)
            return
        wait = self._due.get(key, 0.0) - loop.time()
        if wait <= 0:
            self._say(key, more)
        else:
            self._waiting[key] = (loop.call_later(wait, self._say_late, key), more)

    def close(self) -> None:
        """Tell nothing more."""
        for timer, _ in self._waiting.values():
            timer.cancel()
        self._waiting.clear()

    def _say_late(self, key: tuple[str, What]) -> None:
        _, more = self._waiting.pop(key)
        self._say(key, more)

    def _say(self, key: tuple[str, What], more: dict[str, object]) -> None:
        now = asyncio.get_running_loop().time()
        if len(self._due) >= _REMEMBERED:
            self._due = {one: due for one, due in self._due.items() if due > now}
        self._due[key] = now + _PAUSE.get(key[1], _USUAL_PAUSE)
        self._emit({"kernel_id": key[0], "what": key[1], **more})
