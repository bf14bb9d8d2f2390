"""The audit log's form: one record a line, each with the digest of the one before, in a file for each day."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agentvm_kernel.observe.events.known import AnyEvent, event_adapter
from agentvm_kernel.observe.fields import Digest, Event

GENESIS: Final = "0" * 64
"""What the first record has for the digest of the one before."""

MAX_LINE: Final = 512 << 10
HEAD: Final = "head.json"
_DAY_FILE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}\.jsonl")
_BLOCK: Final = 64 << 10
_ENVELOPE: Final = ("sequence", "time", "previous", "lost")


class Head(BaseModel):
    """The last record that is known to be safe on disk.

    Attributes:
        sequence: Its number; 0 for none.
        digest: Its digest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sequence: int = Field(default=0, ge=0)
    digest: Digest = GENESIS

    @property
    def content(self) -> bytes:
        """What stands in the head file."""
        return self.model_dump_json().encode() + b"\n"


class Record(BaseModel):
    """One record.

    Attributes:
        sequence: Its number, from 1.
        time: When it happened, seconds since 1970.
        event: What happened.
        previous: The digest of the record before.
        lost: How many events before it could not be written.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    sequence: int = Field(ge=1)
    time: float
    event: AnyEvent
    previous: Digest
    lost: int = Field(default=0, ge=0)


@dataclass(frozen=True)
class Extent:
    """The files of a log at one moment, and how long each was.

    Attributes:
        files: The files, oldest first, with their sizes in bytes.
        head: What stood in the head file; None without one.
    """

    files: tuple[tuple[Path, int], ...]
    head: bytes | None


def digest_of(line: bytes) -> str:
    """Return a record's digest.

    Args:
        line: The record, without its line break.
    """
    return hashlib.sha256(line).hexdigest()


def line_of(sequence: int, when: float, event: Event, previous: str, lost: int = 0) -> bytes:
    """Return a record as it stands in a file, without its line break."""
    values = {"sequence": sequence, "time": when, **event.fields(), "previous": previous}
    if lost:
        values["lost"] = lost
    return json.dumps(values, separators=(",", ":")).encode()


def read_line(line: bytes) -> Record:
    """Return what stands in a line.

    Args:
        line: The line, without its line break.

    Raises:
        ValueError: it is no record.
    """
    if len(line) > MAX_LINE:
        raise ValueError("it is too long")
    try:
        values: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError("it is no JSON") from error
    if not isinstance(values, dict):
        raise ValueError("it is no JSON object")
    envelope = {key: values.pop(key) for key in _ENVELOPE if key in values}
    try:
        return Record(event=event_adapter().validate_python(values), **envelope)
    except (ValidationError, TypeError) as error:
        raise ValueError(_first_mistake(error)) from error


def _first_mistake(error: ValidationError | TypeError) -> str:
    if isinstance(error, TypeError):
        return "it is no record"
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place[:80]}: {first['msg'][:160]}"


def day_of(when: float) -> str:
    """Return the day (UTC) of a time, as files are named after it."""
    return time.strftime("%Y-%m-%d", time.gmtime(when))


def day_files(folder: Path) -> list[Path]:
    """Return the files of a log, oldest first."""
    return sorted(path for path in folder.iterdir() if _DAY_FILE.fullmatch(path.name)) if folder.exists() else []


@contextmanager
def locked(folder: Path, operation: int) -> Iterator[None]:
    """Hold the log's lock: who writes has it for each group of records, who reads to learn how far they go.

    Args:
        folder: The log's.
        operation: ``fcntl.LOCK_EX`` or ``fcntl.LOCK_SH``.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, operation)
        yield
    finally:
        os.close(descriptor)


def look(folder: Path) -> Extent:
    """Return how far a log goes now, whether somebody writes to it or not."""
    if not folder.exists():
        return Extent((), None)
    with locked(folder, fcntl.LOCK_SH):
        files = tuple((path, path.stat().st_size) for path in day_files(folder))
        return Extent(files, read_head(folder))


def read_head(folder: Path) -> bytes | None:
    """Return what stands in the head file; None without one."""
    try:
        with (folder / HEAD).open("rb") as file:
            return file.read(1024)
    except FileNotFoundError:
        return None


def parse_head(content: bytes | None) -> Head | None:
    """Return what a head file says; None if it is not there, or says nothing that it could have said."""
    try:
        head = Head.model_validate_json(content or b"")
    except ValidationError:
        return None
    return head if head.content == content else None


def end_of_lines(path: Path) -> int:
    """Return where the last complete line of a file ends, bytes from its beginning."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            begin = max(0, end - _BLOCK)
            file.seek(begin)
            found = file.read(end - begin).rfind(b"\n")
            if found >= 0:
                return begin + found + 1
            end = begin
    return 0


def backwards(path: Path, end: int) -> Iterator[bytes]:
    """Yield the lines of a file, without their line breaks, the last first.

    Args:
        path: The file.
        end: Where its last complete line ends.
    """
    if not end:
        return
    rest, position = b"", end - 1  # without the last line break
    with path.open("rb") as file:
        while position:
            begin = max(0, position - _BLOCK)
            file.seek(begin)
            first, *lines = (file.read(position - begin) + rest).split(b"\n")
            yield from reversed(lines)
            rest, position = first, begin
    yield rest


def last_line(path: Path) -> bytes:
    """Return the last complete line of a file, without its line break; empty if there is none."""
    return next(backwards(path, end_of_lines(path)), b"")
