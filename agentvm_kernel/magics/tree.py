"""Draws a tree of snapshots."""

from __future__ import annotations

import html
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from agentvm_kernel.magics import show
from agentvm_kernel.supervisor.snapshot_messages import SnapshotInfo, SnapshotTree

_HEAD = ("snapshot", "age", "size", "cell", "")


@dataclass(frozen=True)
class Row:
    """One snapshot's place in the drawing.

    Attributes:
        snapshot: Which; None for the machine's first state.
        before: What is drawn before it.
        depth: How many branches it is away from the trunk.
    """

    snapshot: SnapshotInfo | None
    before: str
    depth: int


def rows(tree: SnapshotTree) -> Iterator[Row]:
    """Yield the snapshots, parents before children.

    The branch that leads to the present goes straight on, else the youngest child; the others are drawn aside before
    it. So a chain is not indented, however long it is.
    """
    children: defaultdict[str, list[SnapshotInfo]] = defaultdict(list)
    known = {one.id: one for one in tree.snapshots}
    for child in sorted(tree.snapshots, key=lambda child: (child.created, child.id)):
        children[child.parent if child.parent in known else ""].append(child)
    present = set(_ancestors(tree.current, known))
    stack: list[tuple[SnapshotInfo | None, str, str]] = [(None, "", "")]
    while stack:
        one, before, beside = stack.pop()
        yield Row(one, before, len(beside) // 2)
        below = sorted(children[one.id if one else ""], key=lambda branch: branch.id in present)
        if below:
            stack.append((below[-1], beside, beside))
        stack += [(other, f"{beside}├─", f"{beside}│ ") for other in reversed(below[:-1])]


def _ancestors(name: str, known: dict[str, SnapshotInfo]) -> Iterator[str]:
    passed: set[str] = set()
    while name in known and name not in passed:
        passed.add(name)
        yield name
        name = known[name].parent


def draw(tree: SnapshotTree, now: float) -> dict[str, str]:
    """Return the tree as text and as an HTML table.

    Args:
        tree: The tree.
        now: Seconds since the epoch.
    """
    drawn = [(row, _told(row.snapshot, tree.current, now)) for row in rows(tree)]
    foot = f"{show.size(tree.used)} of {show.size(tree.quota)} are taken by all your snapshots together."
    text = show.columns(_HEAD, [(f"{row.before}{told[0]}", *told[1:]) for row, told in drawn])
    lines = "".join(
        f'<tr><td style="text-align: left; padding-left: {row.depth + 0.5}em">{html.escape(told[0])}</td>'
        + "".join(f'<td style="text-align: left">{html.escape(value)}</td>' for value in told[1:])
        + "</tr>"
        for row, told in drawn
    )
    head = "".join(f'<th style="text-align: left">{title}</th>' for title in _HEAD)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table><p>{foot}</p>"
    return {"text/plain": f"{text}\n{foot}", "text/html": table}


def _told(one: SnapshotInfo | None, current: str, now: float) -> tuple[str, ...]:
    """Return name, age, size, cell and remarks."""
    here = current == (one.id if one else "")
    title = f"{'●' if here else '○'} {show.name(one) if one else 'start'}{' (here)' if here else ''}"
    if one is None:
        return title, "", "", "", ""
    remarks = [
        "" if one.kind == "manual" else one.kind,
        "mid-cell" if one.busy else "",
        "" if one.stored else "being stored",
        show.plain(one.text),
    ]
    said = ", ".join(filter(None, remarks))
    return title, show.duration(now - one.created), show.size(one.size), show.cell(one.cell), said
