"""What is written down about each connection."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Connection(BaseModel):
    """One connection that a VM made or wanted to make.

    Attributes:
        id: Unique within the supervisor's life.
        time: When it was asked for, seconds since 1970.
        session: The session.
        vm: The VM.
        cell: What the session was running; empty between cells.
        name: The host's name, normalised where that is possible; empty for a raw address.
        address: The address that was connected to; for a refused connection, the one that the guest named.
        port: The port.
        verdict: ``allowed``; ``refused``: by policy or because it was not what it pretended to be; ``failed``: allowed,
            but the host could not be reached, or not prove to the gateway that it is the right one.
        rule: The rule that decided; empty if none is about it.
        reason: Why.
        hint: What a user can do about a refusal.
        bytes_sent: From the guest to the host, bytes.
        bytes_received: From the host to the guest, bytes.
        duration: Seconds until its end; None while it is open.
        tls_version: ``1.2`` or ``1.3``, of an inspected connection the one between gateway and host; empty without TLS
            or where it was not negotiated.
        protocol: ``tls``, ``http``, ``ssh``, ``git`` or ``tcp``; empty where nothing was said.
        count: How many alike it stands for (a flood of refusals is written down as one).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: int
    time: float
    session: str
    vm: str
    cell: str
    name: str
    address: str
    port: int
    verdict: Literal["allowed", "refused", "failed"]
    rule: str
    reason: str
    hint: str = ""
    bytes_sent: int = 0
    bytes_received: int = 0
    duration: float | None = None
    tls_version: str = ""
    protocol: str = ""
    count: int = 1
