"""What was measured of a notebook's VMs in the last minutes, and what they connected to; all of it bounded."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Final, NamedTuple

from agentvm_kernel.egress.record import Connection
from agentvm_kernel.supervisor.stats_messages import VMStats

KEPT: Final = 600
"""Samples that are kept: ten minutes at one a second."""

CONNECTIONS: Final = 200
"""Connections that are kept."""


class Point(NamedTuple):
    """One moment, as measured on the host.

    Attributes:
        time: Seconds since 1970.
        cpu: Percent of one core.
        memory: Bytes that the VM costs the host.
        touched: Bytes of its memory that the guest has touched.
        disk_read: Bytes a second; so for the rest.
        disk_written: To its disk.
        sent: Through the gateway.
        received: The same.
    """

    time: float
    cpu: float
    memory: int
    touched: int
    disk_read: int
    disk_written: int
    sent: int
    received: int


class History:
    """The newest points and connections.

    Attributes:
        points: The oldest first.
        connections: By key, the oldest first; a connection's end replaces its beginning.
        newest: The last measurement; None before the first.
    """

    def __init__(self) -> None:
        self.points: deque[Point] = deque(maxlen=KEPT)
        self.connections: OrderedDict[str, Connection] = OrderedDict()
        self.newest: VMStats | None = None

    def measured(self, stats: VMStats) -> Point | None:
        """Add a measurement of the notebook's own VM; return what is new by it, if anything is.

        Rates are those since the one before, of the same VM.
        """
        before = self.newest
        if stats.state != "leased" or (before is not None and stats.time <= before.time):
            return None
        self.newest = stats
        if before is None or before.vm != stats.vm:
            before = stats
        seconds = max(stats.time - before.time, 0.1)
        point = Point(
            round(stats.time, 1), round(stats.cpu_percent, 1), stats.memory, stats.memory_guest,
            _rate(stats.disk_read - before.disk_read, seconds),
            _rate(stats.disk_written - before.disk_written, seconds),
            _rate(stats.network_sent - before.network_sent, seconds),
            _rate(stats.network_received - before.network_received, seconds),
        )  # fmt: skip
        self.points.append(point)
        return point

    def connected(self, connection: Connection) -> bool:
        """Add a connection, or what has become of it; false if that was known."""
        key = key_of(connection)
        if self.connections.get(key) == connection:
            return False
        self.connections[key] = connection
        if len(self.connections) > CONNECTIONS:
            self.connections.popitem(last=False)
        return key in self.connections


def key_of(connection: Connection) -> str:
    """Return what no other connection of the notebook is called."""
    return f"{connection.session}/{connection.id}"


def highest(points: Sequence[Point], name: str, bins: int) -> list[float | None]:
    """Return the highest value of each of so many spans of time, so that no peak is lost; None where there is none.

    Args:
        points: The points, the oldest first.
        name: Of the value.
        bins: How many spans, from the first point to the last.
    """
    found: list[float | None] = [None] * bins
    for point in points:
        place = min(int(share(points, point.time) * bins), bins - 1)
        value, known = float(getattr(point, name)), found[place]
        found[place] = value if known is None else max(value, known)
    return found


def share(points: Sequence[Point], moment: float) -> float:
    """Return where a moment is between the first point and the last, 0 to 1."""
    span = max(points[-1].time - points[0].time, 1.0)
    return min(max((moment - points[0].time) / span, 0.0), 1.0)


def _rate(amount: int, seconds: float) -> int:
    return max(round(amount / seconds), 0)
