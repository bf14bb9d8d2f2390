"""Finds out which run made what a cell shows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from agentvm_kernel.observe.outputs import digest_of_outputs
from agentvm_kernel.report.document import Cell
from agentvm_kernel.report.record import Run, Session
from agentvm_kernel.supervisor.execution_messages import digest_of

Standing = Literal["as recorded", "changed", "not recorded", "no known run", "not run"]


@dataclass(frozen=True)
class Match:
    """A cell and its run.

    Attributes:
        cell: The cell.
        run: The run; None if none is known.
        session: The run's session.
        standing: Whether the outputs are those that the run showed: they may be others; nobody may know, because what
            it showed was not written down; there may be outputs of which no run is known; there may be neither.
    """

    cell: Cell
    run: Run | None
    session: Session | None
    standing: Standing


def match(cells: Iterable[Cell], sessions: Sequence[Session]) -> list[Match]:
    """Return the code cells with their runs, in the document's order.

    A run belongs to a cell if it ran the same code. Of several, that which the front end said was this cell's goes
    before others, then that which showed the same, then that with the same execution count, then the newest; cells with
    the same code get different runs, while there are any.

    Args:
        cells: The notebook's.
        sessions: What the audit log has, oldest first.
    """
    runs: dict[str, list[tuple[Run, Session]]] = {}
    for session in sessions:
        for run in session.runs:
            if run.fork == 0:
                runs.setdefault(run.digest, []).append((run, session))
    taken: set[int] = set()
    return [_match(cell, runs.get(digest_of(cell.source), []), taken) for cell in cells if cell.kind == "code"]


def _match(cell: Cell, candidates: list[tuple[Run, Session]], taken: set[int]) -> Match:
    shown = digest_of_outputs(cell.outputs)

    def rank(place: int) -> tuple[bool, ...]:
        run = candidates[place][0]
        return (
            id(run) not in taken,
            bool(cell.id) and run.cell == cell.id,
            bool(shown) and run.outputs == shown,
            cell.count is not None and run.count == cell.count,
        )

    best = max(range(len(candidates)), key=lambda place: (*rank(place), place), default=None)
    if best is None or id(candidates[best][0]) in taken:
        return Match(cell, None, None, "no known run" if cell.outputs else "not run")
    run, session = candidates[best]
    taken.add(id(run))
    if not run.outputs:
        return Match(cell, run, session, "not recorded")
    # What has no digest now cannot be what had one then.
    return Match(cell, run, session, "as recorded" if run.outputs == shown else "changed")
