"""What sessions' VMs used over time, as it was measured on the host, as a picture with the runs of cells in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

from pydantic import ValidationError

from agentvm_kernel.observe.curves import Moment
from agentvm_kernel.report.axis import Axis
from agentvm_kernel.report.plots import COLOURS, seconds, size
from agentvm_kernel.report.record import Run, Session

_MOST: Final = 50_000
_LINE: Final = 4096
_WIDTH: Final = 760
_LEFT: Final = 90
_RIGHT: Final = 750
_HEIGHT: Final = 64
_STEP: Final = 92
_TOP: Final = 34
_MOST_BANDS: Final = 300
_POINTS: Final = 400
_NUMBERED: Final = 14
_BLUE, _ORANGE = "#1f77b4", "#c75b00"
_SAVED, _BACK = "#1b5e20", "#b5179e"


def curves_of(sessions: Collection[Session], folder: Path) -> dict[str, list[Moment]]:
    """Return the moments of sessions that were kept, by lease, in order.

    Args:
        sessions: Which.
        folder: Where they are kept: for a month, and without digests.
    """
    found: dict[str, list[Moment]] = {session.lease: [] for session in sessions}
    named = [json.dumps(lease).encode() for lease in found]
    for path in sorted(folder.glob("????-??-??.jsonl")):
        with path.open("rb") as file:
            while line := file.readline(_LINE):
                if not any(name in line for name in named):
                    continue
                try:
                    one = Moment.model_validate_json(line)
                except ValidationError:
                    continue  # half a line, as a crash leaves it
                if len(kept := found.get(one.lease, [])) < _MOST:
                    kept.append(one)
    return {lease: sorted(moments, key=lambda one: one.time) for lease, moments in found.items() if moments}


class _Point(NamedTuple):
    """A value at a time; `is_first` where nothing leads to it."""

    time: float
    value: float
    is_first: bool


_Read = Callable[[Sequence[Moment]], list[_Point]]


def _level(name: str) -> _Read:
    """Return what reads what there is at each moment."""

    def read(moments: Sequence[Moment]) -> list[_Point]:
        before = [None, *moments]
        return [
            _Point(one.time, getattr(one, name), last is None or last.vm != one.vm)
            for last, one in zip(before, moments, strict=False)
        ]

    return read


def _rate(name: str) -> _Read:
    """Return what reads how much is added in a second, from moment to moment of the same VM."""

    def read(moments: Sequence[Moment]) -> list[_Point]:
        points: list[_Point] = []
        is_first = True
        for last, one in pairwise(moments):
            if last.vm != one.vm or one.time <= last.time:
                is_first = True
                continue
            value = max(0.0, getattr(one, name) - getattr(last, name)) / (one.time - last.time)
            # Each rate holds for the whole time between two moments.
            points += [_Point(last.time, value, is_first), _Point(one.time, value, is_first=False)]
            is_first = False
        return points

    return read


def _per_second(value: float) -> str:
    return f"{size(value)}/s"


class _Panel(NamedTuple):
    """One of the pictures: its title, its lines by what they are called, and how values are said."""

    title: str
    lines: tuple[tuple[str, str, _Read], ...]
    show: Callable[[float], str]


_PANELS: Final = (
    _Panel("CPU, cores", (("", _BLUE, _rate("cpu")),), lambda value: f"{value:.2f}"),
    _Panel("memory", (("", _BLUE, _level("memory")),), size),
    _Panel("disk", (("read", _BLUE, _rate("read")), ("written", _ORANGE, _rate("written"))), _per_second),
    _Panel("network", (("sent", _BLUE, _rate("sent")), ("received", _ORANGE, _rate("received"))), _per_second),
)


def draw_curves(session: Session, moments: Sequence[Moment]) -> str:
    """Return an SVG element: CPU, memory, disk and network over time, with a band for each run; empty without moments.

    Args:
        session: What the log says of it.
        moments: What was measured.
    """
    if len(moments) < 2:
        return ""
    runs = [run for run in session.runs if run.fork == 0][-_MOST_BANDS:]
    axis = Axis(_active(runs, moments), _LEFT, _RIGHT)
    bottom = _TOP + _STEP * (len(_PANELS) - 1) + _HEIGHT
    parts = [
        *_bands(runs, moments[-1].time, axis, bottom),
        *_marks(session, axis, bottom),
        *(part for place, panel in enumerate(_PANELS) for part in _panel(panel, moments, axis, _TOP + _STEP * place)),
        *_ticks(axis, bottom),
    ]
    words = f"CPU, memory, disk and network over time, with {len(runs)} runs"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="curves" viewBox="0 0 {_WIDTH} {bottom + 24}" role="img"'
        f' aria-label="{words}"><title>{words}</title>{"".join(parts)}</svg>'
    )


def _active(runs: Sequence[Run], moments: Sequence[Moment]) -> list[tuple[float, float]]:
    """Return when something happened: runs, and what a VM did besides."""
    spans = [(run.began, run.ended or run.began) for run in runs]
    spans += [(last.time, one.time) for last, one in pairwise(moments) if one.vm == last.vm and one.differs(last)]
    return [(moments[0].time, moments[0].time), *spans]


def _bands(runs: Sequence[Run], end: float, axis: Axis, bottom: int) -> Iterator[str]:
    free = float(_LEFT)
    for place, run in enumerate(runs):
        left, right = axis.x(run.began), axis.x(run.ended or max(end, run.began))
        width = max(right - left, 0.8)
        fill = "#e8eef5" if place % 2 else "#dbe5f0"
        outcome = run.outcome or "not over"
        lasted = f", {seconds(run.ended - run.began)}" if run.ended else ""
        yield (
            f'<rect x="{left:.1f}" y="{_TOP}" width="{width:.1f}" height="{bottom - _TOP}" fill="{fill}">'
            f"<title>run {run.number}: {escape(outcome)}{lasted}</title></rect>"
        )
        if run.outcome in {"failed", "timeout"}:
            yield (
                f'<rect x="{left:.1f}" y="{_TOP - 4}" width="{width:.1f}" height="3" fill="{COLOURS[run.outcome]}"/>'
            )
        if left >= free:
            free = left + _NUMBERED
            yield f'<text x="{left + 1:.1f}" y="{_TOP - 7}" font-size="9" fill="#555">{run.number}</text>'


def _marks(session: Session, axis: Axis, bottom: int) -> Iterator[str]:
    """Yield lines where snapshots were taken and where the session went back."""
    for moments, colour, dash in (
        ([one.time for one in session.snapshots], _SAVED, "1 2"),
        ([one.time for one in session.returns], _BACK, "4 2"),
    ):
        for moment in moments[-_MOST_BANDS:]:
            x = axis.x(moment)
            yield (
                f'<path d="M{x:.1f} {_TOP}V{bottom}" stroke="{colour}" stroke-dasharray="{dash}" fill="none"'
                f' opacity="0.7"/>'
            )


def _panel(panel: _Panel, moments: Sequence[Moment], axis: Axis, y: int) -> Iterator[str]:
    lines = [(name, colour, read(moments)) for name, colour, read in panel.lines]
    top = max((point.value for *_, points in lines for point in points), default=0.0)
    yield f'<rect x="{_LEFT}" y="{y}" width="{_RIGHT - _LEFT}" height="{_HEIGHT}" fill="none" stroke="#ccd3da"/>'
    yield f'<text x="{_LEFT - 6}" y="{y + 28}" text-anchor="end" font-weight="bold">{panel.title}</text>'
    if top:
        yield f'<text x="{_LEFT - 6}" y="{y + 10}" text-anchor="end" fill="#555">{escape(panel.show(top))}</text>'
    yield f'<text x="{_LEFT - 6}" y="{y + _HEIGHT}" text-anchor="end" fill="#555">0</text>'
    for place, (name, colour, points) in enumerate(lines):
        if path := _path(points, axis, y, top):
            yield f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.3" stroke-linejoin="round"/>'
        if name:
            yield f'<text x="{_LEFT - 6}" y="{y + 39 + 10 * place}" text-anchor="end" fill="{colour}">{name}</text>'


def _path(points: Sequence[_Point], axis: Axis, y: int, top: float) -> str:
    """Return a line; of what falls onto the same place the highest, so that its length is bounded."""
    drawn: dict[tuple[int, int], tuple[float, _Point]] = {}
    line = 0
    for point in points:
        x = axis.x(point.time)
        line += point.is_first
        place = (line, int((x - _LEFT) / (_RIGHT - _LEFT) * _POINTS))
        if place not in drawn or point.value > drawn[place][1].value:
            drawn[place] = (x, point)
    parts = []
    before = 0
    for (line, _), (x, point) in list(drawn.items())[: 4 * _POINTS]:
        height = y + _HEIGHT - (_HEIGHT - 2) * (point.value / top if top else 0.0)
        parts.append(f"{'L' if line == before else 'M'}{x:.1f} {height:.1f}")
        before = line
    return "".join(parts)


def _ticks(axis: Axis, bottom: int) -> Iterator[str]:
    for x, label, is_cut in axis.ticks():
        if is_cut:
            yield (
                f'<path d="M{x:.1f} {_TOP}V{bottom}" stroke="#fff" stroke-width="4"/>'
                f'<path d="M{x:.1f} {_TOP}V{bottom}" stroke="#8894a0" stroke-dasharray="2 4"/>'
            )
        yield (
            f'<text x="{x:.1f}" y="{bottom + (20 if is_cut else 11)}" text-anchor="middle" font-size="9"'
            f' fill="{"#8894a0" if is_cut else "#555"}">{escape(label)}</text>'
        )
