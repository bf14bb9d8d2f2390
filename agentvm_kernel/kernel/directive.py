"""Directives: comments at the top of a cell that say what holds while it runs."""

from __future__ import annotations

import re
from typing import ClassVar, Final

from agentvm_kernel.errors import AgentVMError

_DIRECTIVE: Final = re.compile(r"#\s*net:(?P<words>.*)", re.IGNORECASE)
_MARK: Final = re.compile(r"#\s*net:", re.IGNORECASE)


class DirectiveError(AgentVMError):
    """A cell's directive cannot be understood; the cell is not run."""

    code: ClassVar[str] = "directive"


def is_directed(code: str) -> bool:
    """Return whether a cell has directives.

    Args:
        code: The cell.
    """
    return bool(_MARK.search(code)) and bool(_lines(code))


def allowed_hosts(code: str) -> tuple[str, ...]:
    """Return the hosts that a cell's directives allow.

    Args:
        code: The cell.

    Raises:
        DirectiveError: a directive is none that there is.
    """
    hosts: list[str] = []
    for line in _lines(code):
        verb, *named = line.split() or [""]
        if verb != "allow" or not named:
            raise DirectiveError(f"# net: {ascii(line.strip())[1:60]} is no directive.", "Valid is # net: allow HOST …")
        hosts += named
    return tuple(hosts)


def _lines(code: str) -> list[str]:
    """Return what directives say: only comments above everything else are some, but for a cell magic's line."""
    found = []
    for number, raw in enumerate(code.split("\n")):
        line = raw.strip()
        if match := _DIRECTIVE.fullmatch(line):
            found.append(match["words"])
        elif line and not line.startswith("#") and not (number == 0 and line.startswith("%%")):
            break
    return found
