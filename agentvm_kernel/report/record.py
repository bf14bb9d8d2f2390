"""What the audit log says of a notebook: sessions, what ran in them, what they saved, went back to and reached."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Final, TypeGuard, TypeVar

from agentvm_kernel.observe.chain import MAX_LINE, Record, look, read_line
from agentvm_kernel.observe.events.anomaly import AnomalyDetected
from agentvm_kernel.observe.events.execution import (
    Execution,
    ExecutionCompleted,
    ExecutionEnded,
    ExecutionFailed,
    ExecutionStarted,
    ExecutionTimeout,
    FilesCopied,
    OutputBlocked,
    OutputShown,
    ReportsMissing,
    ResourceLimitExceeded,
)
from agentvm_kernel.observe.events.network import ConnectionsLeftOut, NetworkConnection
from agentvm_kernel.observe.events.snapshot import (
    ForksMade,
    SnapshotCreated,
    SnapshotRelabelled,
    SnapshotRestored,
    SnapshotsRemoved,
)
from agentvm_kernel.observe.events.supervisor import ConfigurationChanged
from agentvm_kernel.observe.events.vm import LeaseAcquired, LeaseReleased, VMStarted
from agentvm_kernel.observe.fields import Claimed, Event

MOST: Final = 20_000
"""Things of a kind that are kept of a session; of more there is only the number."""

_STARTED: Final = b'"event":"vm_started"'
_FINDING: Final = (b'"event":"lease_acquired"', b'"event":"execution_started"')

REPRODUCTION: Final = "reproduce-"
"""How the owners of sessions begin in which a notebook was only run again, to compare: they are none of its own."""

_T = TypeVar("_T")

_OUTCOMES: Final[dict[type[Event], str]] = {
    ExecutionCompleted: "completed",
    ExecutionFailed: "failed",
    ExecutionTimeout: "timeout",
}


@dataclass(frozen=True)
class Run:
    """Something that ran.

    Attributes:
        vm: The VM that it ran in.
        number: Number of the run within its session.
        fork: The fork that it ran in; 0 for the session's own VM.
        digest: Of its code.
        began: Seconds since 1970.
        snapshot: What its VM descended from when it began; empty for the image's own state.
        cell: Id of the notebook's cell, if the front end has told it.
        ended: Seconds since 1970; None if its end is not known.
        outcome: ``completed``, ``failed``, ``timeout``; empty while its end is not known.
        end: What was written down of its end.
        outputs: Digest of what it showed, see `agentvm_kernel.observe.outputs`; empty if that is not known.
    """

    vm: str
    number: int
    fork: int
    digest: str
    began: float
    snapshot: str
    cell: str = ""
    ended: float | None = None
    outcome: str = ""
    end: ExecutionEnded | None = None
    outputs: str = ""

    @property
    def count(self) -> int | None:
        """The execution count that the guest gave."""
        return self.end.count if self.end else None


@dataclass(frozen=True)
class Saved:
    """A snapshot that was taken.

    Attributes:
        id: Its id.
        parent: What its VM descended from; empty for the image's own state.
        label: Its label.
        kind: Why it was taken.
        time: When, seconds since 1970.
        vm: Of which VM.
        run: The last run before it.
    """

    id: str
    parent: str
    label: str
    kind: str
    time: float
    vm: str
    run: int


@dataclass(frozen=True)
class Return:
    """A way back: a clone of a snapshot took the VM's place.

    Attributes:
        time: When, seconds since 1970.
        source: What the VM before descended from.
        target: The snapshot.
        run: The last run before it.
        vm: The VM that the session has had since.
    """

    time: float
    source: str
    target: str
    run: int
    vm: str


@dataclass
class Session:
    """What the log says of one lease.

    Attributes:
        lease: The lease's id.
        acquired: What was written down when it began.
        began: Seconds since 1970.
        ended: Likewise; None if it goes on, or its end is not written down.
        runs: What ran, in order.
        snapshots: What was saved, in order.
        returns: Ways back, in order.
        relabelled: Snapshots that got another label: when, which, and the label.
        removed: Snapshots that were removed: when, the first of them, and how many.
        forks: Clones that were asked for, with the times.
        copies: Files and folders that were copied in or out, with the times.
        connections: What it wanted to reach, in order, with the times.
        blocked: How much output was not let through, by run and reason.
        changes: What was changed of its limits and network, with the times.
        exceeded: Limits that were exceeded.
        anomalies: What was unusual.
        missing: What is known not to be written down, in words.
        here: What its VM descends from now.
    """

    lease: str
    acquired: LeaseAcquired
    began: float
    ended: float | None = None
    runs: list[Run] = field(default_factory=list)
    snapshots: list[Saved] = field(default_factory=list)
    returns: list[Return] = field(default_factory=list)
    relabelled: list[tuple[float, str, str]] = field(default_factory=list)
    removed: list[tuple[float, tuple[str, ...], int]] = field(default_factory=list)
    forks: list[tuple[float, ForksMade]] = field(default_factory=list)
    copies: list[tuple[float, FilesCopied]] = field(default_factory=list)
    connections: list[tuple[float, NetworkConnection]] = field(default_factory=list)
    blocked: Counter[tuple[int, str]] = field(default_factory=Counter)
    changes: list[tuple[float, str]] = field(default_factory=list)
    exceeded: list[ResourceLimitExceeded] = field(default_factory=list)
    anomalies: list[tuple[float, AnomalyDetected]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    here: str = ""

    @property
    def last_run(self) -> int:
        """Number of the last run in its own VM, up to now; forks' runs have none."""
        return next((run.number for run in reversed(self.runs) if run.fork == 0), 0)

    @property
    def path(self) -> list[str]:
        """The snapshots that lie behind its VM, oldest first."""
        parents = {one.id: one.parent for one in self.snapshots}
        path: list[str] = []
        name = self.here
        while name in parents and name not in path:
            path.insert(0, name)
            name = parents[name]
        return path

    @property
    def way(self) -> list[Run]:
        """The runs that lie behind its VM as it was at last, oldest first: without the branches that were left."""
        came_from = {one.vm: one.target for one in self.returns}
        saved = {one.id: one for one in self.snapshots}
        legs: dict[str, int | None] = {}
        vm = self.returns[-1].vm if self.returns else self.acquired.vm
        last: int | None = None
        while vm not in legs:
            legs[vm] = last
            source = saved.get(came_from.get(vm, ""))
            if source is None:
                break
            vm, last = source.vm, source.run
        return [run for run in self.runs if run.vm in legs and _is_behind(run, legs[run.vm])]


