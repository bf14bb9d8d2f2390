"""Writes the audit log's files: a file for each day, records in groups that are synchronised together."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agentvm_kernel.durable import Disk, sync
from agentvm_kernel.observe.chain import HEAD, Head, day_files, day_of, digest_of, last_line, line_of, locked, read_line
from agentvm_kernel.observe.events.log import DayBegan, LogPruned
from agentvm_kernel.observe.fields import Event
from agentvm_kernel.observe.recovery import recover

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """An event on its way into the log.

    Attributes:
        time: When it happened, seconds since 1970.
        event: What happened.
        lost: How many events before it had no place in the queue.
    """

    time: float
    event: Event
    lost: int = 0


class Journal:
    """A log's files, open for writing. Used by one thread at a time.

    Args:
        folder: Where they lie; made if it is not there.
        days: How many files are kept; 0 for all.
        disk: Changes files.

    Attributes:
        days: How many files are kept; 0 for all.
        found: What is to be said of the log's state before anything else.
    """

    def __init__(self, folder: Path, days: int = 0, disk: Disk | None = None) -> None:
        self.days = days
        self._folder = folder
        self._disk = disk or Disk()
        self._descriptor = -1
        self._lost = 0
        self._torn_at: int | None = None
        self._has_begun = False
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        with locked(folder, fcntl.LOCK_EX):
            found = recover(folder, self._disk)
        self._last, self._day, self.found = found.last, found.day, found.events
        self._safe = self._last

    def close(self) -> None:
        """Close the files."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def write(self, entries: Sequence[Entry]) -> None:
        """Write events, and wait until they are safe on disk. What cannot be written is said in the next that can.

        Args:
            entries: The events, oldest first.
        """
        done = 0
        try:
            with locked(self._folder, fcntl.LOCK_EX):
                for entry in entries:
                    self._put(entry)
                    done += 1
                self._make_safe()
        except OSError as error:
            self._lost += len(entries) - done
            _log.error("the audit log lacks %d events, or is not safe on disk: %s", self._lost, error)

    def _put(self, entry: Entry) -> None:
        self._lost += entry.lost
        try:
            self._turn_to(entry.time)
            self._append(entry.time, entry.event)
        except OSError as error:  # what is going on must go on to its end: a VM that is not released is worse
            self._lost += 1
            _log.error("the audit log lacks %d events: %s", self._lost, error)

    def _append(self, when: float, event: Event) -> None:
        if self._torn_at is not None:
            os.ftruncate(self._descriptor, self._torn_at)
            self._torn_at = None
        line = line_of(self._last.sequence + 1, when, event, self._last.digest, self._lost)
        before = os.fstat(self._descriptor).st_size
        written = os.write(self._descriptor, line + b"\n")
        if written <= len(line):  # the disk is full; the next line must not continue this one
            self._torn_at = before
            os.ftruncate(self._descriptor, before)
            self._torn_at = None
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._last, self._lost = Head(sequence=self._last.sequence + 1, digest=digest_of(line)), 0

    def _make_safe(self) -> None:
        """Wait until what was written is safe on disk, then note in the head how far that is."""
        if self._last == self._safe:
            return
        os.fsync(self._descriptor)
        self._disk.replace(self._folder / HEAD, self._last.content)
        self._safe = self._last

    def _turn_to(self, when: float) -> None:
        """Have the file open that a record of a time belongs into; a clock that goes back does not open an old one."""
        day = max(self._day, day_of(when))
        if self._descriptor < 0 or day != self._day:
            if self._descriptor >= 0:
                os.fsync(self._descriptor)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            opened = os.open(self._folder / f"{day}.jsonl", flags, 0o600)
            self.close()
            self._descriptor, self._day = opened, day
            self._has_begun = os.fstat(opened).st_size > 0
            sync(self._folder)
        if not self._has_begun:
            self._append(when, DayBegan(day=day))
            self._has_begun = True
            self._prune(when)

    def _prune(self, when: float) -> None:
        """Remove files that are too many; the record that says so is safe before its file goes."""
        old = day_files(self._folder)[: -self.days] if self.days else []
        for path in old:
            line = last_line(path)
            try:
                record = read_line(line)
            except ValueError as error:
                _log.error("%s is damaged and stays: %s", path, error)
                return
            self._append(when, LogPruned(day=path.stem, last=record.sequence, digest=digest_of(line)))
            os.fsync(self._descriptor)
            for torn in self._folder.glob(f"torn-{path.stem}-*"):
                torn.unlink()
            path.unlink()
