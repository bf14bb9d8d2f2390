"""How a cell calls a host magic."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar, Final

from agentvm_kernel.errors import AgentVMError

_LINE: Final = re.compile(r"(?P<before>\?{0,2})%(?P<name>[a-z]+)(?P<after>\?{0,2})(?=\s|$)(?P<rest>.*)")


class UsageError(AgentVMError):
    """A magic was called wrongly; the message says what is valid."""

    code: ClassVar[str] = "usage"


@dataclass(frozen=True)
class Call:
    """A cell that begins with a host magic.

    Attributes:
        name: The magic's name, without the percent sign.
        words: What follows it on its line.
        help: Help is asked for (``%vm?`` or ``?%vm``).
        alone: Nothing else is in the cell but blank lines and comments.
    """

    name: str
    words: tuple[str, ...]
    help: bool
    alone: bool


def find_call(code: str, names: Collection[str]) -> Call | None:
    """Return the host magic that a cell begins with, if it does.

    Args:
        code: The cell.
        names: The magics that there are.
    """
    lines = [line for raw in code.splitlines() if (line := raw.strip()) and not line.startswith("#")]
    match = _LINE.fullmatch(lines[0]) if lines else None
    if match is None or match["name"] not in names:
        return None
    words = match["rest"].split("#", 1)[0].split()
    return Call(match["name"], tuple(words), bool(match["before"] or match["after"]), len(lines) == 1)
