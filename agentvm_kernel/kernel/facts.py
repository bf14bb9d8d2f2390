"""What a cell cost, as measured on the host: for its reply, its footer and the audit log.

Nothing here is what the guest says. What costs microseconds is read when a cell begins and when it ends: QEMU's CPU
time and memory from procfs, the network from the VM's tally. The supervisor is asked only after a cell that has worked
long enough for its disk to have moved something, or that has spoken with somebody: then the way there and back is a
small part of the cell.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agentvm_kernel.errors import AgentVMError
from agentvm_kernel.observe.process import Usage, read_usage
from agentvm_kernel.supervisor.messages import Granted
from agentvm_kernel.supervisor.stats_messages import Moved
from agentvm_kernel.tally import TallyReader, Traffic

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

log = logging.getLogger("agentvm.facts")

_WORK_SECONDS: Final = {"kvm": 0.03, "tcg": 0.15}
"""CPU time from which on a cell may have moved much to or from its disk; emulation takes several times as much."""

_LONG_SECONDS: Final = {"kvm": 0.1, "tcg": 0.25}
"""Seconds from which on it may, though it has computed little: the disk may be slow, and the CPU fast."""

_ROOM: Final = 1000
"""Characters of hosts' names in a reply."""

_PATIENCE: Final = 0.5
"""Seconds for which a reply waits for the supervisor."""


@dataclass(frozen=True)
class CellFacts:
    """What a cell cost. ``None`` stands for what nobody has measured.

    Attributes:
        seconds: From when the guest could begin with it to its reply.
        cpu_seconds: CPU time of QEMU: of the guest, and of what emulating it costs.
        memory_peak: Bytes of the host's memory that QEMU had for itself at most.
        memory_grown: By how many bytes that has grown.
        network_sent: Bytes sent through the gateway.
        network_received: Bytes received.
        disk_read: Bytes read from the VM's disk.
        disk_written: Bytes written to it: what the guest has let go of, not what it still keeps in memory.
        hosts: Names of the hosts that were spoken with; the latest, if there are many.
        host_count: How many there were.
        snapshot_before: Id of the snapshot that the VM descended from; empty for the image's own.
        snapshot_after: The same afterwards.
    """

    seconds: float
    cpu_seconds: float | None = None
    memory_peak: int | None = None
    memory_grown: int | None = None
    network_sent: int | None = None
    network_received: int | None = None
    disk_read: int | None = None
    disk_written: int | None = None
    hosts: tuple[str, ...] | None = None
    host_count: int | None = None
    snapshot_before: str = ""
    snapshot_after: str = ""

    def metadata(self) -> dict[str, object]:
        """Return what goes into a reply: what has been measured."""
        facts = {name: value for name, value in asdict(self).items() if value is not None}
        if self.hosts:
            facts["hosts"] = _some(self.hosts)
        return facts | {"seconds": round(self.seconds, 4)}


@dataclass(frozen=True)
class _Moment:
    """What was read at one moment of a VM."""

    granted: Granted
    time: float
    usage: Usage | None
    traffic: Traffic | None
    snapshot: str


