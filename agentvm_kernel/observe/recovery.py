"""What is done to the audit log before it is written on: half a record is cut off, and what is wrong is said in it."""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agentvm_kernel.durable import Disk
from agentvm_kernel.observe.chain import (
    GENESIS,
    HEAD,
    Head,
    backwards,
    day_files,
    digest_of,
    end_of_lines,
    last_line,
    parse_head,
    read_head,
    read_line,
)
from agentvm_kernel.observe.events.log import LogDamaged, LogRepaired
from agentvm_kernel.observe.fields import Event

_log = logging.getLogger(__name__)

_KEPT: Final = 1 << 20
"""Bytes of a torn end that are kept as evidence."""

_BLOCK: Final = 1 << 20


@dataclass(frozen=True)
class Found:
    """Where a log ends.

    Attributes:
        last: Its last record.
        day: The day of its newest file; empty if there is none.
        events: What is to be said of its state, first of all.
    """

    last: Head
    day: str = ""
    events: tuple[Event, ...] = ()


def recover(folder: Path, disk: Disk) -> Found:
    """Find where a log ends, after cutting off what a crash left unfinished there.

    Args:
        folder: The log's; it is there.
        disk: Changes files.

    Raises:
        OSError: it cannot be read, or not be cut off.
    """
    files = day_files(folder)
    content = read_head(folder)
    if not files and content is None:
        _begin(folder, disk)
        return Found(Head())
    events: list[Event] = []
    line = b""
    for path in reversed(files):
        if event := _cut_off(path, disk):
            events.append(event)
        if path.stat().st_size:
            line = last_line(path)
            break
    head = parse_head(content)
    last, wrong = _judge(files, line, head)
    if wrong:
        head = head or Head()
        events.append(LogDamaged(what=wrong, last=head.sequence, digest=head.digest))
    return Found(last, files[-1].stem if files else "", tuple(events))


def _begin(folder: Path, disk: Disk) -> None:
    """Write the head of an empty log: where one is missing later, somebody has removed it."""
    try:
        disk.replace(folder / HEAD, Head().content)
    except OSError as error:  # the log says more about a full disk when there is something to be written
        _log.error("the audit log has no head yet: %s", error)


def _judge(files: list[Path], line: bytes, head: Head | None) -> tuple[Head, str]:
    """Return the record to go on from, and what is wrong; empty if nothing is."""
    try:
        last = Head(sequence=read_line(line).sequence, digest=digest_of(line)) if line else Head()
    except ValueError as error:
        sequence = head.sequence if head else 0
        return Head(sequence=sequence, digest=digest_of(line)), f"the last line is no record: {error}"
    if head is None:
        return last, "the head file is missing, or not as it was written"
    if head.sequence > last.sequence:
        return last, f"records {last.sequence + 1} to {head.sequence} are missing at the end"
    if head.digest != (_digest_at(files, head.sequence) if head.sequence else GENESIS):
        return last, f"record {head.sequence} is not as it was written"
    return last, ""


def _digest_at(files: list[Path], sequence: int) -> str:
    """Return the digest of a record near the end; empty if it is not there."""
    for path in reversed(files):
        for line in backwards(path, end_of_lines(path)):
            try:
                found = read_line(line).sequence
            except ValueError:
                continue
            if found <= sequence:
                return digest_of(line) if found == sequence else ""
    return ""


def _cut_off(path: Path, disk: Disk) -> LogRepaired | None:
    """Cut off what follows the last complete line of a file, and keep it beside the log."""
    end, size = end_of_lines(path), path.stat().st_size
    if end == size:
        return None
    digest = hashlib.sha256()
    lines = 0
    with path.open("rb") as file:
        while (left := end - file.tell()) > 0:
            lines += file.read(min(left, _BLOCK)).count(b"\n")
        first = file.read(_KEPT)
        digest.update(first)
        while block := file.read(_BLOCK):
            digest.update(block)
    kept = _keep(path.with_name(f"torn-{path.stem}-{end}"), first, disk)
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.ftruncate(descriptor, end)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    _log.warning("cut %d bytes off the end of %s: a crash had left them", size - end, path)
    return LogRepaired(
        file=path.name, line=lines + 1, offset=end, size=size - end, digest=digest.hexdigest(), kept=kept
    )


def _keep(path: Path, content: bytes, disk: Disk) -> str:
    try:
        disk.replace(path, content)
    except OSError as error:  # a full disk tears lines; the cut itself must not fail for it
        _log.error("what was cut off the audit log is not kept: %s", error)
        return ""
    return path.name
