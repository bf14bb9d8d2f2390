"""Snapshots in a file: one with all that it descends from, down to the identity of its golden snapshot.

The file is a tar archive. First comes ``archive.json``, which says what else there is, then the files of each snapshot,
the oldest first, in the order in which the description lists them.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from agentvm_kernel.snapshots.notes import Notes
from agentvm_kernel.vm.snapshot import Manifest

DESCRIPTION = "archive.json"
FORMAT: Literal["agentvm-snapshots-1"] = "agentvm-snapshots-1"
_MOST_SNAPSHOTS = 10_000


class Entry(BaseModel):
    """One snapshot of an archive.

    Attributes:
        id: Its id.
        manifest: What it is.
        notes: What is said of it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[0-9a-f]{12}$")
    manifest: Manifest
    notes: Notes


class Description(BaseModel):
    """What an archive has in it.

    Attributes:
        format: Version of this format.
        notebook: Name of the notebook.
        snapshots: A chain, oldest first: each descends from the one before.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["agentvm-snapshots-1"]
    notebook: str = Field(min_length=1, max_length=4096)
    snapshots: tuple[Entry, ...] = Field(min_length=1, max_length=_MOST_SNAPSHOTS)
