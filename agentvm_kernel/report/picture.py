"""The tree of a session's snapshots as a picture: the way to the present, branches that were left, ways back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from html import escape
from typing import Final

from agentvm_kernel.report.cleaning import plain
from agentvm_kernel.report.record import Saved, Session

MOST: Final = 200
_ROW: Final = 26
_LANE: Final = 22
_TOP: Final = 16
_WIDTH: Final = 760
_MOST_LANES: Final = 12
_ON, _OFF, _BACK = "#1b5e20", "#9aa5b1", "#b5179e"


def draw_tree(session: Session) -> str:
    """Return an SVG element.

    Args:
        session: What the log says of it; the newest two hundred snapshots are drawn.
    """
    saved = session.snapshots[-MOST:]
    rows = {"": 0, **{one.id: place for place, one in enumerate(saved, 1)}}
    lanes = _lanes(saved)
    left = 24 + _LANE * (max(lanes.values()) + 1)
    height = _TOP + _ROW * len(rows)
    words = f"Tree of {len(saved)} snapshots, {len(session.returns)} ways back"
    parts = [
        *_edges(session, saved, rows, lanes),
        *_ways_back(session, rows, lanes),
        *_nodes(session, saved, lanes, left),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="tree" viewBox="0 0 {_WIDTH} {height}" role="img"'
        f' aria-label="{words}"><title>{words}</title>{"".join(parts)}</svg>'
    )


def _lanes(saved: list[Saved]) -> dict[str, int]:
    """Return in which column each stands: the first child goes on below its parent, the others aside."""
    lanes, taken, last = {"": 0}, set[str](), 0
    for one in saved:
        parent = one.parent if one.parent in lanes else ""
        if parent in taken:
            last = min(last + 1, _MOST_LANES)
            lanes[one.id] = last
        else:
            lanes[one.id] = lanes[parent]
        taken.add(parent)
    return lanes


def _place(row: int, lane: int) -> tuple[int, int]:
    return 20 + _LANE * lane, _TOP + _ROW * row


def _edges(session: Session, saved: list[Saved], rows: dict[str, int], lanes: dict[str, int]) -> Iterator[str]:
    path = set(session.path)
    for one in saved:
        parent = one.parent if one.parent in rows else ""
        x, y = _place(rows[parent], lanes[parent])
        to_x, to_y = _place(rows[one.id], lanes[one.id])
        on = one.id in path
        dash = "" if on or one.parent in rows else ' stroke-dasharray="2 3"'
        yield (
            f'<path d="M{x} {y}C{x} {y + 14} {to_x} {to_y - 20} {to_x} {to_y}" fill="none"'
            f' stroke="{_ON if on else _OFF}" stroke-width="{3 if on else 1.5}"{dash}/>'
        )


def _ways_back(session: Session, rows: dict[str, int], lanes: dict[str, int]) -> Iterator[str]:
    for one in session.returns:
        if one.source == one.target and one.target in rows:
            x, y = _place(rows[one.target], lanes[one.target])
            yield f'<path d="M{x + 5} {y - 4}c16 -9 16 15 1 9" fill="none" stroke="{_BACK}" stroke-dasharray="3 2"/>'
        elif one.source in rows and one.target in rows:
            x, y = _place(rows[one.source], lanes[one.source])
            to_x, to_y = _place(rows[one.target], lanes[one.target])
            yield (
                f'<path d="M{x + 5} {y}C{x + 26} {y} {to_x + 26} {to_y} {to_x + 8} {to_y}" fill="none"'
                f' stroke="{_BACK}" stroke-width="1.5" stroke-dasharray="4 3"/>'
                f'<path d="M{to_x + 7} {to_y}l6 -4v8z" fill="{_BACK}"/>'
            )


def _nodes(session: Session, saved: list[Saved], lanes: dict[str, int], left: int) -> Iterator[str]:
    path = {"", *session.path}
    targets = [one.target for one in session.returns]
    yield _node(0, 0, left, "start", "the image's own state", is_on=True, is_here=session.here == "")
    for row, one in enumerate(saved, 1):
        name = f"{plain(one.label)} ({one.id})" if one.label else one.id
        when = time.strftime("%H:%M:%S", time.gmtime(one.time))
        back = targets.count(one.id)
        more = [
            when, f"after run {one.run}" if one.run else "", "" if one.kind == "manual" else one.kind,
            f"gone back to {back}\N{MULTIPLICATION SIGN}" if back else "",
        ]  # fmt: skip
        detail = ", ".join(filter(None, more))
        yield _node(row, lanes[one.id], left, name, detail, is_on=one.id in path, is_here=session.here == one.id)


def _node(row: int, lane: int, left: int, name: str, detail: str, *, is_on: bool, is_here: bool) -> str:
    x, y = _place(row, lane)
    colour = _ON if is_on else _OFF
    fill = colour if is_here else "#fff"
    here = ' <tspan font-weight="bold">(the end)</tspan>' if is_here else ""
    return (
        f'<circle cx="{x}" cy="{y}" r="5" fill="{fill}" stroke="{colour}" stroke-width="2"/>'
        f'<text x="{left + 8}" y="{y + 4}" fill="{"#222" if is_on else "#666"}">{escape(name[:60])}'
        f' <tspan fill="#666">{escape(detail)}</tspan>{here}</text>'
    )
