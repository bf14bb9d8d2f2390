"""Shows what came of forks."""

from __future__ import annotations

import html
import re
from typing import Final

from agentvm_kernel.kernel.execution import CellResult
from agentvm_kernel.kernel.forks import ForkResult
from agentvm_kernel.magics import show

_HEAD: Final = ("fork", "status", "time", "CPU", "memory", "result")
_LINES: Final = 12
_CHARACTERS: Final = 1200
_LOOKED_AT: Final = 20_000
_ESCAPES: Final = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")


def draw(results: list[ForkResult]) -> dict[str, str]:
    """Return a table of results as text and as HTML, with the beginning of what each fork printed."""
    kept = [result.fork for result in results if result.kept]
    foot = f"%adopt K makes fork K the notebook's VM; K may be {_listed(kept)}." if kept else "No fork can be adopted."
    rows = [(_row(result), _printed(result.cell)) for result in results]
    text = [show.columns(_HEAD, [row for row, _ in rows])]
    text += [f"fork {row[0]} printed:\n{printed}" for row, printed in rows if printed]
    head = "".join(f'<th style="text-align: left">{title}</th>' for title in (*_HEAD, "output"))
    lines = "".join(
        "<tr>"
        + "".join(f'<td style="text-align: left">{html.escape(value)}</td>' for value in row)
        + f'<td style="text-align: left"><pre>{html.escape(printed)}</pre></td></tr>'
        for row, printed in rows
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table><p>{html.escape(foot)}</p>"
    return {"text/plain": "\n".join([*text, foot]), "text/html": table}


def _row(result: ForkResult) -> tuple[str, ...]:
    cell = result.cell
    came = show.plain(cell.result)
    if cell.reason:
        came = show.plain(cell.reason)
    elif cell.error is not None:
        came = f"{show.plain(cell.error.name)}: {show.plain(cell.error.value)}"
    times = (f"{cell.seconds:.2f} s", f"{result.cpu_seconds:.2f} s")
    return str(result.fork), cell.status, *times, show.size(result.memory), came


def _printed(cell: CellResult) -> str:
    """Return the beginning of what a cell printed, without what a terminal would obey."""
    parts = (cell.stdout[:_LOOKED_AT].rstrip(), cell.stderr[:_LOOKED_AT].rstrip())
    text = _ESCAPES.sub("", "\n".join(filter(None, parts)))
    lines = text.splitlines()
    shown = "\n".join(lines[:_LINES])[:_CHARACTERS]
    shown = "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in shown)
    return f"{shown}\n\N{HORIZONTAL ELLIPSIS}" if len(lines) > _LINES or len(shown) == _CHARACTERS else shown


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
