"""What pages send. Checked so that, typed into a kernel, each is one magic and nothing else."""

from __future__ import annotations

import re
import unicodedata
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from agentvm_kernel.egress.names import NameRefusedError, Pattern
from agentvm_kernel.errors import SnapshotError
from agentvm_kernel.profiles import Limits
from agentvm_kernel.snapshots.label import check_label

_CONFIG: Final = ConfigDict(frozen=True, extra="forbid", strict=True)
_REFERENCE: Final = re.compile(r"[0-9a-f]{12}|~[0-9]{0,6}", re.ASCII)
_BREAKING: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Categories of characters that end a line, or that a terminal or a pipe would obey."""


def _is_label(text: str) -> str:
    try:
        return check_label(text) if text else ""
    except SnapshotError as error:
        raise ValueError(error.message) from error


def _is_reference(text: str) -> str:
    if _REFERENCE.fullmatch(text):
        return text
    if not text:
        raise ValueError("a snapshot's id, its label or ~N is needed")
    return _is_label(text)


def _is_host(text: str) -> str:
    """Return a pattern in its own words: what is typed is never what came."""
    try:
        return str(Pattern.parse(text))
    except NameRefusedError as error:
        raise ValueError(f"{error.message} {error.hint}") from error


def _is_line(text: str) -> str:
    if any(unicodedata.category(character) in _BREAKING for character in text):
        raise ValueError("line breaks and control characters are not valid")
    return text


def _is_code(text: str) -> str:
    if not text.strip() or "\0" in text:
        raise ValueError("lines to run are needed, without NUL")
    return text


Label = Annotated[str, Field(max_length=64), AfterValidator(_is_label)]
Reference = Annotated[str, Field(max_length=64), AfterValidator(_is_reference)]
Host = Annotated[str, Field(max_length=300), AfterValidator(_is_host)]
Hosts = Annotated[tuple[Host, ...], Field(max_length=64)]


class Body(BaseModel):
    """Base: immutable; unknown fields and other types are errors."""

    model_config = _CONFIG


class SnapshotBody(Body):
    """Take a snapshot.

    Attributes:
        label: Its name; empty for none.
        text: A remark, one line.
        now: Do not wait for the cell that runs: freeze it.
    """

    label: Label = ""
    text: Annotated[str, Field(max_length=2000), AfterValidator(_is_line)] = ""
    now: bool = False


class LabelBody(Body):
    """Name a snapshot.

    Attributes:
        label: Its name; empty to take it away.
    """

    label: Label


class PruneBody(Body):
    """Remove old snapshots without a label.

    Attributes:
        keep: How many of them stay.
    """

    keep: int = Field(default=0, ge=0, le=100_000)


class ToBody(Body):
    """Go back.

    Attributes:
        to: The snapshot's id, its label, or ``~N``.
    """

    to: Reference


class ForkBody(Body):
    """Run code in clones of the VM.

    Attributes:
        count: How many.
        code: The code.
        randomness: Whether random numbers differ between them.
        timeout: Seconds that it may take in each; ``None`` for the deadline of cells.
    """

    count: int = Field(ge=1, le=64)
    code: Annotated[str, Field(max_length=200_000), AfterValidator(_is_code)]
    randomness: Literal["diverge", "common"] = "diverge"
    timeout: int | None = Field(default=None, ge=1, le=86_400)


class AdoptBody(Body):
    """Go on in a fork.

    Attributes:
        fork: Its number.
        of: Number of the run that has made it; ``None`` for whichever was the last.
    """

    fork: int = Field(ge=1, le=64)
    of: int | None = Field(default=None, ge=1, le=1_000_000_000)


class NetworkBody(Body):
    """Allow hosts, or deny them.

    Attributes:
        allow: Hosts, as `%net allow` takes them.
        deny: Hosts, likewise.
    """

    allow: Hosts = ()
    deny: Hosts = ()

    @model_validator(mode="after")
    def _says_something(self) -> NetworkBody:
        if not self.allow and not self.deny:
            raise ValueError("a host to allow or to deny is needed")
        return self


class LimitsBody(Limits):
    """Change limits; what is not named stays as it is."""

    model_config = _CONFIG

    @model_validator(mode="after")
    def _says_something(self) -> LimitsBody:
        if not self.model_fields_set:
            raise ValueError("a limit to change is needed")
        return self


class TravelBody(Body):
    """Switch time travel.

    Attributes:
        on: Whether a snapshot is taken after every cell.
    """

    on: bool


class VMBody(Body):
    """Do something with the whole VM.

    Attributes:
        do: Throw it away and start a fresh one, or give it back.
    """

    do: Literal["restart", "stop"]


class WatchBody(Body):
    """Ask to be told of kernels for a minute.

    Attributes:
        kernels: Their ids.
    """

    kernels: Annotated[tuple[Annotated[str, Field(max_length=64)], ...], Field(max_length=64)]
