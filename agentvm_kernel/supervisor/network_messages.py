"""What the supervisor and its clients say to each other about a session's network."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, TypeAdapter

from agentvm_kernel.egress.record import Connection
from agentvm_kernel.snapshots.notes import Cell
from agentvm_kernel.supervisor.execution_messages import Report
from agentvm_kernel.supervisor.messages import Hosts, Message, NetworkMode

MOST_EXECUTIONS: Final = 64

connection_adapter: TypeAdapter[Connection] = TypeAdapter(Connection)


class NetworkRequest(Message):
    """What a session's own part of its policy is from now on; it goes over what is configured, but for denials.

    Attributes:
        mode: The mode; ``None`` for the configured one.
        allow: Hosts that are allowed.
        deny: Hosts that are refused.
        inspect: Hosts, of those that are allowed, whose TLS the gateway ends itself.
    """

    mode: NetworkMode | None = None
    allow: Hosts = ()
    deny: Hosts = ()
    inspect: Hosts = ()


class CassetteRequest(Message):
    """Record what inspected hosts say, or replay it in their place.

    Attributes:
        action: What is done from now on.
        name: The recording's name.
        folder: Where it lies, on the host: the notebook's folder.
    """

    action: Literal["record", "replay", "off"]
    name: str = Field(default="", max_length=200)
    folder: str = Field(default="", max_length=4096)


class CellRequest(Message):
    """Which cell runs now, and what has become of executions.

    Attributes:
        cell: The cell, or the last one: what it has begun and goes on counts as its own.
        allow: Hosts that are allowed until the next of these requests.
        executions: What began, what ended and what was copied since the last of these requests, in order, for the
            audit log.
        unsaid: How many such reports are missing because they could not be made in time.
        output: Bytes that the session's cells have put out so far, as their kernel process counts them.
        travelling: A snapshot is taken after every cell.
    """

    cell: Cell = Cell()
    allow: Hosts = ()
    executions: Annotated[tuple[Report, ...], Field(max_length=MOST_EXECUTIONS)] = ()
    unsaid: int = Field(default=0, ge=0)
    output: int = Field(default=0, ge=0)
    travelling: bool = False


class RuleInfo(Message):
    """One rule of a policy.

    Attributes:
        pattern: The hosts, as users write them.
        verdict: What becomes of connections to them.
        source: Who made it: this package, the configuration, the session or the cell that runs.
        inspect: The gateway ends the TLS of these hosts itself.
    """

    pattern: str
    verdict: Literal["allow", "deny"]
    source: Literal["default", "configuration", "session", "cell"]
    inspect: bool = False


class NetworkInfo(Message):
    """What a session may reach, and what it has done.

    Attributes:
        mode: What holds.
        profile: Whether its profile has a network at all.
        connected: Its VM's tunnel is up.
        directives: Whether cells may change this.
        rules: All rules; denials win.
        open: Connections that are open.
        allowed: Connections that were let through.
        refused: Connections that were refused.
        failed: Connections that were allowed, but did not come about.
        bytes_sent: Bytes from the VM.
        bytes_received: Bytes to the VM.
        max_connections: How many it may have open.
        max_bytes: Bytes that may be sent and received together; ``None`` for no limit.
        cassette: What is recorded into, or replayed from; empty for nothing.
        card: The address of its VM's network card; empty without one.
    """

    mode: NetworkMode
    profile: Literal["filtered", "none"] = "filtered"
    connected: bool = False
    directives: bool = True
    rules: tuple[RuleInfo, ...] = ()
    open: int = Field(default=0, ge=0)
    allowed: int = 0
    refused: int = 0
    failed: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    max_connections: int
    max_bytes: int | None = None
    cassette: str = ""
    card: str = ""
