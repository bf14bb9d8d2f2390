"""The monitor as a picture: SVG, in an ``img`` element that any notebook shows, and in which nothing can run."""

from __future__ import annotations

import html
import time
from base64 import b64encode
from collections.abc import Iterator, Sequence
from typing import Final

from agentvm_kernel.kernel.chronicle import Event
from agentvm_kernel.widgets.figures import Panel, connection, latest, panels, plain, said, summary, title
from agentvm_kernel.widgets.history import History, Point, highest, share
from agentvm_kernel.widgets.present import Present

_WIDTH: Final = 760
_LEFT: Final = 70
_RIGHT: Final = 12
_TOP: Final = 48
_PANEL: Final = 62
_STEP: Final = 92
_LINE: Final = 16
_ROWS: Final = 8
_BINS: Final = 200
_GAP: Final = 5.0
_COLOURS: Final = ("#1f77b4", "#e07b00")
_MARKS: Final = {"cell": "#9aa5b1", "snapshot": "#2e8540", "rollback": "#b5179e", "vm": "#444444", "end": "#c62828"}


def picture(now: Present, history: History, events: Sequence[Event]) -> str:
    """Return the state of a VM as HTML.

    Args:
        now: How it is.
        history: What was measured.
        events: What happened.
    """
    svg = "".join(_svg(now, history, events))
    words = html.escape(f"{title(now)}. {summary(now, history, events)}")
    return f'<img width="{_WIDTH}" alt="{words}" src="data:image/svg+xml;base64,{b64encode(svg.encode()).decode()}">'


def _svg(now: Present, history: History, events: Sequence[Event]) -> Iterator[str]:
    plots = panels(now)
    rows = list(history.connections.values())[-_ROWS:]
    below = _TOP + _STEP * len(plots)
    height = below + _LINE * (len(rows) + 1)
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}"'
        ' font-family="sans-serif" font-size="11" fill="#222">'
    )
    yield f'<rect width="{_WIDTH}" height="{height}" rx="4" fill="#fff" stroke="#ccc"/>'
    yield _text(12, 18, title(now), 'font-size="13" font-weight="bold"')
    yield _text(12, 34, summary(now, history, events), 'fill="#555"')
    for place, panel in enumerate(plots):
        yield from _panel(panel, history, events, _TOP + 14 + _STEP * place)
    for place, one in enumerate(rows):
        fill = "" if one.verdict == "allowed" else 'fill="#c62828"'
        yield _text(12, below + 14 + _LINE * place, connection(one), fill)
    yield "</svg>"


def _panel(panel: Panel, history: History, events: Sequence[Event], y: int) -> Iterator[str]:
    yield from _title(panel, history, y)
    width = _WIDTH - _LEFT - _RIGHT
    yield f'<rect x="{_LEFT}" y="{y}" width="{width}" height="{_PANEL}" fill="#f7f8fa" stroke="#ddd"/>'
    points = history.points
    if not points:
        return
    lines = [highest(points, name, _BINS) for name, _ in panel.lines]
    values = [value for line in lines for value in line if value is not None]
    top = max([1.0, *values])
    if (panel.limit and panel.limit < 4 * top) or panel.unit in {"%", "B"}:
        top = max(top, panel.limit)
    room = 1.05 * top

    def height(value: float) -> float:
        return round(y + _PANEL * (1 - value / room), 1)

    yield from _events(events, points, y)
    if panel.limit and panel.limit <= top:
        at = height(panel.limit)
        yield f'<path d="M{_LEFT} {at}H{_LEFT + width}" stroke="#c62828" stroke-dasharray="4 3"/>'
    for line, colour in zip(lines, _COLOURS, strict=False):
        for span in _spans(line, (points[-1].time - points[0].time) / _BINS):
            drawn = " ".join(f"{_LEFT + width * (place + 0.5) / _BINS:.1f},{height(value)}" for place, value in span)
            yield f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="1.4"/>'
    yield _text(_LEFT - 6, height(top) + 4, said(top, panel.unit), 'text-anchor="end" fill="#555"')
    yield _text(_LEFT - 6, y + _PANEL, "0", 'text-anchor="end" fill="#555"')
    begin, end = (time.strftime("%H:%M:%S", time.localtime(one.time)) for one in (points[0], points[-1]))
    yield _text(_LEFT, y + _PANEL + 11, begin, 'fill="#777" font-size="9"')
    yield _text(_WIDTH - _RIGHT, y + _PANEL + 11, end, 'text-anchor="end" fill="#777" font-size="9"')


def _title(panel: Panel, history: History, y: int) -> Iterator[str]:
    """Say what a plot shows, in the colours of its lines."""
    values = zip(latest(panel, history), _COLOURS, strict=False)
    parts = [f'<tspan dx="8" fill="{colour}">{html.escape(words)}</tspan>' for words, colour in values]
    if panel.limit:
        parts.append(f'<tspan dx="8" fill="#c62828">limit {html.escape(said(panel.limit, panel.unit))}</tspan>')
    yield f'<text x="{_LEFT}" y="{y - 4}"><tspan font-weight="bold">{panel.title}</tspan>{"".join(parts)}</text>'


def _spans(line: Sequence[float | None], seconds: float) -> list[list[tuple[int, float]]]:
    """Return the places and values of a line in parts, between which nothing was measured for some time.

    Args:
        line: A value or nothing for each place.
        seconds: What a place stands for.
    """
    spans: list[list[tuple[int, float]]] = []
    for place, value in enumerate(line):
        if value is None:
            continue
        if not spans or (place - spans[-1][-1][0] - 1) * seconds > _GAP:
            spans.append([])
        spans[-1].append((place, value))
    return spans


def _events(events: Sequence[Event], points: Sequence[Point], y: int) -> Iterator[str]:
    """Mark what happened: a band for a cell, a line for what took no time."""
    width = _WIDTH - _LEFT - _RIGHT
    for event in sorted(events, key=lambda event: event.kind == "rollback"):  # it hides the VM that began by it
        end = event.end if event.kind == "cell" else event.time
        if (points[-1].time if end is None else end) < points[0].time:
            continue
        x, until = (_LEFT + width * share(points, moment) for moment in (event.time, end or points[-1].time))
        colour = "#f2b8b5" if event.failed else _MARKS[event.kind]
        words = f"<title>{html.escape(plain(f'{event.kind} {event.text}'))}</title>"
        if event.kind == "cell":
            size = f'width="{max(until - x, 1):.1f}" height="{_PANEL}"'
            yield f'<rect x="{x:.1f}" y="{y}" {size} fill="{colour}" opacity="0.25">{words}</rect>'
        else:
            yield f'<path d="M{x:.1f} {y}v{_PANEL}" stroke="{colour}" stroke-dasharray="2 2">{words}</path>'


def _text(x: float, y: float, words: str, more: str = "") -> str:
    return f'<text x="{x}" y="{y}" {more}>{html.escape(plain(words, 130))}</text>'
