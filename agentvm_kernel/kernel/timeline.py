"""Where the notebook stands: which runs its VM has behind it, and at which of them there are snapshots."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from agentvm_kernel.errors import SnapshotError
from agentvm_kernel.kernel.comms import Comms
from agentvm_kernel.snapshots.notes import Cell

_REMEMBERED: Final = 10_000
_CODE: Final = 200


@dataclass
class _Stop:
    """The state after a run, or of a VM in which nothing has run yet.

    Attributes:
        before: Key of the stop before it; None where the VM began.
        cell: What was run; an empty one where the VM began.
        snapshot: Id of the newest snapshot of this state; empty for none.
    """

    before: int | None
    cell: Cell
    snapshot: str = ""


@dataclass(frozen=True)
class Mark:
    """What the host knew at the moment of a snapshot.

    Attributes:
        stop: Where the notebook stood.
        comms: The number of the comm that had been opened last.
    """

    stop: int
    comms: int


class Timeline:
    """The tree of runs in this kernel process, and the place in it.

    It goes back with the VM. The last ten thousand runs and snapshots are remembered.

    Attributes:
        comms: What clients have open.
        snapshot: Id of the snapshot that the VM descends from; empty for the image's own.
        travelling: Whether a snapshot is taken after every cell.
        unseen: It is, but there has been none yet of the state that the VM is in.
        forked: Number of the run that made the last forks; 0 if there are none to adopt.
        scores: Their results, of those that can be adopted and gave a number, by fork.
    """

    def __init__(self) -> None:
        self.comms = Comms()
        self.snapshot = ""
        self.forked = 0
        self.scores: dict[int, float] = {}
        self.travelling = self.unseen = False
        self._runs = 0
        self._begun = 0
        self._stops: OrderedDict[int, _Stop] = OrderedDict()
        self._marks: OrderedDict[str, Mark] = OrderedDict()
        self._at = 0
        self.begin()

    @property
    def cell(self) -> Cell:
        """What was run last in this VM."""
        return self._stops[self._at].cell

    def next_run(self) -> int:
        """Return the number of a run that begins; numbers never go back."""
        self._runs += 1
        return self._runs

    def begin(self) -> None:
        """Note that the next VM is one in which nothing has run."""
        self.unseen = self.travelling
        self._begun -= 1
        self._go(self._begun, _Stop(None, Cell()))

    def ran(self, run: int, count: int | None, code: str) -> None:
        """Note that a cell has run.

        Args:
            run: The run's number.
            count: The guest's execution count, where it gave one.
            code: The cell.
        """
        self._go(run, _Stop(self._at, Cell(run=run, count=count, code=beginning(code))))

    def begin_snapshot(self) -> Callable[[str, bool], None]:
        """Note that a snapshot is about to be taken.

        Returns:
            To be called with its id and whether it froze a running cell, once that is known.
        """
        mark = Mark(self._at, self.comms.last)

        def taken(snapshot: str, busy: bool) -> None:
            self.snapshot = snapshot
            self._remember(snapshot, mark)
            stop = self._stops.get(mark.stop)
            if stop and not busy:
                stop.snapshot = snapshot

        return taken

    def go_back(self, snapshot: str) -> Mark:
        """Note that the VM is a clone of a snapshot now; return what was known when it was taken.

        A snapshot of another kernel process, of which nothing is known, begins a timeline of its own.
        """
        self.snapshot = snapshot
        mark = self._marks.get(snapshot)
        if mark is None or mark.stop not in self._stops:
            self.begin()
            self.unseen = False
            self._stops[self._at].snapshot = snapshot
            mark = Mark(self._at, mark.comms if mark else 0)
            self._remember(snapshot, mark)
        self._at = mark.stop
        return mark

    def lost(self, snapshot: str) -> list[Cell]:
        """Return the cells that the VM has behind it and a snapshot has not, the latest first."""
        mark = self._marks.get(snapshot)
        kept = set(self._path(mark.stop)) if mark else set()
        return [self._stops[key].cell for key in self._path(self._at) if key > 0 and key not in kept]

    def before(self, cells: int) -> str:
        """Return the id of the snapshot from before the last so many cells.

        Raises:
            SnapshotError: there is none.
        """
        path = self._path(self._at)
        if cells >= len(path):
            known = len(path) - 1
            raise SnapshotError(f"This VM has run {known} {'cell' if known == 1 else 'cells'} that can be undone.")
        found = self._stops[path[cells]].snapshot
        if not found:
            raise SnapshotError(
                f"There is no snapshot from before the last {f'{cells} cells' if cells > 1 else 'cell'}: time travel"
                " was off then, or the snapshot failed.",
                "Run %timetravel on, or choose one of %snapshots.",
            )
        return found

    def _path(self, key: int) -> list[int]:
        """Return the stops up to the VM's beginning, or as far as they are remembered."""
        path: list[int] = []
        at: int | None = key
        while at is not None and (stop := self._stops.get(at)):
            path.append(at)
            at = stop.before
        return path

    def _go(self, key: int, stop: _Stop) -> None:
        self._stops[key] = stop
        self._at = key
        if len(self._stops) > _REMEMBERED:
            self._stops.popitem(last=False)

    def _remember(self, snapshot: str, mark: Mark) -> None:
        self._marks[snapshot] = mark
        if len(self._marks) > _REMEMBERED:
            self._marks.popitem(last=False)


def beginning(code: str) -> str:
    """Return the beginning of a cell, as it is kept with a snapshot."""
    return code[:_CODE].encode(errors="replace").decode()
