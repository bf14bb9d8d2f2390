"""The recorded path: what is run in which order, in which machine, so that cells come to show what they showed.

The record has the runs of cells, the snapshots and the ways back, in order; host magics are no runs, so that those of
the document are put where they stood: by the number of their run where the notebook keeps it, else behind the cell
before them. A snapshot or a way back that no magic of the document accounts for (it was taken in the panel, or its cell
is gone) is carried out all the same.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final, Literal

from agentvm_kernel.magics.call import Call
from agentvm_kernel.magics.registry import Registry
from agentvm_kernel.report.document import Cell
from agentvm_kernel.report.record import name_of
from agentvm_kernel.reproduce.error import ReproduceError
from agentvm_kernel.reproduce.recorded import Record, RecordedReturn, RecordedSession, RecordedSnapshot
from agentvm_kernel.run.provenance import KEY
from agentvm_kernel.supervisor.execution_messages import digest_of

_MOST_LEGS: Final = 8
_MOST_STEPS: Final = 10_000
_FIRST: Final = digest_of("pass")
"""What `agentvm run` runs first, to see that the machine answers; it does nothing."""

_ID: Final = re.compile(r"[0-9a-f]{6,64}")
_PATH: Final = re.compile(r"(?!-)[\w./+@=,: -]{1,300}")
"""Names of files that can stand in a magic between quotes."""

Order = Literal["record", "numbers of runs", "document"]


@dataclass(frozen=True)
class Step:
    """One thing that is run.

    Attributes:
        source: The code, or the magic.
        cell: Which of the code cells is held against what this shows, from 0; None for none.
        run: The run's number in the record; 0 for none.
        note: Why it is run where no cell of the document stands for it.
        digest: Recorded SHA-256 of what it copies, where no cell of the document stands for it.
    """

    source: str
    cell: int | None = None
    run: int = 0
    note: str = ""
    digest: str = ""


@dataclass(frozen=True)
class Leg:
    """What is run in one machine.

    Attributes:
        session: Whose path it is; None where nothing is recorded.
        steps: In order.
        missing: What of the path cannot be followed, in words.
    """

    session: RecordedSession | None
    steps: tuple[Step, ...]
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Path:
    """The way through all machines.

    Attributes:
        legs: One for each machine.
        order: Where the order is from.
    """

    legs: tuple[Leg, ...]
    order: Order


def plan(cells: Sequence[Cell], record: Record | None) -> Path:
    """Return the path.

    Args:
        cells: The notebook's code cells.
        record: What is recorded of it, if anything.

    Raises:
        ReproduceError: the record is of another notebook, or leads through too many machines.
    """
    sessions = [one for one in record.sessions if any(_is_shown(run) for run in one.runs)] if record else []
    if not sessions:
        return _without_record(cells)
    if len(sessions) > _MOST_LEGS:
        raise ReproduceError(
            f"The notebook's outputs are of {len(sessions)} sessions; {_MOST_LEGS} can be gone through.",
            "Run all cells of it anew, and make the report again.",
        )
    for run in (run for one in sessions for run in one.runs if run.cell is not None):
        if run.cell is None or run.cell >= len(cells) or digest_of(cells[run.cell].source) != run.digest:
            raise ReproduceError("The record is not of this notebook: its runs are of other code.")
    placed = _Placed(cells, sessions)
    legs = tuple(_Leg(cells, session, placed.magics[place]).leg() for place, session in enumerate(sessions))
    if sum(len(leg.steps) for leg in legs) > _MOST_STEPS:
        raise ReproduceError(f"The path has more than {_MOST_STEPS} steps.")
    return Path(legs, "record")


def _is_shown(run: Any) -> bool:
    return run.cell is not None and run.fork == 0


def call_of(source: str) -> Call | None:
    """Return the host magic that a cell calls, if it does."""
    magic = Registry().find(source)
    return magic.call if magic else None


def _kept(cell: Cell) -> int:
    """Return the number of the run that a cell's metadata names; 0 for none."""
    said = cell.metadata.get(KEY)
    run = said.get("run") if isinstance(said, dict) else None
    return run if type(run) is int and 0 < run < 1 << 31 else 0


def seeded(source: str, cell: Cell, recorded: str = "") -> str:
    """Return a call of forks with the seed that they had, if the record or the cell's metadata keeps it.

    Args:
        source: The cell's code.
        cell: The cell.
        recorded: The seed of the record, if it has one.
    """
    call = call_of(source)
    said = cell.metadata.get(KEY)
    forks = said.get("forks") if isinstance(said, dict) else None
    seed = recorded or (str(forks.get("seed", "")) if isinstance(forks, dict) else "")
    if call is None or call.name != "%fork" or "--seed" in call.words or not _SEED.fullmatch(seed):
        return source
    return f"%%fork {' '.join([*call.words, '--seed', seed])}\n{call.body}"


