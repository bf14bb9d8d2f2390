"""What the monitor draws, and how its figures are said."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from agentvm_kernel.egress.record import Connection
from agentvm_kernel.kernel.chronicle import Event
from agentvm_kernel.widgets.history import History
from agentvm_kernel.widgets.present import Present

_MIB: Final = 1 << 20
_GIB: Final = 1 << 30
_MB: Final = 1e6
_GB: Final = 1e9


@dataclass(frozen=True)
class Panel:
    """One plot.

    Attributes:
        title: What it shows.
        lines: Names of values of a point, each with what it is called; the first is drawn first.
        unit: ``%``, ``B`` or ``B/s``.
        limit: The limit; 0 for none.
    """

    title: str
    lines: tuple[tuple[str, str], ...]
    unit: str
    limit: float = 0


def panels(now: Present) -> list[Panel]:
    """Return the plots, with the limits that hold."""
    return [
        Panel("CPU", (("cpu", ""),), "%", now.cpu),
        Panel("Memory", (("touched", "of the guest"), ("memory", "on the host")), "B", now.memory),
        Panel("Disk", (("disk_read", "read"), ("disk_written", "written")), "B/s", now.disk),
        Panel("Network", (("received", "received"), ("sent", "sent")), "B/s"),
    ]


def said(value: float, unit: str) -> str:
    """Return a value in words."""
    if unit == "%":
        return f"{value:.0f} %"
    if unit == "B/s":
        if value >= _GB:
            return f"{_short(value / _GB)} GB/s"
        return f"{_short(value / _MB)} MB/s" if value >= _MB / 10 else f"{value / 1000:.0f} kB/s"
    if value >= _GIB:
        return f"{_short(value / _GIB)} GiB"
    return f"{_short(value / _MIB)} MiB" if value >= _MIB / 10 else f"{value / 1024:.0f} KiB"


def _short(value: float) -> str:
    return f"{value:.{0 if value >= 100 else 1}f}"


def newest(panel: Panel, history: History) -> str:
    """Return the newest values of a plot, and its limit, in words."""
    values = ", ".join(latest(panel, history)) or "not measured yet"
    return f"{values}; limit {said(panel.limit, panel.unit)}" if panel.limit else values


def latest(panel: Panel, history: History) -> list[str]:
    """Return the newest value of each line of a plot in words; none where nothing was measured."""
    point = history.points[-1] if history.points else None
    lines = panel.lines if point else ()
    return [f"{said(getattr(point, name), panel.unit)} {called}".strip() for name, called in lines]


def title(now: Present) -> str:
    """Return what a VM is, and how."""
    if now.vm:
        return f"VM {now.vm} ({now.facts})" + (f": {plain(now.text)}" if now.text else "")
    return f"No VM: {plain(now.text)}" if now.state == "ended" else f"Starting: {plain(now.text)}"


def summary(now: Present, history: History, events: Sequence[Event]) -> str:
    """Return counts, and when they were taken."""
    cells = sum(event.kind == "cell" for event in events)
    snapshots = sum(event.kind == "snapshot" for event in events)
    measured = (
        time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(history.points[-1].time)) if history.points else "never"
    )
    return (
        f"{_count(cells, 'cell')}, {_count(snapshots, 'snapshot')}; connections of this VM: {now.open} open,"
        f" {now.allowed} allowed, {now.refused} refused; measured by the host, last at {measured}"
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def connection(one: Connection) -> str:
    """Return a connection in a line."""
    when = time.strftime("%H:%M:%S", time.localtime(one.time))
    times = f" ({one.count} times)" if one.count > 1 else ""
    why = f": {plain(one.reason, 80)}" if one.verdict != "allowed" else ""
    return f"{when} {one.verdict}{times} {plain(one.name or one.address, 80)}:{one.port}{why}"


def plain(text: str, most: int = 300) -> str:
    """Return the beginning of a text without what could fool a reader or a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[:most])
