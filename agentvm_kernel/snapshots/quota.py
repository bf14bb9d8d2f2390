"""How much all snapshots may take together, and what goes when that is exceeded."""

from __future__ import annotations

from collections.abc import Callable

from agentvm_kernel.errors import QuotaError
from agentvm_kernel.snapshots.pins import is_used
from agentvm_kernel.snapshots.prune import Plan, carry_out, plan_removal
from agentvm_kernel.snapshots.reading import Contents, Stored
from agentvm_kernel.snapshots.shelf import Shelf

# Merging costs much more than removing, so once something must go, a little more than necessary goes with it.
_MORE = 20


def readable_size(size: int) -> str:
    """Return a size as people read it, in units of powers of ten."""
    if size < 1000:
        return f"{size} B"
    value, units = size / 1000, ["kB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.3g} {units[0]}"


class Quota:
    """Keeps all snapshots together below a limit.

    Args:
        shelf: The folder of all snapshots.
        limit: Bytes that they may take.
    """

    def __init__(self, shelf: Shelf, limit: int) -> None:
        self._shelf = shelf
        self.limit = limit

    def make_room(self, size: int) -> list[str]:
        """Remove the oldest unlabelled snapshots until one more fits; the caller holds the lock.

        Args:
            size: Bytes that the new one takes.

        Returns:
            Ids of what is gone.

        Raises:
            QuotaError: it cannot be made to fit; then nothing was removed.
        """
        gone: list[str] = []
        stuck: set[str] = set()
        while True:
            trees = self._trees()
            used = sum(contents.size for contents in trees)
            over = used + size - self.limit
            if over <= 0:
                return gone
            plan = self._plan(trees, over, stuck)
            if plan.freed < over:
                raise self._error(size, used, trees)
            done = carry_out(self._shelf, plan)
            stuck |= {one.id for one in plan.gone}.difference(done)
            gone += done

    def _plan(self, trees: list[Contents], over: int, stuck: set[str]) -> Plan:
        candidates = prunable(trees, lambda one: one.id not in stuck)
        return plan_removal(trees, candidates, lambda freed: freed >= over + self.limit // _MORE)

    def _trees(self) -> list[Contents]:
        return [self._shelf.read(tree) for tree in self._shelf.trees()]

    def _error(self, size: int, used: int, trees: list[Contents]) -> QuotaError:
        everything = [one for contents in trees for one in contents.sound]
        labelled = sum(one.size for one in everything if one.notes.label)
        limit, taken = readable_size(self.limit), f"{readable_size(used)} ({readable_size(labelled)} labelled)"
        return QuotaError(
            f"The snapshot needs {readable_size(size)}, but of the {limit} that snapshots may take, {len(everything)} "
            f"take {taken}, and not enough of them can be pruned.",
            "Remove some with `agentvm snapshot rm`, or raise quota_gb in [snapshots] of the configuration.",
        )


def prunable(trees: list[Contents], wanted: Callable[[Stored], bool]) -> list[Stored]:
    """Return the snapshots that are unlabelled, not in use, and wanted, oldest first; the caller holds the lock."""
    unlabelled = [one for contents in trees for one in contents.sound if not one.notes.label]
    found = [one for one in unlabelled if wanted(one) and not is_used(one.snapshot.folder)]
    return sorted(found, key=lambda one: (one.notes.created, one.id))
