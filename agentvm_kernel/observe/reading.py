"""Reads the audit log: what is asked for, oldest or newest first, whether somebody writes to it or not."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agentvm_kernel.observe.chain import MAX_LINE, Record, backwards, day_of, end_of_lines, look, read_line

_POLL: Final = 0.25
"""Seconds between two looks at a log that is followed."""

_LOOKED_AT: Final = 64 << 20
"""Bytes from the end in which the newest events of a notebook are looked for."""


@dataclass(frozen=True)
class Wanted:
    """Which records are asked for; what is empty matches all.

    Attributes:
        since: Not older, seconds since 1970.
        until: Older.
        events: Names of events.
        vm: A VM's id.
        notebook: A notebook's name.
    """

    since: float = 0.0
    until: float = float("inf")
    events: frozenset[str] = frozenset()
    vm: str = ""
    notebook: str = ""

    def matches(self, record: Record) -> bool:
        """Return whether a record is asked for."""
        event = record.event
        return (
            self.since <= record.time < self.until
            and (not self.events or event.event in self.events)
            and (not self.vm or self.vm in (getattr(event, "vm", ""), getattr(event, "before", "")))
            and (not self.notebook or getattr(event, "notebook", "") == self.notebook)
        )


@dataclass(frozen=True)
class Place:
    """A line of a log.

    Attributes:
        file: The file's name.
        number: The line's number, from 1.
        record: What stands there; None if it is no record.
    """

    file: str
    number: int
    record: Record | None


def records(folder: Path, wanted: Wanted) -> Iterator[Place]:
    """Yield what is asked for, oldest first; lines that are no records, too.

    Args:
        folder: The log's.
        wanted: What is asked for.
    """
    # A clock that went back leaves older records in a later file, never later ones in an older.
    oldest = day_of(wanted.since)
    for path, size in look(folder).files:
        if path.stem >= oldest:
            with suppress(FileNotFoundError):  # its supervisor has just removed an old file
                yield from (one for one in _places(path, 0, size) if one.record is None or wanted.matches(one.record))


def newest(folder: Path, wanted: Wanted, number: int) -> list[Record]:
    """Return the newest records that are asked for, oldest first.

    Args:
        folder: The log's.
        wanted: What is asked for; looked for in the last 64 MiB only.
        number: How many at most.
    """
    found: list[Record] = []
    left = _LOOKED_AT
    # To read a line takes longer than to see that neither the notebook nor an event is named in it.
    named = json.dumps(wanted.notebook).encode() if wanted.notebook else b""
    events = [json.dumps(name).encode() for name in wanted.events] or [b""]
    for line in _lines_backwards(folder):
        left -= len(line) + 1
        if left < 0 or len(found) >= number:
            break
        if named not in line or not any(event in line for event in events):
            continue
        with suppress(ValueError):
            record = read_line(line)
            if wanted.matches(record):
                found.append(record)
    return found[::-1]


def follow(folder: Path, wanted: Wanted) -> Iterator[Place]:
    """Return what comes from now on, for ever.

    Args:
        folder: The log's.
        wanted: What is asked for.
    """
    return _follow(folder, wanted, {path.name: (end_of_lines(path), 0) for path, _ in look(folder).files})


def _follow(folder: Path, wanted: Wanted, seen: dict[str, tuple[int, int]]) -> Iterator[Place]:
    """Yield what comes after what was seen of each file: so many bytes, and so many lines."""
    while True:
        for path, _ in look(folder).files:
            begin, number = seen.get(path.name, (0, 0))
            with suppress(FileNotFoundError):
                end = end_of_lines(path)
                for one in _places(path, begin, end, number):
                    number = one.number
                    if one.record is None or wanted.matches(one.record):
                        yield one
                seen[path.name] = (max(begin, end), number)
        time.sleep(_POLL)


def _places(path: Path, begin: int, end: int, number: int = 0) -> Iterator[Place]:
    with path.open("rb") as file:
        file.seek(begin)
        left = end - begin
        while left > 0 and (line := file.readline(min(left, MAX_LINE + 1))):
            left -= len(line)
            number += 1
            record = None
            with suppress(ValueError):
                record = read_line(line.removesuffix(b"\n"))
            yield Place(path.name, number, record)


def _lines_backwards(folder: Path) -> Iterator[bytes]:
    for path, _ in reversed(look(folder).files):
        with suppress(FileNotFoundError):
            yield from backwards(path, end_of_lines(path))
