"""Events of connections."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from agentvm_kernel.observe.events.vm import OfLease
from agentvm_kernel.observe.fields import (
    Claimed,
    Count,
    Text,
)


class NetworkConnection(OfLease):
    """A program in a VM wanted to connect to a host.

    Attributes:
        run: Number of the run in which it did; 0 between runs.
        name: The host, as the guest named it.
        address: The address that was connected to; of a refused connection, the one that the guest named.
        port: The port.
        rule: The rule that decided.
        reason: Why.
        count: How many alike it stands for.
    """

    run: Count = 0
    name: Claimed = Claimed()
    address: Text = ""
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    rule: Text = ""
    reason: Claimed = Claimed()
    count: Annotated[int, Field(ge=1)] = 1


class NetworkConnectionAllowed(NetworkConnection):
    """It was let through."""

    event: Literal["network_connection_allowed"] = "network_connection_allowed"


class NetworkConnectionBlocked(NetworkConnection):
    """It was refused."""

    event: Literal["network_connection_blocked"] = "network_connection_blocked"


class ConnectionsLeftOut(OfLease):
    """A session had so many connections that not all of them are written down here.

    Attributes:
        verdict: What became of them.
        count: How many are left out.
    """

    event: Literal["connections_left_out"] = "connections_left_out"
    verdict: Literal["allowed", "blocked"]
    count: Annotated[int, Field(ge=1)] = 1


class LinkRefused(OfLease):
    """Somebody without the key wanted to talk to a VM's guest agent.

    Attributes:
        reason: Why it was refused, as the guest says.
        count: How often it has happened in this VM.
    """

    event: Literal["link_refused"] = "link_refused"
    reason: Claimed = Claimed()
    count: Annotated[int, Field(ge=1)] = 1
