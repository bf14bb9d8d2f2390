"""Removes the snapshots of a machine in which a notebook was run again: nobody goes back to them."""

from __future__ import annotations

import time
from typing import Final

from agentvm_kernel.errors import SnapshotError
from agentvm_kernel.snapshots.command import open_store
from agentvm_kernel.snapshots.store import SnapshotStore
from agentvm_kernel.snapshots.tree import Tree

_PATIENCE: Final = 20.0
"""Seconds in which the supervisor lets go of what the machine descended from."""

_AGAIN: Final = 0.1


def remove_snapshots(owner: str) -> int:
    """Remove them; blocks.

    Args:
        owner: What the machine's lease was for.

    Returns:
        How many are left, because they are still in use.
    """
    store = open_store(changing=True)
    until = time.monotonic() + _PATIENCE
    while (left := _removed(store, owner)) and time.monotonic() < until:
        time.sleep(_AGAIN)
    return left


def _removed(store: SnapshotStore, owner: str) -> int:
    """Remove what is not in use, the newest first; return how many snapshots are left."""
    for tree in store.trees():
        if tree.notebook != owner:
            continue
        left = [one.id for one in tree.snapshots()][::-1]
        left += [one.id for one in tree.damaged()]
        return sum(not _is_removed(tree, one) for one in left)
    return 0


def _is_removed(tree: Tree, snapshot: str) -> bool:
    try:
        tree.remove(snapshot)
    except SnapshotError:  # in use
        return False
    return True