class Facts:
    """Measures cells.

    Args:
        moved: Asks the supervisor what the VM has moved; see `SupervisorClient.moved`.
        snapshot: Tells the snapshot that the VM descends from.
        shown: Whether cells show what they cost.

    Attributes:
        shown: Whether cells show what they cost; may be set at any time.
        last: Of the cell that ended last.
    """

    def __init__(
        self, moved: Callable[[float], Awaitable[Moved]], snapshot: Callable[[], str], *, shown: bool = False
    ) -> None:
        self.shown = shown
        self.last: CellFacts | None = None
        self._moved = moved
        self._snapshot = snapshot
        self._begun: dict[Hashable, _Moment] = {}
        self._reader: tuple[str, TallyReader | None] = ("", None)

    def begin(self, cell: Hashable, granted: Granted) -> None:
        """Note that the guest begins with a cell.

        Args:
            cell: Tells it from others.
            granted: The VM.
        """
        self._begun[cell] = self._look(granted)

    def forget(self, cell: Hashable) -> None:
        """Note that a cell's VM is gone."""
        self._begun.pop(cell, None)

    def end(self, cell: Hashable) -> EndedCell | None:
        """Note that the guest is done with a cell; ``None`` if it has not been begun.

        Args:
            cell: Which.
        """
        begun = self._begun.pop(cell, None)
        return None if begun is None else EndedCell(begun, self._look(begun.granted))

    async def complete(self, ended: EndedCell) -> CellFacts:
        """Return all of a cell's facts, after the supervisor was asked, where it is worth that.

        Args:
            ended: The cell.
        """
        facts = ended.facts
        if ended.is_worth_asking and (moved := await self._ask(ended)) is not None:
            facts = ended.completed(moved)
            self._renew(moved, ended.over.time)
        self.last = facts
        return facts

    async def _ask(self, ended: EndedCell) -> Moved | None:
        try:
            async with asyncio.timeout(_PATIENCE):
                moved = await self._moved(ended.begun.time)
        except (AgentVMError, TimeoutError) as error:
            log.info("what a cell has moved is not known: %s", error)
            return None
        return moved if moved.vm == ended.begun.granted.vm else None

    def _renew(self, moved: Moved, since: float) -> None:
        """Let cells that began meanwhile not count what one before them has moved."""
        for cell, moment in self._begun.items():
            if moment.granted.vm == moved.vm and moment.time >= since and moment.traffic is not None:
                traffic = moment.traffic._replace(disk_read=moved.disk_read, disk_written=moved.disk_written)
                self._begun[cell] = replace(moment, traffic=traffic)

    def _look(self, granted: Granted) -> _Moment:
        reader = self._tally(granted.tally)
        return _Moment(
            granted, time.monotonic(), read_usage(granted.pid), reader.read() if reader else None, self._snapshot()
        )

    def _tally(self, path: str) -> TallyReader | None:
        known, reader = self._reader
        if path != known:
            if reader is not None:
                reader.close()
            reader = _open(path) if path else None
            self._reader = (path, reader)
        return reader


@dataclass(frozen=True)
class EndedCell:
    """A cell that has ended.

    Attributes:
        begun: What was read at its beginning.
        over: What was read at its end.
    """

    begun: _Moment
    over: _Moment

    @property
    def facts(self) -> CellFacts:
        """What is known without asking anybody."""
        begun, over = self.begun, self.over
        facts = CellFacts(over.time - begun.time, snapshot_before=begun.snapshot, snapshot_after=over.snapshot)
        if begun.usage is not None and over.usage is not None and begun.usage.started == over.usage.started:
            # A guest gives no memory back, so that the most it had is what it has at the end.
            facts = replace(
                facts, cpu_seconds=round(max(0.0, over.usage.cpu_seconds - begun.usage.cpu_seconds), 2),
                memory_peak=max(begun.usage.written, over.usage.written),
                memory_grown=max(0, over.usage.written - begun.usage.written),
            )  # fmt: skip
        if begun.traffic is not None and over.traffic is not None:
            facts = replace(
                facts, network_sent=over.traffic.network_sent - begun.traffic.network_sent,
                network_received=over.traffic.network_received - begun.traffic.network_received,
            )  # fmt: skip
            if not self._has_spoken:
                facts = replace(facts, hosts=(), host_count=0)
        return facts

    @property
    def is_worth_asking(self) -> bool:
        """Whether the supervisor can be expected to know more."""
        begun, over = self.begun, self.over
        if begun.traffic is None or over.traffic is None or begun.usage is None or over.usage is None:
            return False
        by = begun.granted.accelerator
        has_worked = over.usage.cpu_seconds - begun.usage.cpu_seconds >= _WORK_SECONDS[by]
        return has_worked or over.time - begun.time >= _LONG_SECONDS[by] or self._has_spoken

    @property
    def _has_spoken(self) -> bool:
        assert self.begun.traffic is not None  # nosec B101 - its callers have looked
        assert self.over.traffic is not None  # nosec B101
        return self.begun.traffic[:3] != self.over.traffic[:3]

    def completed(self, moved: Moved) -> CellFacts:
        """Return what is known together with what the supervisor knows.

        Args:
            moved: What it has answered.
        """
        facts, before = self.facts, self.begun.traffic
        if before is not None and not moved.stale:
            facts = replace(
                facts, disk_read=max(0, moved.disk_read - before.disk_read),
                disk_written=max(0, moved.disk_written - before.disk_written),
            )  # fmt: skip
        return replace(facts, hosts=moved.hosts, host_count=moved.host_count)


def _some(hosts: tuple[str, ...]) -> list[str]:
    """Return as many hosts as there is room for, the latest."""
    room = _ROOM
    taken: list[str] = []
    for host in reversed(hosts):
        room -= len(host)
        if room < 0:
            break
        taken.insert(0, host)
    return taken


def _open(path: str) -> TallyReader | None:
    try:
        return TallyReader(Path(path))
    except (OSError, ValueError) as error:
        log.info("what the VM moves over the network is not known: %s", error)
        return None
