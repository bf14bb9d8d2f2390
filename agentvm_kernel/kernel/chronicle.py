"""What happened in a notebook, and when: for who shows it on an axis of time."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Literal

from agentvm_kernel.kernel.timeline import beginning

Kind = Literal["cell", "snapshot", "rollback", "vm", "end"]

_KEPT: Final = 300


@dataclass(frozen=True)
class Event:
    """One thing that happened, as the host saw it.

    Attributes:
        number: Grows with each; an event keeps it when more becomes known of it.
        kind: A cell; a snapshot; a way back to one; a VM that became ready; the end of one.
        time: When, or when it began, seconds since 1970.
        text: The cell's code, the snapshot's name, the VM's id, or why it ended.
        end: When a cell ended; None while it runs, and for the others.
        failed: A cell ended with an error, or with its VM.
    """

    number: int
    kind: Kind
    time: float
    text: str
    end: float | None = None
    failed: bool = False


class Chronicle:
    """The newest few hundred events.

    Args:
        clock: Seconds since 1970.

    Attributes:
        listeners: Called with each event that is new, or of which more is known.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.listeners: list[Callable[[Event], None]] = []
        self._clock = clock
        self._events: OrderedDict[int, Event] = OrderedDict()
        self._cells: dict[int, int] = {}
        self._last = 0

    @property
    def events(self) -> list[Event]:
        """All that are kept, the oldest first."""
        return list(self._events.values())

    def note(self, kind: Kind, text: str) -> None:
        """Write down that something happened now."""
        self._put(Event(self._next(), kind, self._clock(), beginning(text)))

    def begins(self, run: int, code: str) -> None:
        """Write down that a cell begins; nothing happens if that is known.

        Args:
            run: Number of the run.
            code: The cell.
        """
        if run not in self._cells:
            self._cells[run] = self._next()
            self._put(Event(self._cells[run], "cell", self._clock(), beginning(code)))

    def ends(self, run: int, *, failed: bool) -> None:
        """Write down that a cell has ended; nothing happens if it had not begun."""
        event = self._events.get(self._cells.pop(run, 0))
        if event is not None:
            self._put(replace(event, end=self._clock(), failed=failed))

    def name(self, text: str, name: str) -> None:
        """Call the newest event of a text by a name."""
        event = next((one for one in reversed(self._events.values()) if one.text == text), None)
        if event is not None and name:
            self._put(replace(event, text=name))

    def _next(self) -> int:
        self._last += 1
        return self._last

    def _put(self, event: Event) -> None:
        self._events[event.number] = event
        while len(self._events) > _KEPT:
            self._events.popitem(last=False)
        for listener in self.listeners:
            listener(event)
