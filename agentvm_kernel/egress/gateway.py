"""The one way out of all VMs: decides about each connection, reaches the host, and writes down what was."""

from __future__ import annotations

import time
from dataclasses import dataclass

from agentvm_kernel.egress.access import Access
from agentvm_kernel.egress.addresses import Forbidden
from agentvm_kernel.egress.channel import Channel, Opening
from agentvm_kernel.egress.conversation import Conversation, Means
from agentvm_kernel.egress.inspector import Inspector
from agentvm_kernel.egress.log import ConnectionLog
from agentvm_kernel.egress.names import shown
from agentvm_kernel.egress.record import Connection
from agentvm_kernel.egress.resolver import Resolver

_FLOOD_SECONDS = 1.0
"""Connections beyond the bound are written down together, at most once in this time."""


@dataclass(frozen=True)
class GatewayLimits:
    """Bounds of a gateway.

    Attributes:
        connections: Open at the same time for all VMs together; each may cost two of the supervisor's open files.
        first_words: Seconds for a program to say what it wants, from the connection on.
        connect: Seconds to reach a host.
        answer: Seconds for a host to greet back.
    """

    connections: int = 4096
    first_words: float = 10.0
    connect: float = 15.0
    answer: float = 30.0


class Gateway:
    """Serves the connections of all VMs.

    Args:
        log: Where they are written down.
        resolver: How names are looked up.
        forbidden: Which addresses are never connected to.
        limits: Bounds.
        inspector: Who looks into the TLS of some hosts; None if nobody does.
    """

    def __init__(
        self,
        log: ConnectionLog,
        resolver: Resolver,
        forbidden: Forbidden,
        limits: GatewayLimits = GatewayLimits(),
        inspector: Inspector | None = None,
    ) -> None:
        self.open = 0
        """Connections open now."""
        self.inspector = inspector
        """Who looks into the TLS of some hosts; may be set at any time."""
        self._log = log
        self._limits = limits
        self._means = Means(log, resolver, forbidden, limits.first_words, limits.connect, limits.answer)

    async def serve(self, access: Access, opening: Opening, channel: Channel) -> None:
        """Serve one connection to its end; the channel is closed then. Called in a task of its own.

        Args:
            access: The lease that the VM belongs to.
            opening: What the guest says about it.
            channel: The connection.
        """
        if access.open >= access.limits.connections or self.open >= self._limits.connections:
            access.turned_away += 1
            access.count("refused")
            access.on_limit("connections")
            self._note_flood(access, opening)
            channel.close()
            return
        access.open += 1
        self.open += 1
        try:
            await access.arrive()
            await Conversation(self._means, access, opening, channel, self.inspector).run()
        finally:
            channel.close()
            access.open -= 1
            self.open -= 1
            self._note_flood(access, opening, last=not access.open)

    def _note_flood(self, access: Access, opening: Opening, *, last: bool = False) -> None:
        """Write down how many connections were too many, as one: a flood must not push all else out of the log."""
        now = time.monotonic()
        if not access.turned_away or (now - access.turned_away_at < _FLOOD_SECONDS and not last):
            return
        self._log.put(
            Connection(
                id=self._log.next_id(),
                time=time.time(),
                session=access.session,
                vm=access.vm,
                cell=access.cell,
                name=shown(opening.name or ""),
                address=shown(opening.address),
                port=opening.port,
                verdict="refused",
                rule="",
                reason=f"More than {access.limits.connections} connections at the same time.",
                hint="Close some before opening others; see connections in [network] of the configuration.",
                duration=0.0,
                count=access.turned_away,
            )
        )
        access.turned_away, access.turned_away_at = 0, now
