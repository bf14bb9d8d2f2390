"""What leased VMs send out: one gateway and one log for all, and a network for each lease."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal
from weakref import WeakValueDictionary

from agentvm_kernel.config import Paths
from agentvm_kernel.egress.access import Access
from agentvm_kernel.egress.addresses import Forbidden, parse_reachable
from agentvm_kernel.egress.authority import Authority
from agentvm_kernel.egress.cassette import Cassette
from agentvm_kernel.egress.channel import Channel, Opening
from agentvm_kernel.egress.gateway import Gateway
from agentvm_kernel.egress.inspection import Inspection
from agentvm_kernel.egress.log import ConnectionLog, Subscription
from agentvm_kernel.egress.policy import Policy
from agentvm_kernel.egress.record import Connection
from agentvm_kernel.egress.resolver import Resolver
from agentvm_kernel.egress.secrets import SecretStore
from agentvm_kernel.egress.tunnel import NetworkSettings
from agentvm_kernel.observe.audit import AuditLog
from agentvm_kernel.observe.events.network import ConnectionsLeftOut, NetworkConnectionAllowed, NetworkConnectionBlocked
from agentvm_kernel.observe.events.supervisor import ConfigurationChanged
from agentvm_kernel.observe.fields import Subject, claimed
from agentvm_kernel.observe.metrics import Metrics
from agentvm_kernel.observe.restraint import Restraint
from agentvm_kernel.settings import Network
from agentvm_kernel.supervisor.card_reports import CardReports
from agentvm_kernel.supervisor.emit import Emit
from agentvm_kernel.supervisor.lease import Lease
from agentvm_kernel.supervisor.lease_network import LeaseNetwork, configured, run_of
from agentvm_kernel.supervisor.messages import Blocked, Message
from agentvm_kernel.supervisor.network_messages import CassetteRequest, NetworkInfo, NetworkRequest
from agentvm_kernel.supervisor.snapshot_messages import RollbackPlan
from agentvm_kernel.supervisor.terms import Terms

Verdict = Literal["allowed", "blocked"]

_MADE: Final[dict[Verdict, type[NetworkConnectionAllowed | NetworkConnectionBlocked]]] = {
    "allowed": NetworkConnectionAllowed,
    "blocked": NetworkConnectionBlocked,
}

_REMEMBERED: Final = 32
"""Leases that are over, whose connections can still be listed."""

_PLANNED: Final = 20
"""Connections that the plan of a rollback lists."""


class Networks:
    """The supervisor's side of egress.

    Args:
        settings: What is configured.
        paths: The user's folders: for the log, the certificate authority and the list of secrets.
        audit: Takes note.
        metrics: Counts.

    Raises:
        ConfigError: something in the configuration names no host, or no address.
        HostError: the authority's file cannot be trusted.
    """

    def __init__(self, settings: Network, paths: Paths, audit: AuditLog, metrics: Metrics) -> None:
        configured(settings)
        self._secrets = SecretStore(paths.state, paths.tag)
        self._authority = Authority.of(paths.state)
        self._inspection = Inspection(self._authority, self._secrets)
        self._settings = settings
        self._cards = settings.nat  # their network does not come or go later
        self._audit = audit
        self._restraint = Restraint()
        self._metrics = metrics
        self._log = ConnectionLog(paths.state / "connections", self._note)
        self._card_reports = CardReports(self._log, self._find)
        self._resolver = Resolver()
        self._gateway = self._make_gateway(settings)
        self._leases: WeakValueDictionary[str, LeaseNetwork] = WeakValueDictionary()
        self._over: deque[str] = deque()
        self._teller: asyncio.Task[None] | None = None

    def open(self, reports: int | None = None) -> None:
        """Begin to tell sessions what was refused.

        Args:
            reports: The group in which the kernel reports what network cards were refused, if it does.
        """
        if reports is not None:
            self._card_reports.open(reports)
        self._teller = asyncio.create_task(self._tell_refusals(), name="network-refusals")

    async def close(self) -> None:
        """End what goes on; the leases are closed already."""
        if self._teller is not None:
            self._teller.cancel()
            await asyncio.wait([self._teller])
        self._card_reports.close()
        self._resolver.close()
        self._log.close()

    def _find(self, address: str) -> Access | None:
        return next(filter(None, (network.find(address) for network in list(self._leases.values()))), None)

    def join(self, terms: Terms, tell: Callable[[Message], None]) -> LeaseNetwork:
        """Make the network of a lease that begins.

        Args:
            terms: The lease's.
            tell: Tells its session.

        Raises:
            NameRefusedError: what was asked for with the lease names no host.
        """
        network = LeaseNetwork(terms, self._settings, self._serve, self._guest_settings, tell, cards=self._cards)
        network.on_limit = self._metrics.limit_violation
        self._leases[terms.id] = network
        return network

    async def leave(self, lease: Lease) -> None:
        """End what a lease that is over has of the network; what it did is remembered for a while."""
        await lease.network.close()
        for verdict in _MADE:
            self._tell_left_out(lease.subject, verdict)
            self._restraint.forget((lease.terms.id, verdict))
        self._over.append(lease.terms.id)
        if len(self._over) > _REMEMBERED:
            self._log.forget(self._over.popleft())

    def configure(self, settings: Network) -> None:
        """Take over what is configured now; connections that are open stay.

        Raises:
            ConfigError: something names no host, or no address; what held before holds on.
        """
        configured(settings)
        self._gateway = self._make_gateway(settings)
        self._settings = settings
        for network in list(self._leases.values()):
            network.configure(settings)

    def info(self, lease: Lease) -> NetworkInfo:
        """Return what a lease may reach, and what it has done."""
        return lease.network.info(lease.vm)

    async def change(self, lease: Lease, wanted: NetworkRequest) -> NetworkInfo:
        """Change a lease's own part of its policy.

        Raises:
            AgentVMError: it may not be changed so; see `LeaseNetwork.change`.
        """
        async with lease.turn:
            forks = [fork.vm for fork in lease.forks.values() if not fork.is_resting]
            await lease.network.change(wanted, [lease.vm, *forks])
        what = f"network: {wanted.model_dump_json()}"
        self._audit.record(ConfigurationChanged(**lease.subject, what=what))
        return self.info(lease)

    async def play(self, lease: Lease, wanted: CassetteRequest) -> NetworkInfo:
        """Record what inspected hosts say to a lease's VM, or replay it.

        Raises:
            CassetteError: the recording cannot be made or read.
        """
        begin = {"record": Cassette.record, "replay": Cassette.replay}.get(wanted.action)
        cassette = await asyncio.to_thread(begin, Path(wanted.folder), wanted.name) if begin else None
        lease.network.play(cassette)
        what = f"cassette: {wanted.action} {wanted.name}".rstrip()
        self._audit.record(ConfigurationChanged(**lease.subject, what=what))
        return self.info(lease)

    async def tell(self, lease: str | None, emit: Emit, *, follow: bool) -> None:
        """Tell of the newest connections, and of those that come.

        Args:
            lease: Id of the lease; None for all of them.
            emit: Is told.
            follow: Go on.
        """
        with self._log.subscribe(lease) as events:
            for connection in self._log.all() if lease is None else self._log.of(lease):
                emit(connection)
            if not follow:
                return
            async for connection in events:
                emit(connection)
                await emit.sent()

    def subscribe(self) -> Subscription:
        """Return what all leases' VMs connect to from now on."""
        return self._log.subscribe(None)

    def with_connections(self, lease: Lease, plan: RollbackPlan) -> RollbackPlan:
        """Return the plan of a rollback with what was sent since its target was taken."""
        since = [one for one in self._log.of(lease.terms.id, plan.target.created) if one.verdict == "allowed"]
        return plan.model_copy(update={"connections": tuple(since[-_PLANNED:]), "connection_count": len(since)})

    def _make_gateway(self, settings: Network) -> Gateway:
        forbidden = Forbidden(parse_reachable(settings.reachable))
        return Gateway(self._log, self._resolver, forbidden, inspector=self._inspection)

    def _guest_settings(self, policy: Policy) -> NetworkSettings:
        """Return what guests are told: the authority only where it signs for a host."""
        environment = self._secrets.environment()
        is_needed = environment or any(rule.inspect for rule in policy.rules)
        return NetworkSettings(self._authority.pem if is_needed else None, environment)

    async def _serve(self, access: Access, opening: Opening, channel: Channel) -> None:
        await self._gateway.serve(access, opening, channel)

    def _note(self, connection: Connection) -> None:
        """Take a verdict into the audit log, and count it."""
        verdict: Verdict = "blocked" if connection.verdict == "refused" else "allowed"
        self._metrics.connection_attempt(allowed=verdict == "allowed", count=connection.count)
        network = self._leases.get(connection.session)
        subject: Subject = {
            "vm": connection.vm, "lease": connection.session, "notebook": network.notebook if network else ""
        }  # fmt: skip
        if not self._restraint.admits((connection.session, verdict)):
            return
        self._tell_left_out(subject, verdict)
        self._audit.record(
            _MADE[verdict](
                **subject, run=run_of(connection.cell), name=claimed(connection.name), address=connection.address,
                port=connection.port, rule=connection.rule, reason=claimed(connection.reason), count=connection.count,
            )
        )  # fmt: skip

    def _tell_left_out(self, subject: Subject, verdict: Verdict) -> None:
        """Note in the audit log how many connections are not in it, if any are not."""
        if count := self._restraint.take_left_out((subject["lease"], verdict)):
            self._audit.record(ConnectionsLeftOut(**subject, verdict=verdict, count=count))

    async def _tell_refusals(self) -> None:
        with self._log.subscribe(None) as events:
            async for connection in events:
                network = self._leases.get(connection.session)
                if network is not None and connection.verdict == "refused":
                    _tell(network, connection)


def _tell(network: LeaseNetwork, connection: Connection) -> None:
    run, name = run_of(connection.cell), connection.name or connection.address
    if network.is_news(run, name, connection.port):
        network.tell(Blocked(run=run, name=name, port=connection.port, reason=connection.reason, hint=connection.hint))
