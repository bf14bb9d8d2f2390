"""What is remembered of one VM between two looks, so that what is dear to measure is measured seldom."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agentvm_kernel.errors import AgentVMError
from agentvm_kernel.observe.process import PROC, Usage, Weight, read_usage, weigh
from agentvm_kernel.observe.sample import History, Sample
from agentvm_kernel.vm.hypervisor import DiskTraffic, Machine

_log = logging.getLogger(__name__)

_WEIGH_SECONDS: Final = 20.0
_SELDOM_SECONDS: Final = 60.0
_CHANGE: Final = 1 << 20
# A guest that has hardly computed cannot have moved much.
_WORK_SECONDS: Final = 0.1
_ASK_SECONDS: Final = 3.0


@dataclass(frozen=True)
class Known:
    """What whoever has a VM knows of it, so that nobody has to measure it.

    Attributes:
        is_running: Its guest runs, so that its disk does not stand still.
        executing: A cell runs in it.
        network_sent: See `Sample`; and so for all that follows.
        network_received: …
        connections: …
        allowed: …
        refused: …
        snapshots: …
    """

    is_running: bool = False
    executing: bool = False
    network_sent: int = 0
    network_received: int = 0
    connections: int = 0
    allowed: int = 0
    refused: int = 0
    snapshots: int = 0


class Watch:
    """One VM.

    Args:
        machine: Its QEMU.
        proc: Where procfs is.

    Attributes:
        machine: Its QEMU.
        known: What whoever has it knows of it; set before each look.
        usage: What its process used at the last look; ``None`` if it is gone.
        weighed: When its memory was last looked at closely, on the looks' clock.
        history: Its newest samples.
        latest: The newest of all, also such as are not kept.
    """

    def __init__(self, machine: Machine, proc: Path = PROC) -> None:
        self.machine = machine
        self.known = Known()
        self.usage: Usage | None = None
        self.weighed = float("-inf")
        self.history = History()
        self.latest: Sample | None = None
        self._proc = proc
        self._weight: Weight | None = None
        self._written_then = 0
        self._first: Usage | None = None
        self._recorded: tuple[float, float, float] | None = None  # when, CPU seconds, percent
        self._traffic = DiskTraffic()
        self._asked = (float("-inf"), 0.0)
        self._space = 0
        self._space_then = -1
        self._asking: asyncio.Task[None] | None = None
        self._has_refused = False

    @property
    def traffic(self) -> DiskTraffic:
        """What its disk has moved, when QEMU answered last."""
        return self._traffic

    @property
    def is_stale(self) -> bool:
        """Whether QEMU did not answer what it was asked last, or has not yet."""
        return self._is_owed or self._has_refused

    @property
    def _is_owed(self) -> bool:
        return self._asking is not None and not self._asking.done()

    def ask(self, now: float) -> asyncio.Task[None] | None:
        """Ask QEMU, unless it still owes an answer or can have hardly anything to tell.

        Args:
            now: On the looks' clock.

        Returns:
            The question; it is not to be cancelled, because the answer would come all the same.
        """
        if self._is_owed or not self.known.is_running or self.usage is None:
            return None
        asked, cpu_seconds = self._asked
        if now - asked < _ASK_SECONDS and self.usage.cpu_seconds - cpu_seconds < _WORK_SECONDS:
            return None
        self._asked = (now, self.usage.cpu_seconds)
        return self._begin()

    async def ask_now(self) -> None:
        """Ask QEMU whatever it has to tell, once it owes no other answer."""
        if self._asking is not None:
            await asyncio.wait([self._asking])
        asking = self._asking  # somebody else who waited may have asked meanwhile
        await asyncio.wait([self._begin() if asking is None or asking.done() else asking])

    def _begin(self) -> asyncio.Task[None]:
        self._asking = asyncio.create_task(self._ask(), name="sampler-asks")
        return self._asking

    async def _ask(self) -> None:
        try:
            self._traffic = await self.machine.disk_traffic()
            self._has_refused = False
        except AgentVMError as error:  # it has ended, or does soon
            self._has_refused = True
            _log.debug("QEMU of %s tells nothing: %s", self.machine.spec.name, error)

    def read(self) -> None:
        """Read what is cheap; in a thread."""
        self.usage = read_usage(self.machine.pid, self._proc)
        if self.usage is None:
            return
        self._first = self._first or self.usage
        if self.usage.started != self._first.started:  # its number was given to another
            self.usage = None

    def is_due(self, now: float) -> bool:
        """Whether its memory should be looked at closely again."""
        if self.usage is None:
            return False
        has_changed = abs(self.usage.written - self._written_then) >= _CHANGE
        return now - self.weighed >= (_WEIGH_SECONDS if has_changed else _SELDOM_SECONDS)

    def weigh(self, now: float) -> None:
        """Look closely at its memory; in a thread."""
        if self.usage is not None:
            self.weighed = now
            self._written_then = self.usage.written
            self._weight = weigh(self.machine.pid, self.machine.spec.memory, self._proc)
            self._space_then = -1  # files that others wrote in its folder, too

    def measure_space(self) -> None:
        """Look how much its files take, if it may have changed; in a thread."""
        if self._space_then != self._traffic.written:
            self._space, self._space_then = disk_space(self.machine.spec.folder), self._traffic.written

    def take(self, now: float, wall: float, boot: float, every: float) -> None:
        """Take a sample of what was read; none if its process is gone.

        Args:
            now: On the looks' clock.
            wall: Seconds since 1970.
            boot: Seconds since the host was started.
            every: Seconds between two samples that are kept.
        """
        usage, known = self.usage, self.known
        if usage is None:
            self.latest = None
            return
        weight = self._present_weight(usage)
        sample = self.latest = Sample(
            time=wall, age=max(0.0, boot - usage.started), cpu_seconds=usage.cpu_seconds,
            cpu_percent=self._percent(now, usage.cpu_seconds, every),
            memory=weight.proportional, memory_private=weight.private, memory_guest=weight.mapped,
            disk_read=self._traffic.read, disk_written=self._traffic.written, disk_space=self._space,
            network_sent=known.network_sent, network_received=known.network_received, connections=known.connections,
            allowed=known.allowed, refused=known.refused, snapshots=known.snapshots, executing=known.executing,
            stale=self.is_stale,
        )  # fmt: skip
        if self._recorded is not None and self._recorded[0] == now:
            self.history.append(sample)

    def _percent(self, now: float, cpu_seconds: float, every: float) -> float:
        """Return the share of a core since the last sample that was kept; a shorter time would not say much."""
        if self._recorded is None:
            self._recorded = (now, cpu_seconds, 0.0)
            return 0.0
        then, before, percent = self._recorded
        if now - then < 0.9 * every:
            return percent
        percent = 100 * max(0.0, cpu_seconds - before) / (now - then)
        self._recorded = (now, cpu_seconds, percent)
        return percent

    def _present_weight(self, usage: Usage) -> Weight:
        """Return the last weight, with what was written since; of what the host does not show, the most it can be."""
        if self._weight is None:
            return Weight(usage.resident, usage.resident, usage.resident)
        more = usage.written - self._written_then
        weight = self._weight
        most = self.machine.spec.hardware.memory_mib << 20
        return Weight(
            max(0, weight.proportional + more), max(0, weight.private + more), min(most, max(0, weight.mapped + more))
        )


def disk_space(folder: Path) -> int:
    """Return how many bytes the files in a VM's folder take on the disk; none of what is gone."""
    space = 0
    with suppress(FileNotFoundError):
        for path in folder.iterdir():
            with suppress(FileNotFoundError):  # a snapshot takes files away
                space += path.lstat().st_blocks * 512
    return space
