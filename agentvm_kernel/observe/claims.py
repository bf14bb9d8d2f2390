"""What a guest says of itself. Nobody vouches for it: root in the VM can make it up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Self

from pydantic import BaseModel, ConfigDict, Field

_MOST: Final = 1 << 53  # larger numbers do not survive JSON elsewhere
_MOST_LOAD: Final = 1e9

_Amount = Annotated[int, Field(ge=0, le=_MOST)] | None
_Number = Annotated[float, Field(ge=0, le=_MOST_LOAD, allow_inf_nan=False)] | None


class Claims(BaseModel):
    """Facts about a guest, as its agent tells them; ``None`` for what it does not tell, or tells in no sensible way.

    Attributes:
        processes: Processes and threads that there are.
        processes_started: How many were ever started.
        load: Load average of the last minute.
        memory_free: Bytes of memory that programs may still have.
        filesystem_size: Bytes that its root file system holds.
        filesystem_free: Bytes that its users may still write there.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    processes: _Amount = None
    processes_started: _Amount = None
    load: _Number = None
    memory_free: _Amount = None
    filesystem_size: _Amount = None
    filesystem_free: _Amount = None

    @classmethod
    def of(cls, answer: Mapping[str, object]) -> Self:
        """Return what a guest agent's answer claims.

        Args:
            answer: Hostile: anything that is JSON.
        """
        return cls.model_validate({name: _sensible(name, answer.get(name)) for name in cls.model_fields})


def _sensible(name: str, value: object) -> float | int | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if name == "load":
        return float(value) if 0 <= value <= _MOST_LOAD else None
    return value if isinstance(value, int) and 0 <= value <= _MOST else None
