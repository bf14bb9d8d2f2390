"""The audit log: what happened, in order, each record with the digest of the one before."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

from agentvm_kernel.observe.chain import Record
from agentvm_kernel.observe.fields import Event
from agentvm_kernel.observe.journal import Entry, Journal
from agentvm_kernel.observe.listener import Listener
from agentvm_kernel.observe.reading import Wanted, newest

_log = logging.getLogger(__name__)

_WAITING: Final = 10_000
"""Events that wait to be written; what comes when there are so many is only counted."""

_TOGETHER: Final = 0.02
"""Seconds in which what is recorded is made safe on disk together."""


class AuditLog:
    """Takes events from any thread at once, and writes them in one of its own: nobody waits for the disk.

    Args:
        folder: Where the files lie, which only their user may read; made if it is not there, continued if it is.
        days: How many files, one a day, are kept; 0 for all.
        clock: Returns the time, seconds since 1970.

    Raises:
        OSError: the folder cannot be made, read or written.
    """

    def __init__(self, folder: Path, days: int = 0, clock: Callable[[], float] = time.time) -> None:
        self.folder = folder
        self._clock = clock
        self._journal = Journal(folder, days)
        self._changed = threading.Condition()
        self._waiting: deque[Entry] = deque()
        self._taken = self._written = self._lost = 0
        self._is_urgent = self._is_closing = self._is_over = False
        self._thread: threading.Thread | None = None
        self._listeners: set[Listener] = set()
        for event in self._journal.found:
            self.record(event)

    @property
    def days(self) -> int:
        """How many files are kept; 0 for all."""
        return self._journal.days

    @days.setter
    def days(self, days: int) -> None:
        self._journal.days = days

    def record(self, event: Event) -> None:
        """Append an event; it is safe on disk a moment later. Where it cannot be written, the next one says so."""
        now = self._clock()
        with self._changed:
            for listener in self._listeners:
                listener.put(now, event)
            if len(self._waiting) >= _WAITING or self._is_closing or self._is_over:
                self._lost += 1
                return
            self._waiting.append(Entry(now, event, self._lost))
            self._taken += 1
            self._lost = 0
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait until all that was recorded before is written; blocks."""
        with self._changed:
            wanted = self._taken
            self._is_urgent = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._written >= wanted or self._is_over)

    def newest(self, notebook: str, number: int, events: frozenset[str] = frozenset()) -> list[Record]:
        """Return the newest records about a notebook, oldest first; blocks.

        Args:
            notebook: Its name.
            number: How many at most.
            events: Names of events; none for all.
        """
        self.flush()
        return newest(self.folder, Wanted(notebook=notebook, events=events), number)

    def listen(self, lease: str = "") -> Listener:
        """Return what is recorded from now on, until the log is closed; it need not be safe on disk yet.

        Args:
            lease: Only what names this lease; empty for everything.
        """
        listener = Listener(lease, self._leave)
        with self._changed:
            if self._is_closing:
                listener.close()
            self._listeners.add(listener)
        return listener

    def _leave(self, listener: Listener) -> None:
        with self._changed:
            self._listeners.discard(listener)

    def close(self) -> None:
        """Write what waits, and close the files; blocks. What is recorded later is lost."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
            for listener in self._listeners:
                listener.close()
        if self._thread is not None:
            self._thread.join()
        self._journal.close()

    def _run(self) -> None:
        try:
            while entries := self._next_group():
                self._journal.write(entries)
                with self._changed:
                    self._written += len(entries)
                    self._changed.notify_all()
        except Exception:  # noqa: BLE001 - the outermost of this thread: nobody may wait for it any more
            _log.exception("the audit log is no longer written")
        finally:
            with self._changed:
                self._is_over = True
                self._changed.notify_all()

    def _next_group(self) -> list[Entry]:
        """Wait for events, and a moment more for others; return none when the log is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closing)
            self._changed.wait_for(lambda: self._is_urgent or self._is_closing, timeout=_TOGETHER)
            entries = list(self._waiting)
            self._waiting.clear()
            self._is_urgent = False
            return entries