def _is_behind(run: Run, last: int | None) -> bool:
    return last is None or run.number <= last


@dataclass(frozen=True)
class Found:
    """The sessions of a notebook.

    Attributes:
        sessions: Oldest first.
        by: How they were found: ``name``, or ``code`` where no session bears the notebook's name.
    """

    sessions: tuple[Session, ...]
    by: str


def find_sessions(log: Path, names: Collection[str], codes: Collection[str]) -> Found:
    """Return what the audit log has of a notebook.

    A session belongs to a notebook if it bears its name: then Jupyter has told its kernel which file that is. Programs
    that run notebooks do not tell; of their sessions the one counts that ran most of the cells, of several the newest.

    Args:
        log: The log's folder.
        names: What the notebook may be called there.
        codes: Digests of its cells.

    Raises:
        OSError: the log cannot be read.
    """
    named: dict[str, None] = {}
    ran: dict[str, set[str]] = {}
    others: set[str] = set()
    for record in _records(log, _FINDING):
        event = record.event
        if isinstance(event, LeaseAcquired) and event.owner.startswith(REPRODUCTION):
            others.add(event.lease)
        elif isinstance(event, LeaseAcquired) and event.notebook in names:
            named[event.lease] = None
        elif _is_cell(event, codes) and event.lease not in others:
            ran.setdefault(event.lease, set()).add(event.digest)
    if named:
        return Found(_read(log, named), "name")
    # A later lease with as many replaces an earlier one.
    best = max(enumerate(ran), key=lambda one: (len(ran[one[1]]), one[0]), default=None)
    return Found(_read(log, [best[1]] if best else []), "code")


def _is_cell(event: Event, codes: Collection[str]) -> TypeGuard[ExecutionStarted]:
    return isinstance(event, ExecutionStarted) and event.kind == "cell" and event.digest in codes


def _read(log: Path, leases: Collection[str]) -> tuple[Session, ...]:
    if not leases:
        return ()
    reader = _Reader(leases)
    for record in _records(log, (_STARTED, *(json.dumps(lease).encode() for lease in leases))):
        reader.take(record)
    return tuple(reader.sessions.values())


