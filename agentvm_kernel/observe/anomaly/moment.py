"""What the rules look at: made of readings and connections."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from agentvm_kernel.observe.anomaly.reading import UNTOLD, Contact, Reading

_LONG: Final = 30.0
"""Seconds from which on a connection counts as a long one."""

_FEW: Final = 3
"""Hosts: who has long connections to more of them is no miner."""

_MOST_OPEN: Final = 1024
_MOST_TARGETS: Final = 4096


@dataclass(frozen=True)
class Moment:
    """One moment of a VM.

    Attributes:
        time: Seconds, as the reading's.
        seconds: How long since the one before.
        values: What it amounts to, by metric; without those that nobody tells, or that make no sense now.
        arrivals: Connections that were wanted since.
    """

    time: float
    seconds: float
    values: Mapping[str, float]
    arrivals: tuple[Contact, ...]


class Moments:
    """Makes them, one after the other.

    Args:
        mining_names: Parts of hosts' names that stand for mining.
        usual_ports: Ports of which a long connection is not remarkable.
    """

    def __init__(self, mining_names: Iterable[str], usual_ports: Collection[int]) -> None:
        self._mining_names = tuple(mining_names)
        self._usual_ports = frozenset(usual_ports)
        self._before: Reading | None = None
        self._open: OrderedDict[int, Contact] = OrderedDict()
        self._arrivals: list[Contact] = []

    def take(self, reading: Reading, contacts: Iterable[Contact]) -> Moment | None:
        """Return the moment of a reading.

        Args:
            reading: It.
            contacts: Connections that began or ended since the one before.

        Returns:
            The moment; ``None`` of the first, which can be compared with nothing, and of one without a new time:
            what was wanted until then belongs to the next.
        """
        self._arrivals = (self._arrivals + [contact for contact in contacts if self._follow(contact)])[:_MOST_TARGETS]
        before = self._before
        if before is not None and reading.time == before.time:
            return None
        self._before = reading
        if before is None or reading.time < before.time:  # the host's clock was set back
            return None
        arrivals, self._arrivals = tuple(self._arrivals), []
        values = _amounts(before, reading) | self._levels(reading)
        values["mining_names"] = sum(contact.times for contact in arrivals if self._is_miners(contact))
        return Moment(reading.time, reading.time - before.time, values, arrivals)

    def _follow(self, contact: Contact) -> bool:
        """Take note of a connection's beginning or end; returns whether it is new."""
        known = self._open.pop(contact.id, None)
        if not contact.is_over and contact.verdict == "allowed":
            self._open[contact.id] = contact
            if len(self._open) > _MOST_OPEN:
                self._open.popitem(last=False)
        return known is None  # what is refused is told only once, when it is over

    def _levels(self, reading: Reading) -> dict[str, float]:
        cpu = max(reading.cpu_percent, reading.cpu_wanted)
        return {
            "cpu_percent": cpu,
            **({} if reading.executing else {"unattended_cpu_percent": cpu}),
            "mining_cpu_percent": cpu if self._is_mining(reading.time) else 0.0,
            "memory": reading.memory,
            "connections": reading.connections,
        }

    def _is_mining(self, now: float) -> bool:
        """Whether it is connected as miners are: to one of theirs by name, or long, to few, on an unusual port."""
        if any(self._is_miners(contact) for contact in self._open.values()):
            return True
        long = [contact for contact in self._open.values() if now - contact.time >= _LONG]
        hosts = {contact.host for contact in long}
        return 0 < len(hosts) <= _FEW and any(contact.port not in self._usual_ports for contact in long)

    def _is_miners(self, contact: Contact) -> bool:
        return any(part in contact.host for part in self._mining_names)


def _amounts(before: Reading, now: Reading) -> dict[str, float]:
    """Return what was counted in between; a counter that has begun anew has counted from zero."""
    names = ("disk_written", "network_sent", "network_received", "allowed", "refused", "output")
    amounts = {name: _more(getattr(before, name), getattr(now, name)) for name in names}
    amounts["disk_growth"] = max(0.0, now.disk_space - before.disk_space)
    amounts["network_outflow"] = amounts["network_sent"] - amounts["network_received"]
    if UNTOLD not in {before.processes, now.processes}:
        amounts["claimed_processes"] = _more(before.processes, now.processes)
    return amounts


def _more(before: float, now: float) -> float:
    return now - before if now >= before else now
