"""Of what events of the audit log are made: texts that are bounded, and marked where a guest made them up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal, TypedDict

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

MAX_TEXT: Final = 512
MAX_PATH: Final = 4096
MAX_CODE: Final = 8192
_MOST_HOSTS: Final = 50
MOST: Final = 50
"""Things of a kind that one event names."""
_ELLIPSIS: Final = "\N{HORIZONTAL ELLIPSIS}"


class Event(BaseModel):
    """Base: immutable, and unknown fields are errors."""

    # Commands and kernels that write or read no events need not wait for what validates them.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    event: str

    def fields(self) -> dict[str, Any]:
        """Return what goes into the record: the event's name, and all that is not as it is by default."""
        return {"event": self.event} | self.model_dump(mode="json", exclude={"event"}, exclude_defaults=True)


class Claimed(BaseModel):
    """Text that a guest made up: nobody vouches for it.

    Attributes:
        claimed: Its beginning.
        cut: How many more characters there were.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    claimed: str = Field(default="", max_length=MAX_TEXT)
    cut: int = Field(default=0, ge=0)


def claimed(text: str) -> Claimed:
    """Return a guest's text as it may stand in the log.

    Args:
        text: Of any length; halves of surrogate pairs are replaced.
    """
    return Claimed(claimed=_clean(text[:MAX_TEXT]), cut=max(0, len(text) - MAX_TEXT))


def hosts(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of hosts as they may stand in the log: the first fifty, and how many more there were."""
    more = len(names) - _MOST_HOSTS
    return (*names[:_MOST_HOSTS], f"and {more} more") if more > 0 else tuple(names)


def _clean(text: str) -> str:
    return text if text.isascii() else text.encode(errors="replace").decode()


def _bounded(most: int) -> BeforeValidator:
    """Let a text be cut instead of refused: an event must not be lost because something in it is long."""

    def cut(value: object) -> object:
        if not isinstance(value, str):
            return value
        return _clean(value if len(value) <= most else value[: most - 1] + _ELLIPSIS)

    return BeforeValidator(cut)


Text = Annotated[str, _bounded(MAX_TEXT), Field(max_length=MAX_TEXT)]
Long = Annotated[str, _bounded(MAX_PATH), Field(max_length=MAX_PATH)]
Code = Annotated[str, _bounded(MAX_CODE), Field(max_length=MAX_CODE)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
Accelerator = Literal["kvm", "tcg", ""]
Some = Annotated[tuple[Text, ...], Field(max_length=MOST)]
Hosts = Annotated[tuple[Text, ...], Field(max_length=_MOST_HOSTS + 1)]


class Subject(TypedDict):
    """What is the same in all events of a session: its VM, its lease, and whose they are."""

    vm: str
    lease: str
    notebook: str