def _records(log: Path, words: Collection[bytes]) -> Iterator[Record]:
    """Yield the records in which one of these words stands: to look for it takes less than to read the others."""
    for path, left in look(log).files:
        with path.open("rb") as file:
            while left > 0 and (line := file.readline(min(left, MAX_LINE + 1))):
                left -= len(line)  # noqa: PLW2901 - counts down
                if any(word in line for word in words):
                    with suppress(ValueError):  # that a line is no record is what `verify` tells
                        yield read_line(line.removesuffix(b"\n"))


class _Reader:
    """Follows the log from its beginning.

    Args:
        leases: The sessions that are wanted.
    """

    def __init__(self, leases: Collection[str]) -> None:
        self.sessions: dict[str, Session] = {}
        self._leases = leases
        self._bases: dict[str, str] = {}
        self._golden: set[str] = set()
        self._open: dict[tuple[str, int, int, str], int] = {}

    def take(self, record: Record) -> None:
        """Take a record."""
        event = record.event
        if isinstance(event, VMStarted):
            self._bases[event.vm] = event.snapshot
        lease = getattr(event, "lease", "")
        if isinstance(event, LeaseAcquired) and lease in self._leases:
            self._golden.add(self._bases.get(event.vm, ""))
            self.sessions[lease] = Session(lease, event, record.time)
        session = self.sessions.get(lease)
        if session is not None:
            self._take(session, record.time, event)

    def _take(self, session: Session, time: float, event: Event) -> None:
        match event:
            case ExecutionStarted() | ExecutionEnded() | OutputShown():
                self._take_execution(session, time, event)
            case SnapshotCreated():
                parent = self._base(event.vm)
                saved = Saved(event.snapshot, parent, event.label, event.kind, time, event.vm, session.last_run)
                _add(session.snapshots, saved)
                self._bases[event.vm] = session.here = event.snapshot
            case SnapshotRestored():
                source = self._base(event.before)
                _add(session.returns, Return(time, source, event.snapshot, session.last_run, event.vm))
                self._bases[event.vm] = session.here = event.snapshot
            case NetworkConnection():
                _add(session.connections, (time, event))
            case OutputBlocked():
                if len(session.blocked) < MOST:
                    session.blocked[event.run, str(event.reason)] += event.count
            case LeaseReleased():
                session.ended = time
            case _:
                _take_other(session, time, event)

    def _take_execution(self, session: Session, time: float, event: Execution) -> None:
        key = (session.lease, event.run, event.fork, event.digest)
        if isinstance(event, ExecutionStarted):
            if len(session.runs) < MOST and event.kind == "cell":
                self._open[key] = len(session.runs)
                run = Run(event.vm, event.run, event.fork, event.digest, time, self._base(event.vm), event.cell)
                session.runs.append(run)
        elif key in self._open:
            place = self._open[key]
            if isinstance(event, OutputShown):
                session.runs[place] = replace(session.runs[place], outputs=event.outputs)
            elif isinstance(event, ExecutionEnded):
                outcome = _OUTCOMES[type(event)]
                session.runs[place] = replace(session.runs[place], ended=time, outcome=outcome, end=event)

    def _base(self, vm: str) -> str:
        base = self._bases.get(vm, "")
        return "" if base in self._golden else base


def _take_other(session: Session, time: float, event: Event) -> None:
    match event:
        case ConfigurationChanged():
            _add(session.changes, (time, event.what))
        case SnapshotRelabelled():
            _add(session.relabelled, (time, event.snapshot, event.label))
            session.snapshots = [
                replace(one, label=event.label) if one.id == event.snapshot else one for one in session.snapshots
            ]
        case SnapshotsRemoved():
            _add(session.removed, (time, tuple(event.snapshots), event.count))
        case ForksMade():
            _add(session.forks, (time, event))
        case FilesCopied():
            _add(session.copies, (time, event))
        case ResourceLimitExceeded():
            _add(session.exceeded, event)
        case AnomalyDetected():
            _add(session.anomalies, (time, event))
        case ConnectionsLeftOut():
            _add(session.missing, f"{event.count} {event.verdict} connections are not written down")
        case ReportsMissing():
            _add(session.missing, f"{event.count} reports of executions are missing")


def _add(to: list[_T], one: _T) -> None:
    if len(to) < MOST:
        to.append(one)


def name_of(path: str) -> str:
    """Return the last part of a path: the others may have the names of users."""
    return PurePosixPath(path).name


def said(text: Claimed) -> str:
    """Return a guest's words, with how much of them is cut off."""
    return f"{text.claimed} ({text.cut} characters more)" if text.cut else text.claimed
