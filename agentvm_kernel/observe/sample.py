"""What was measured of a VM at one moment, and the moments of the last minutes."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Final, NamedTuple

KEPT: Final = 600
"""Samples that are kept of each VM: ten minutes, at one a second."""


class Sample(NamedTuple):
    """One moment. All of it is measured on the host, or by its own QEMU; nothing is what the guest says of itself.

    Attributes:
        time: Seconds since 1970.
        age: Seconds since its QEMU was started.
        cpu_seconds: CPU time of QEMU so far.
        cpu_percent: CPU time since the sample before, as a share of one core.
        memory: Bytes of memory that it costs the host: what it shares with other VMs is divided among them.
        memory_private: Bytes that it alone takes.
        memory_guest: Bytes of the guest's memory that it has touched.
        disk_read: Bytes that the guest has read from its disk so far.
        disk_written: Bytes that it has written so far.
        disk_space: Bytes that its own files take on the host's disk.
        network_sent: Bytes that it has sent through the gateway so far.
        network_received: Bytes that it has received so far.
        connections: Connections open now.
        allowed: Connections that were let through so far.
        refused: Connections that were refused so far.
        snapshots: Bytes that the snapshots of its notebook take.
        executing: 1 while a cell runs in it.
        stale: 1 if QEMU did not answer in time, so that what is told of its disk is older.
    """

    time: float
    age: float
    cpu_seconds: float
    cpu_percent: float
    memory: float
    memory_private: float
    memory_guest: float
    disk_read: float
    disk_written: float
    disk_space: float
    network_sent: float
    network_received: float
    connections: float
    allowed: float
    refused: float
    snapshots: float
    executing: float
    stale: float


_WIDTH: Final = len(Sample._fields)


class History:
    """The newest samples of a VM, oldest first. Plain numbers in a row, since of a hundred VMs there are 60,000.

    Args:
        kept: How many.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._values = array("d")

    def append(self, sample: Sample) -> None:
        """Add one; the oldest goes where there are too many."""
        self._values.extend(sample)
        if len(self) > self._kept:
            del self._values[:_WIDTH]

    def __len__(self) -> int:
        return len(self._values) // _WIDTH

    def __iter__(self) -> Iterator[Sample]:
        # Of a copy: who is told of them may take longer than until the next comes.
        values = self._values[:]
        for begin in range(0, len(values), _WIDTH):
            yield Sample(*values[begin : begin + _WIDTH])
