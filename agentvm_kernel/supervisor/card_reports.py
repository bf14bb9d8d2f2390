"""What VMs with a network card were refused: the kernel's reports become refused connections in the log."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from agentvm_kernel.egress.access import Access
from agentvm_kernel.egress.log import ConnectionLog
from agentvm_kernel.egress.packets import RefusedPacket, RefusedPackets
from agentvm_kernel.egress.record import Connection

_log = logging.getLogger(__name__)

RULE: Final = "network card"

_AGAIN_SECONDS: Final = 60.0
"""What is tried again within this time, as TCP itself does, is counted and not written down again."""

_REMEMBERED: Final = 1024


@dataclass
class _Known:
    since: float
    repeated: int = 0


class CardReports:
    """Reads the kernel's reports.

    Args:
        log: Where refusals are written down.
        find: Returns the access of the VM that has an address; ``None`` if none has it.
    """

    def __init__(self, log: ConnectionLog, find: Callable[[str], Access | None]) -> None:
        self._log = log
        self._find = find
        self._packets: RefusedPackets | None = None
        self._known: dict[tuple[str, RefusedPacket], _Known] = {}

    def open(self, group: int) -> None:
        """Begin to listen; in the event loop's thread.

        Args:
            group: The group of the reports.
        """
        try:
            self._packets = RefusedPackets(group)
        except OSError as error:
            _log.warning("what network cards are refused is counted, but not written down: %s", error)
            return
        asyncio.get_running_loop().add_reader(self._packets.fileno(), self._read)

    def close(self) -> None:
        """Stop listening."""
        if self._packets is not None:
            self._read()
            asyncio.get_running_loop().remove_reader(self._packets.fileno())
            self._packets.close()
            self._packets = None

    def _read(self) -> None:
        if self._packets is not None:
            for packet in self._packets.read():
                self.note(packet)

    def note(self, packet: RefusedPacket) -> None:
        """Write down a packet, unless one like it was a moment ago.

        Args:
            packet: What was refused.
        """
        access = self._find(packet.source)
        if access is None:
            return  # it claims an address that no VM has
        now, key = time.monotonic(), (access.vm, packet)
        known = self._known.get(key)
        if known is not None and now - known.since < _AGAIN_SECONDS:
            known.repeated += 1
            return
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[key] = _Known(now)
        access.counters.refused += 1
        self._log.put(_connection(self._log.next_id(), access, packet, 1 + (known.repeated if known else 0)))


def _connection(number: int, access: Access, packet: RefusedPacket, count: int) -> Connection:
    return Connection(
        id=number, time=time.time(), session=access.session, vm=access.vm, cell=access.cell, name="",
        address=packet.address, port=packet.port, verdict="refused", rule=RULE,
        reason=f"The network card lets no {packet.protocol} through to there.",
        hint="docs/nat.md says what it lets through; hosts by name are reached without it.", duration=0.0, count=count,
    )  # fmt: skip
