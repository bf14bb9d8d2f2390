"""What a detector is told of a VM."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

UNTOLD: Final = -1.0
"""In place of what a guest does not tell."""


class Reading(NamedTuple):
    """One moment. What is counted is counted from the VM's beginning on.

    Attributes:
        time: Seconds.
        cpu_percent: CPU time of QEMU since the reading before, percent of one core.
        memory: Bytes of memory that it costs the host.
        disk_written: Bytes that the guest has written to its disk.
        disk_space: Bytes that its files take on the host's disk.
        network_sent: Bytes that it has sent through the gateway.
        network_received: Bytes that it has received.
        connections: Connections open now.
        allowed: Connections that were let through.
        refused: Connections that were refused.
        executing: 1 while a cell runs in it.
        output: Bytes that its session's cells have put out.
        processes: Processes that were started in it: what the guest claims, or `UNTOLD`.
        cpu_wanted: Share of the time in which its busiest thread had a CPU or waited for one, percent: what it had
            says little where others want the CPU, too.
    """

    time: float
    cpu_percent: float = 0.0
    memory: float = 0.0
    disk_written: float = 0.0
    disk_space: float = 0.0
    network_sent: float = 0.0
    network_received: float = 0.0
    connections: float = 0.0
    allowed: float = 0.0
    refused: float = 0.0
    executing: float = 0.0
    output: float = 0.0
    processes: float = UNTOLD
    cpu_wanted: float = 0.0


class Contact(NamedTuple):
    """A connection that a VM made or wanted to make: at its beginning and at its end; one that is refused only then.

    Attributes:
        time: When it began, on the clock of the readings.
        id: Tells it from others.
        host: The name, or the address where there is none.
        port: The port.
        verdict: What became of it.
        is_over: It has ended.
        times: How many alike it stands for.
    """

    time: float
    id: int
    host: str
    port: int
    verdict: Literal["allowed", "refused", "failed"]
    is_over: bool = False
    times: int = 1
