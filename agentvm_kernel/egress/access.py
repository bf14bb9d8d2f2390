"""What one lease may do on the network, what it has done, and what is left of its budgets."""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

from agentvm_kernel.egress.cassette import Cassette
from agentvm_kernel.egress.policy import Policy, Rule
from agentvm_kernel.egress.room import Room
from agentvm_kernel.errors import AgentVMError
from agentvm_kernel.pace import Pace
from agentvm_kernel.tally import Tally

_LOOKUPS: Final = 4
"""Names of one VM that are looked up at the same time: a VM with many slow names must not stop the others'."""

_HOSTS: Final = 256
"""Hosts of one VM that are remembered."""


class BudgetError(AgentVMError):
    """A VM has sent and received all that it may."""

    code = "network_budget"


@dataclass(frozen=True)
class AccessLimits:
    """Bounds of one lease.

    Attributes:
        connections: Open at the same time; more are refused.
        connections_per_second: New ones; those above it wait for their turn, after a burst of ``connections``.
        bytes_per_second: Sent and received together; None for no limit.
        max_bytes: Sent and received together in the lease's life; None for no limit.
    """

    connections: int = 256
    connections_per_second: float = 100
    bytes_per_second: float | None = None
    max_bytes: int | None = None


@dataclass
class Counters:
    """What a lease has done.

    Attributes:
        allowed: Connections that were let through.
        refused: Connections that were refused.
        failed: Connections that were allowed and did not come about.
        bytes_sent: From the guest to hosts, bytes.
        bytes_received: From hosts to the guest, bytes.
    """

    allowed: int = 0
    refused: int = 0
    failed: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0


@dataclass(eq=False)
class Access:
    """One lease's access to the network; survives rollbacks and restarts of its VM.

    The gateway reads it at each decision. Its holder may change every field but the counters at any time; no change
    cuts a connection that was allowed.

    Attributes:
        session: The session.
        notebook: The notebook, for people.
        vm: The VM that the session has now.
        policy: What may be reached.
        limits: Bounds.
        cell: What runs now; empty between cells.
        cassette: What exchanges with inspected hosts are recorded into or replayed from.
        open: Connections open now, among them such as are still being decided.
        turned_away: Connections refused because there were too many, and not written down yet.
        turned_away_at: When such were last written down, seconds on the monotonic clock.
        counters: What was done; shared with the lease's other VMs.
        own: What this VM has done of that.
        tally: Is told what this VM has done, too.
        hosts: When something was last said to or by each host, seconds on the monotonic clock; the latest last.
        on_limit: Told of each time that a limit was reached, with its name.
        spent: Bytes by rule, of the rules that have a budget.
        room: Memory for what is recorded and replayed; shared with the lease's other VMs.
    """

    session: str
    notebook: str
    vm: str
    policy: Policy
    limits: AccessLimits = AccessLimits()
    cell: str = ""
    cassette: Cassette | None = None
    open: int = field(default=0, init=False)
    turned_away: int = field(default=0, init=False)
    turned_away_at: float = field(default=-math.inf, init=False)
    counters: Counters = field(default_factory=Counters, init=False)
    own: Counters = field(default_factory=Counters, init=False)
    tally: Tally | None = field(default=None, init=False)
    hosts: OrderedDict[str, float] = field(default_factory=OrderedDict, init=False)
    # A default would be taken for a method.
    on_limit: Callable[[str], None] = field(default_factory=lambda: lambda _: None, init=False)
    spent: defaultdict[Rule, int] = field(default_factory=lambda: defaultdict(int), init=False)
    room: Room = field(default_factory=Room, init=False)

    def __post_init__(self) -> None:
        self.lookups = asyncio.Semaphore(_LOOKUPS)
        self._arrivals = Pace()
        self._bytes = Pace()

    async def arrive(self) -> None:
        """Wait until one more connection may be decided. Called by the gateway."""
        await asyncio.sleep(self._arrivals.take(1, self.limits.connections_per_second, self.limits.connections))

    def count(self, verdict: Literal["allowed", "refused", "failed"]) -> None:
        """Count a connection. Called by the gateway.

        Args:
            verdict: What became of it.
        """
        for counters in (self.counters, self.own):
            setattr(counters, verdict, getattr(counters, verdict) + 1)
        self._tell()

    def touch(self, host: str) -> None:
        """Note that a host is spoken with. Called by the gateway.

        Args:
            host: Its name.
        """
        self.hosts[host] = time.monotonic()
        self.hosts.move_to_end(host)
        if len(self.hosts) > _HOSTS:
            self.hosts.popitem(last=False)

    def account(self, rule: Rule | None, sent: int, received: int) -> float:
        """Count what passes. Called by the gateway.

        Args:
            rule: The rule by which it passes.
            sent: Bytes from the guest.
            received: Bytes to the guest.

        Returns:
            Seconds to wait before more may pass.

        Raises:
            BudgetError: the rule's budget or the session's is spent.
        """
        self.check(rule, sent + received)
        for counters in (self.counters, self.own):
            counters.bytes_sent += sent
            counters.bytes_received += received
        self._tell()
        if rule is not None and rule.max_bytes is not None:
            self.spent[rule] += sent + received
        rate = self.limits.bytes_per_second
        return self._bytes.take(sent + received, rate, rate) if rate is not None else 0.0

    def _tell(self) -> None:
        if self.tally is not None:
            self.tally.network(self.own.bytes_sent, self.own.bytes_received, self.own.allowed)

    def check(self, rule: Rule | None, more: int) -> None:
        """Check that more may pass.

        Args:
            rule: The rule by which it would.
            more: Bytes.

        Raises:
            BudgetError: the rule's budget or the session's is spent.
        """
        total = self.counters.bytes_sent + self.counters.bytes_received + more
        if self.limits.max_bytes is not None and total > self.limits.max_bytes:
            self.on_limit("max_bytes")
            raise BudgetError(
                f"The session's budget of {self.limits.max_bytes} bytes is spent.", "See max_bytes in [network]."
            )
        if rule is not None and rule.max_bytes is not None and self.spent[rule] + more > rule.max_bytes:
            self.on_limit("max_bytes")
            raise BudgetError(f"The budget of {rule.max_bytes} bytes for {rule.pattern} is spent.", "See %net status.")
