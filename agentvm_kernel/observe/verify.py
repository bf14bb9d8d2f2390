"""Finds what was done to the audit log: records that were changed, removed, reordered, doubled or cut off."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from agentvm_kernel.observe.chain import (
    GENESIS,
    HEAD,
    MAX_LINE,
    Extent,
    Head,
    Record,
    digest_of,
    look,
    parse_head,
    read_line,
)
from agentvm_kernel.observe.events.log import DayBegan, LogDamaged, LogPruned, LogRepaired

_TRIES: Final = 5
_MOST: Final = 1000


@dataclass(frozen=True)
class Problem:
    """Something that is wrong.

    Attributes:
        file: In which file.
        line: In which line, from 1; 0 for the file as a whole.
        what: What is wrong.
    """

    file: str
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.what}" if self.line else f"{self.file}: {self.what}"


@dataclass
class Verdict:
    """What was found.

    Attributes:
        records: How many records there are.
        first: Number of the first.
        last: The last record.
        problems: What is wrong; the first thousand.
        remarks: What is worth knowing, though it is not wrong.
        lost: How many events could not be written when they happened.
    """

    records: int = 0
    first: int = 0
    last: Head = field(default_factory=Head)
    problems: list[Problem] = field(default_factory=list)
    remarks: list[Problem] = field(default_factory=list)
    lost: int = 0


def verify(folder: Path, against: str = "") -> Verdict:
    """Examine a log from its first record to its last, whether somebody writes to it meanwhile or not.

    Args:
        folder: The log's.
        against: Digest of a record that was noted elsewhere; the log must have it.

    Raises:
        OSError: it cannot be read.
    """
    for _ in range(_TRIES - 1):
        try:
            return _Examination(look(folder), against).verdict
        except FileNotFoundError:  # its supervisor has just removed an old file
            continue
    return _Examination(look(folder), against).verdict


class _Examination:
    """Follows the chain.

    Attributes:
        verdict: What was found.
    """

    def __init__(self, extent: Extent, against: str) -> None:
        self.verdict = Verdict()
        self._against, self._has_it = against, not against
        self._head = parse_head(extent.head)
        self._head_digest = ""
        self._start: Record | None = None
        self._start_at = ("", 0)
        self._anchors: set[tuple[int, str]] = set()
        self._before: tuple[str, int] | None = None
        self._is_broken = False
        for number, (path, size) in enumerate(extent.files):
            self._take_file(path, size, is_last=number == len(extent.files) - 1)
        self._judge_start()
        self._judge_end(extent)
        if not self._has_it:
            self._wrong("the log", 0, f"no record has the digest {against}: this is another log, or was rewritten")

    def _take_file(self, path: Path, size: int, *, is_last: bool) -> None:
        number = 0
        for number, line in enumerate(_lines(path, size), 1):
            if not line.endswith(b"\n"):
                hint = "; a crash leaves that, and the supervisor's next start repairs it" if is_last else ""
                self._wrong(path.name, number, f"the record is incomplete{hint}")
                self._is_broken = True
                return
            self._take_line(path, number, line[:-1])
        if not number:
            self._wrong(path.name, 0, "the file is empty")

    def _take_line(self, path: Path, number: int, line: bytes) -> None:
        digest, verdict = digest_of(line), self.verdict
        self._has_it |= digest == self._against
        try:
            record = read_line(line)
        except ValueError as error:
            self._wrong(path.name, number, f"this is no record: {error}")
            self._is_broken = True
            return
        verdict.records += 1
        verdict.lost += record.lost
        if self._start is None:
            self._start, self._start_at = record, (path.name, number)
            verdict.first = record.sequence
        else:
            self._compare(path.name, number, record)
        self._note(path, number, record, digest)
        self._is_broken = False
        verdict.last = Head(sequence=record.sequence, digest=digest)
        self._before = (path.name, number)

    def _compare(self, file: str, number: int, record: Record) -> None:
        """Compare a record with the one before it."""
        last, expected = self.verdict.last, self.verdict.last.sequence + 1
        if record.sequence == last.sequence:
            self._wrong(file, number, f"record {record.sequence} stands here once more")
        elif record.sequence < expected:
            self._wrong(file, number, f"record {record.sequence} stands behind record {last.sequence}")
        elif record.sequence > expected and not self._is_broken:
            missing = f"{expected} to {record.sequence - 1}" if record.sequence - expected > 1 else f"{expected}"
            self._wrong(file, number, f"before this, record {missing} is missing")
        elif record.sequence == expected and not self._is_broken and record.previous != last.digest:
            assert self._before is not None
            self._wrong(*self._before, f"this is not the record that record {record.sequence}, the next, has seen")

    def _note(self, path: Path, number: int, record: Record, digest: str) -> None:
        event = record.event
        if self._head is not None and record.sequence == self._head.sequence:
            self._head_digest = digest
        if isinstance(event, DayBegan) != (number == 1) or (isinstance(event, DayBegan) and event.day != path.stem):
            self._wrong(path.name, number, "the file does not begin as a file of its day does, here")
        if isinstance(event, LogPruned):
            self._anchors.add((event.last, event.digest))
            self._has_it |= event.digest == self._against
        elif isinstance(event, LogDamaged):
            self._wrong(path.name, number, f"a supervisor found, when it started, that {event.what}")
        elif isinstance(event, LogRepaired):
            text = f"{event.size} bytes at byte {event.offset} of {event.file} (line {event.line}) were cut off"
            self._remark(path.name, number, f"{text}: half a record, as a crash leaves it")
        if record.lost:
            self._remark(path.name, number, f"{record.lost} events before this could not be written")

    def _judge_start(self) -> None:
        start = self._start
        if start is None or (start.sequence, start.previous) == (1, GENESIS):
            return
        if (start.sequence - 1, start.previous) not in self._anchors:
            self._wrong(*self._start_at, f"what was before record {start.sequence} is missing, and was not pruned")

    def _judge_end(self, extent: Extent) -> None:
        head, last = self._head, self.verdict.last
        if head is None:
            if extent.head is not None or extent.files:
                self._wrong(HEAD, 0, "it is missing, or not as it was written")
        elif head.sequence > last.sequence:
            self._wrong(
                extent.files[-1][0].name if extent.files else HEAD, 0,
                f"records {last.sequence + 1} to {head.sequence} are missing at the end",
            )  # fmt: skip
        elif head.digest != (self._head_digest if head.sequence else GENESIS):
            file, line = self._before or (HEAD, 0)
            where = (file, line) if head.sequence == last.sequence else (HEAD, 0)
            self._wrong(*where, f"record {head.sequence} is not the one that {HEAD} has seen")
        elif head.sequence < last.sequence:
            number = last.sequence - head.sequence
            self._remark(HEAD, 0, f"{number} records at the end were not known to be safe on disk yet")

    def _wrong(self, file: str, line: int, what: str) -> None:
        if len(self.verdict.problems) < _MOST:
            self.verdict.problems.append(Problem(file, line, what))

    def _remark(self, file: str, line: int, what: str) -> None:
        if len(self.verdict.remarks) < _MOST:
            self.verdict.remarks.append(Problem(file, line, what))


def _lines(path: Path, size: int) -> Iterator[bytes]:
    """Yield a file's lines with their line breaks; the last may lack it."""
    with path.open("rb") as file:
        while size > 0 and (line := file.readline(min(size, MAX_LINE + 1))):
            size -= len(line)
            yield line
