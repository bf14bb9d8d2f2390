"""The monitor as text: for terminals, and for front ends that show nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from agentvm_kernel.kernel.chronicle import Event
from agentvm_kernel.widgets.figures import Panel, connection, newest, panels, summary, title
from agentvm_kernel.widgets.history import History, highest
from agentvm_kernel.widgets.present import Present

_BARS: Final = "▁▂▃▄▅▆▇█"
_WIDTH: Final = 40
_LAST: Final = 5


def sketch(now: Present, history: History, events: Sequence[Event]) -> str:
    """Return the state of a VM in a few lines.

    Args:
        now: How it is.
        history: What was measured.
        events: What happened.
    """
    lines = [f"{panel.title:<8} {_bars(panel, history)} {newest(panel, history)}" for panel in panels(now)]
    latest = [f"  {connection(one)}" for one in list(history.connections.values())[-_LAST:]]
    return "\n".join([title(now), *lines, summary(now, history, events), *latest])


def _bars(panel: Panel, history: History) -> str:
    """Return one bar for each span of time: of the first value, up to the limit or the highest value."""
    if not history.points:
        return " " * _WIDTH
    values = highest(history.points, panel.lines[0][0], min(_WIDTH, len(history.points)))
    top = max(panel.limit if panel.unit in {"%", "B"} else 0, 1, *(value for value in values if value is not None))
    return "".join(" " if value is None else _BARS[min(int(value / top * 8), 7)] for value in values).rjust(_WIDTH)