def _without_record(cells: Sequence[Cell]) -> Path:
    wanted = [place for place, cell in enumerate(cells) if cell.source.strip()]
    kernels = {str(cells[place].metadata.get(KEY, {}).get("kernel", "")) for place in wanted if _kept(cells[place])}
    numbers = [_kept(cells[place]) for place in wanted]
    is_numbered = all(numbers) and len(kernels) == 1 and len(set(numbers)) == len(numbers)
    if is_numbered:
        wanted.sort(key=lambda place: _kept(cells[place]))
    steps = tuple(Step(seeded(cells[place].source, cells[place]), place, _kept(cells[place])) for place in wanted)
    if len(steps) > _MOST_STEPS:
        raise ReproduceError(f"The path has more than {_MOST_STEPS} steps.")
    changed = (place + 1 for place in wanted if _is_changed(cells[place]))
    missing = tuple(f"the code of cell {number} was changed since it ran" for number in sorted(changed))
    return Path((Leg(None, steps, missing),), "numbers of runs" if is_numbered else "document")


def _is_changed(cell: Cell) -> bool:
    """Return whether the metadata have the digest of other code than the cell has."""
    said = cell.metadata.get(KEY)
    digest = said.get("code") if isinstance(said, dict) else None
    return isinstance(digest, str) and digest != digest_of(cell.source)


_SEED: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)
_Key = tuple[float, float]


class _Placed:
    """The document's magics among the runs of the record.

    Attributes:
        magics: For each session, by where they stand: a run's number and how far behind it.
    """

    def __init__(self, cells: Sequence[Cell], sessions: Sequence[RecordedSession]) -> None:
        self.magics: list[dict[_Key, int]] = [{} for _ in sessions]
        shown = {
            run.cell: (place, run.run)
            for place, session in enumerate(sessions)
            for run in session.runs
            if run.cell is not None and run.fork == 0
        }
        # Numbers that the notebook keeps are of this record only if its runs have the same.
        trusted = {place for cell, (place, run) in shown.items() if _kept(cells[cell]) == run}
        at, key = 0, (0.0, 0.0)
        for number, cell in enumerate(cells):
            if number in shown:
                at, run = shown[number]
                key = (float(run), 0.0)
            elif call_of(cell.source):
                key = (float(_kept(cell)), 0.0) if at in trusted and _kept(cell) else (key[0], key[1] + 1)
                self.magics[at][key] = number


