"""The hosts that sessions wanted to reach, and how many bytes went there."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from agentvm_kernel.egress.record import Connection
from agentvm_kernel.observe.events.network import NetworkConnectionAllowed
from agentvm_kernel.report.record import Session, said

MOST: Final = 500
_LINE: Final = 64 << 10


@dataclass
class Host:
    """One host and port.

    Attributes:
        name: As the guest named it, or the address.
        port: The port.
        allowed: Connections that were let through.
        refused: Connections that were not.
        rule: The rule that decided last.
        runs: Runs in which it was asked for.
        sent: Bytes to it, of connections that are over.
        received: Bytes from it.
    """

    name: str
    port: int
    allowed: int = 0
    refused: int = 0
    rule: str = ""
    runs: tuple[int, ...] = ()
    sent: int = 0
    received: int = 0


def hosts_of(sessions: Collection[Session], folder: Path) -> list[Host]:
    """Return the hosts, in the order in which they were asked for first; five hundred at most.

    Args:
        sessions: From the audit log, which has the verdicts.
        folder: The log of connections, which has the bytes; it is kept for a month, and has no digests.
    """
    hosts: dict[tuple[str, int], Host] = {}
    for session in sessions:
        for _, event in session.connections:
            key = said(event.name) or event.address, event.port
            if key not in hosts and len(hosts) >= MOST:
                continue
            host = hosts.setdefault(key, Host(*key))
            if isinstance(event, NetworkConnectionAllowed):
                host.allowed += event.count
            else:
                host.refused += event.count
            host.rule = event.rule or host.rule
            if event.run and event.run not in host.runs and len(host.runs) < 20:
                host.runs = (*host.runs, event.run)
    for one in _connections(folder, {session.lease for session in sessions}):
        if known := hosts.get((one.name or one.address, one.port)):
            known.sent += one.bytes_sent
            known.received += one.bytes_received
    return list(hosts.values())


def _connections(folder: Path, leases: Collection[str]) -> Iterator[Connection]:
    named = [json.dumps(lease).encode() for lease in leases]
    for path in sorted(folder.glob("????-??-??.jsonl")):
        with path.open("rb") as file:
            while line := file.readline(_LINE):
                if any(name in line for name in named):
                    try:
                        one = Connection.model_validate_json(line)
                    except ValidationError:
                        continue  # half a line, as a crash leaves it: the bytes of that connection are not known
                    if one.session in leases:
                        yield one
