"""How magics say things: durations, sizes, snapshots and cells, as text and as HTML."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Final

from agentvm_kernel.snapshots.notes import Cell
from agentvm_kernel.supervisor.snapshot_messages import SnapshotInfo

_CODE: Final = 60
_MIB: Final = 1 << 20


def duration(seconds: float) -> str:
    """Return a duration in the two largest units that matter."""
    minutes, rest = divmod(max(int(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def size(amount: int) -> str:
    """Return a number of bytes in MiB, GiB where it is that large, KiB where it is less than a tenth of a MiB."""
    if amount >= 1 << 30:
        return f"{amount / (1 << 30):.1f} GiB"
    return f"{amount / _MIB:.1f} MiB" if amount >= _MIB // 10 else f"{amount / 1024:.0f} KiB"


def plain(text: str, most: int = _CODE) -> str:
    """Return the first line of a text without what a terminal or a reader could be fooled by."""
    lines = text.strip().splitlines() or [""]
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in lines[0][: most + 1])
    return f"{shown[:most]}\N{HORIZONTAL ELLIPSIS}" if len(shown) > most or len(lines) > 1 else shown


def name(snapshot: SnapshotInfo) -> str:
    """Return how a snapshot is called."""
    return f"{plain(snapshot.label)} ({plain(snapshot.id)})" if snapshot.label else plain(snapshot.id)


def cell(ran: Cell) -> str:
    """Return what was run, with the count that the guest gave; empty when nothing was."""
    count = "" if ran.count is None else f"[{ran.count}] "
    return f"{count}{plain(ran.code)}" if ran.run else ""


def facts(rows: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return names and values as text and as an HTML table."""
    width = max(len(title) for title, _ in rows)
    text = "\n".join(f"{title:<{width}}  {value}" for title, value in rows)
    cells = "".join(f"<tr><th>{html.escape(title)}</th><td>{html.escape(value)}</td></tr>" for title, value in rows)
    return {"text/plain": text, "text/html": f"<table>{cells}</table>"}


def columns(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return rows under a head, in columns as wide as they have to be."""
    lines = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> dict[str, str]:
    """Return rows under a head as text and as an HTML table."""
    style = 'style="text-align: left"'
    titles = "".join(f"<th {style}>{html.escape(title)}</th>" for title in head)
    lines = "".join(
        "<tr>" + "".join(f"<td {style}>{html.escape(value)}</td>" for value in row) + "</tr>" for row in rows
    )
    markup = f"<table><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table>"
    return {"text/plain": columns(head, rows), "text/html": markup}