@dataclass
class _Leg:
    """Puts one session's path together."""

    cells: Sequence[Cell]
    session: RecordedSession
    magics: dict[_Key, int]
    missing: list[str] = field(default_factory=list)

    def leg(self) -> Leg:
        """Return it."""
        keyed = sorted(
            [*self._runs(), *self._magics(), *self._snapshots(), *self._returns(), *self._copies()],
            key=lambda one: one[0],
        )
        return Leg(self.session, tuple(step for _, step in keyed), tuple(dict.fromkeys(self.missing)))

    def _runs(self) -> Iterator[tuple[_Key, Step]]:
        sources = {digest_of(cell.source): cell.source for cell in self.cells}
        for run in self.session.runs:
            if run.fork:
                continue
            source = sources.get(run.digest)
            if source is None and run.digest == _FIRST:
                continue
            if source is None:
                end = "" if run.on_the_way else ", on a branch that was left"
                self.missing.append(f"run {run.run} was of code that is not in the notebook any more{end}")
            else:
                note = "" if run.cell is not None else "the same code ran once more"
                yield (float(run.run), 0.0), Step(source, run.cell, run.run, note)

    def _magics(self) -> Iterator[tuple[_Key, Step]]:
        seeds = self._seeds()
        for key, number in self.magics.items():
            source = seeded(self._rewritten(self.cells[number].source), self.cells[number], seeds.get(number, ""))
            yield key, Step(source, number, int(key[0]))

    def _seeds(self) -> dict[int, str]:
        """Return the recorded seeds of the document's forks, where as many were made as it has between two runs."""
        made: dict[int, list[str]] = {}
        for one in self.session.forks:
            made.setdefault(self._gap(one.run), []).append(one.seed)
        found: dict[int, str] = {}
        for gap, numbers in self._gaps("%fork").items():
            if len(numbers) == len(made.get(gap, ())):
                found |= zip(numbers, made[gap], strict=True)
        return found

    def _rewritten(self, source: str) -> str:
        """Return a magic in which a snapshot's id, which is another each time, is a label."""
        call = call_of(source)
        if call is None or call.name != "rollback" or not call.words or not _ID.fullmatch(call.words[0]):
            return source
        place = bisect_left(self._ids, call.words[0])
        found = [name for name in self._ids[place : place + 2] if name.startswith(call.words[0])]
        if len(found) != 1:
            return source
        return f"%rollback {_label(self._known[found[0]])} {' '.join(call.words[1:])}"

    @cached_property
    def _known(self) -> dict[str, RecordedSnapshot]:
        return {one.id: one for one in self.session.snapshots}

    @cached_property
    def _ids(self) -> list[str]:
        return sorted(self._known)

    @cached_property
    def _numbers(self) -> list[int]:
        return sorted(one.run for one in self.session.runs if one.fork == 0)

    def _snapshots(self) -> Iterator[tuple[_Key, Step]]:
        """Yield snapshots that no magic of the document takes."""
        travels = any(self._is_call(number, "timetravel") for number in self.magics.values())
        taken = self._gaps("snapshot")
        for one in self.session.snapshots:
            if one.kind == "fork" or (one.kind == "auto" and travels):
                continue
            by = taken.get(self._gap(one.run), [])
            if one.kind == "manual" and by:
                by.pop(0)
            else:
                yield (one.run, 0.5), Step(f"%snapshot {_label(one)}", None, one.run, "a snapshot was taken")

    def _returns(self) -> Iterator[tuple[_Key, Step]]:
        """Yield ways back that no magic of the document goes."""
        gone = self._gaps("rollback", "undo", "adopt")
        for one in self.session.returns:
            by = gone.get(self._gap(one.run), [])
            if by:
                by.pop(0)
            elif one.to in self._known and self._known[one.to].kind != "fork":
                yield (one.run, 0.75), Step(f"%rollback {_label(self._known[one.to])}", None, one.run, "a rollback")
            else:
                self.missing.append(f"the way back to {_named(one)} behind run {one.run} cannot be gone")

    def _copies(self) -> Iterator[tuple[_Key, Step]]:
        """Yield copies in and out that no magic of the document makes: by `agentvm cp`, or `--in` and `--result`."""
        made = self._gaps("push", "pull")
        for one in self.session.copies:
            wanted = one.path if one.way == "pull" else one.name
            by = made.get(self._gap(one.run), [])
            cell = next((number for number in by if self._copied(number) == (one.way, wanted)), None)
            if cell is not None:
                by.remove(cell)
            elif _PATH.fullmatch(wanted):
                way = "in" if one.way == "push" else "out"
                step = Step(f"%{one.way} '{wanted}'", None, one.run, f"a file was copied {way}", one.sha256)
                yield (float(one.run), 0.25), step
            elif wanted:
                self.missing.append(f"the copy of {wanted!a:.80} cannot be made")

    def _copied(self, number: int) -> tuple[str, str]:
        """Return which way a cell copies, and what: a name of the host's, or a path in the machine."""
        call = call_of(self.cells[number].source)
        if call is None or not call.words:
            return "", ""
        return call.name, call.words[0] if call.name == "pull" else name_of(call.words[0])

    def _gaps(self, *names: str) -> dict[int, list[int]]:
        """Return the document's magics of these names by the run behind which they stand, in order."""
        found: dict[int, list[int]] = {}
        for key in sorted(self.magics):
            number = self.magics[key]
            if any(self._is_call(number, name) for name in names):
                found.setdefault(self._gap(int(key[0])), []).append(number)
        return found

    def _gap(self, run: int) -> int:
        """Return the last run of a cell up to a number."""
        place = bisect_right(self._numbers, run)
        return self._numbers[place - 1] if place else 0

    def _is_call(self, number: int, name: str) -> bool:
        call = call_of(self.cells[number].source)
        return call is not None and call.name == name and not call.help and "--dry-run" not in call.words


def _label(one: RecordedSnapshot) -> str:
    return one.label or f"recorded-{one.id[:40]}"


def _named(one: RecordedReturn) -> str:
    return f"{one.to!a:.40}"


def with_labels(leg: Leg) -> Leg:
    """Return a leg whose unnamed snapshots have the labels by which its ways back name them."""
    wanted = {word for step in leg.steps for word in step.source.split() if word.startswith("recorded-")}
    names = iter(
        _label(one) for one in (leg.session.snapshots if leg.session else ()) if one.kind == "manual" and not one.label
    )
    steps = []
    for step in leg.steps:
        call = call_of(step.source)
        if call and call.name == "snapshot" and not call.words and (name := next(names, "")) in wanted:
            steps.append(replace(step, source=f"%snapshot {name}"))
        else:
            steps.append(step)
    return replace(leg, steps=tuple(steps))
