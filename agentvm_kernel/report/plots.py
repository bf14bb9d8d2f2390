"""What runs cost, as pictures: time, CPU time, memory and network of each, one beside the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from html import escape
from typing import Final

from agentvm_kernel.report.record import Run, Session

_WIDTH: Final = 760
_LEFT: Final = 90
_HEIGHT: Final = 64
_STEP: Final = 100
_TOP: Final = 22
_MOST: Final = 300
COLOURS: Final = {"completed": "#1f77b4", "failed": "#c62828", "timeout": "#e07b00", "": "#9aa5b1"}

_Read = Callable[[Run], float | None]


def size(amount: float) -> str:
    """Return a number of bytes as people read it."""
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"


def seconds(value: float) -> str:
    """Return a time as people read it."""
    if value < 60:
        return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"
    return f"{value // 60:.0f} min {value % 60:.0f} s"


def _moved(run: Run) -> float | None:
    if run.end is None or run.end.network_sent is None or run.end.network_received is None:
        return None
    return run.end.network_sent + run.end.network_received


_PANELS: Final[tuple[tuple[str, _Read, Callable[[float], str]], ...]] = (
    ("time", lambda run: run.end.seconds if run.end else None, seconds),
    ("CPU time", lambda run: run.end.cpu_seconds if run.end else None, seconds),
    ("memory grown", lambda run: run.end.memory_grown if run.end else None, size),
    ("network", _moved, size),
)


def draw_runs(session: Session) -> str:
    """Return an SVG element with a bar for each run, the newest three hundred; empty if nothing ran.

    Args:
        session: What the log says of it.
    """
    runs = [run for run in session.runs if run.fork == 0][-_MOST:]
    if not runs:
        return ""
    height = _TOP + _STEP * len(_PANELS)
    parts = [part for place, panel in enumerate(_PANELS) for part in _panel(runs, *panel, _TOP + _STEP * place)]
    words = f"Time, CPU time, memory and network of {len(runs)} runs"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plots" viewBox="0 0 {_WIDTH} {height}" role="img"'
        f' aria-label="{words}"><title>{words}</title>{"".join(parts)}</svg>'
    )


def _panel(runs: list[Run], title: str, read: _Read, show: Callable[[float], str], y: int) -> Iterator[str]:
    values = [read(run) for run in runs]
    top = max((value for value in values if value is not None), default=0.0)
    width = _WIDTH - _LEFT - 10
    step = width / len(runs)
    yield f'<text x="{_LEFT}" y="{y - 6}" font-weight="bold">{title}</text>'
    yield f'<rect x="{_LEFT}" y="{y}" width="{width}" height="{_HEIGHT}" fill="#f7f8fa" stroke="#ddd"/>'
    for axis, at in ((show(top), y + 10), ("0", y + _HEIGHT)):
        yield f'<text x="{_LEFT - 6}" y="{at}" text-anchor="end" fill="#555">{escape(axis)}</text>'
    every = -(-len(runs) // 25)
    for place, (run, value) in enumerate(zip(runs, values, strict=True)):
        x = _LEFT + step * place
        if place % every == 0:
            yield (
                f'<text x="{x + step / 2:.1f}" y="{y + _HEIGHT + 12}" text-anchor="middle" fill="#555"'
                f' font-size="9">{run.number}</text>'
            )
        if value is None:
            continue
        wide = min(step * 0.8, 40)
        tall = _HEIGHT * value / top if top else 0
        said = f"run {run.number}: {show(value)}{f', {run.outcome}' if run.outcome else ''}"
        yield (
            f'<rect x="{x + (step - wide) / 2:.1f}" y="{y + _HEIGHT - tall:.1f}" width="{wide:.1f}"'
            f' height="{tall:.1f}" fill="{COLOURS[run.outcome]}"><title>{escape(said)}</title></rect>'
        )
