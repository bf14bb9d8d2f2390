"""How commands write to a terminal what notebooks and guests have chosen."""

from __future__ import annotations

import os
from typing import Final, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
"""Seconds by the letter for a unit of time."""


def plain(text: str, keep: str = "") -> str:
    """Return text that cannot steer a terminal.

    Args:
        text: The text.
        keep: Characters that stay though they cannot be seen.
    """
    return "".join(one if one.isprintable() or one in keep else "\N{REPLACEMENT CHARACTER}" for one in text)


def readable_time(seconds: float) -> str:
    """Return a time as people read it, in the largest unit of which there are at least two."""
    whole = max(0, int(seconds))
    unit = next((unit for unit in ("w", "d", "h", "m") if whole >= 2 * UNITS[unit]), "s")
    return f"{whole // UNITS[unit]}{unit}"


_PIPED_WIDTH: Final = 10_000


def console() -> Console:
    """Return what commands print their results with.

    Where no terminal and no ``COLUMNS`` bounds the width, lines are as long as they are: another program reads them.
    """
    made = Console()
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = _PIPED_WIDTH
    return made


def table(*titles: str) -> Table:
    """Return an empty table.

    Args:
        titles: Of its columns; one that begins with ``>`` holds numbers.
    """
    made = Table(box=None, pad_edge=False)
    for number, title in enumerate(titles):
        justify: Literal["left", "right"] = "right" if title.startswith(">") else "left"
        # The first column is what a row is called by, so it stays whole.
        made.add_column(title.removeprefix(">"), overflow="fold", justify=justify, no_wrap=number == 0)
    return made


def add_row(to: Table, *cells: str) -> None:
    """Add a row of cells that are taken literally."""
    to.add_row(*(Text(plain(cell)) for cell in cells))
