"""What the tests of snapshots ask of a notebook."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from kernel_client import Cell, Notebook


def ok(nb: Notebook, code: str) -> Cell:
    """Run a cell that must not fail."""
    cell = nb.run(code)
    assert cell.status == "ok", cell.reply
    return cell


def value(nb: Notebook, expression: str) -> Any:
    """The value of an expression in the guest, of plain data."""
    return ast.literal_eval(ok(nb, f"print(repr({expression}))").text())


def told(nb: Notebook, magic: str) -> str:
    """What a magic says in the end."""
    return last_words(ok(nb, magic))


def last_words(cell: Cell) -> str:
    """What a magic's cell shows in the end; its progress came before."""
    return str(cell.of("display_data")[-1]["data"]["text/plain"])


def refused(nb: Notebook, magic: str) -> str:
    """The one line with which a magic is refused."""
    cell = nb.run(magic)
    assert cell.status == "error", cell.messages
    assert len(cell.errors) == 1
    line = str(cell.reply["evalue"])
    assert "\n" not in line
    return line


def saved(nb: Notebook, label: str) -> str:
    """Take a snapshot; return its id."""
    cell = ok(nb, f"%snapshot {label}")
    assert last_words(cell).startswith(f"Snapshot {label} (")
    return str(cell.metadata["agentvm"]["taken"])


def back(nb: Notebook, to: str) -> Cell:
    """Go back to a snapshot."""
    cell = ok(nb, f"%rollback {to}")
    assert last_words(cell).startswith("Back at ")
    return cell


def named(environment: Mapping[str, str], path: str) -> dict[str, str]:
    """The environment of the kernel of the notebook at a path, as Jupyter Server gives it."""
    return {**environment, "JPY_SESSION_NAME": path}
