"""The snapshot store: a tree of snapshots per notebook, on disk, complete or absent."""

from __future__ import annotations

from agentvm_kernel.snapshots.notes import Cell, Kind, Notes
from agentvm_kernel.snapshots.reading import Damaged, Stored
from agentvm_kernel.snapshots.store import SnapshotStore
from agentvm_kernel.snapshots.tree import New, Tree

__all__ = ["Cell", "Damaged", "Kind", "New", "Notes", "SnapshotStore", "Stored", "Tree"]
