"""What is said of a snapshot: unlike the snapshot itself it may change."""

from __future__ import annotations

import time
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

_YEAR_9999 = 253_370_764_800  # beyond, Python has no dates

Kind = Literal["manual", "auto", "fork"]
LONGEST_WAY: Final = 256


class Cell(BaseModel):
    """The cell that led to a snapshot.

    Attributes:
        run: Number of the run within the kernel process; it never goes back.
        count: The guest's execution count, as the guest claims it.
        code: The beginning of its code.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: int = Field(default=0, ge=0)
    count: int | None = Field(default=None, ge=0)
    code: str = Field(default="", max_length=2000)


class Leg(BaseModel):
    """What one VM adds to the way to a snapshot.

    Attributes:
        vm: The VM's id.
        run: Number of the last run in it that the snapshot has behind it; 0 for none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    vm: str = Field(max_length=64)
    run: int = Field(ge=0)


Way = Annotated[tuple[Leg, ...], Field(max_length=LONGEST_WAY)]


class Notes(BaseModel):
    """What is said of a snapshot.

    Attributes:
        label: Its name within the notebook's tree; empty for none.
        text: What the user says of it.
        kind: Asked for by hand, by time travel, or as the common ancestor of forks.
        cell: The cell that led there.
        way: Which runs lie behind it, VM by VM: a rollback goes on in another one. Those that matter were the last.
        busy: It froze a running cell.
        pause_ms: How long the VM stood still for it, milliseconds.
        created: When, seconds since the epoch.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str = Field(default="", max_length=64)
    text: str = Field(default="", max_length=2000)
    kind: Kind = "manual"
    cell: Cell = Cell()
    way: Way = ()
    busy: bool = False
    pause_ms: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    created: float = Field(default_factory=time.time, ge=0, le=_YEAR_9999)
