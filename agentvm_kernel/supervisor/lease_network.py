"""The network of one lease: its policy, and the tunnels to the VMs that it has."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, ClassVar, Final

from agentvm_kernel.egress.access import Access, AccessLimits, Counters
from agentvm_kernel.egress.cassette import Cassette
from agentvm_kernel.egress.channel import Channel, Opening
from agentvm_kernel.egress.defaults import default_rules
from agentvm_kernel.egress.names import NameRefusedError, Pattern
from agentvm_kernel.egress.policy import Mode, Policy, Source
from agentvm_kernel.egress.tunnel import NetworkSettings, Tunnel
from agentvm_kernel.errors import AgentVMError, ConfigError
from agentvm_kernel.settings import Network
from agentvm_kernel.snapshots.notes import Cell
from agentvm_kernel.supervisor.messages import Message
from agentvm_kernel.supervisor.network_messages import CellRequest, NetworkInfo, NetworkRequest, RuleInfo
from agentvm_kernel.supervisor.terms import Terms
from agentvm_kernel.vm import clone

_log = logging.getLogger(__name__)

_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 5.0
_CODE: Final = 60
_MOST_TOLD: Final = 50
"""Refusals that a cell is told of."""

Serve = Callable[[Access, Opening, Channel], Coroutine[Any, Any, None]]


class NetworkLockedError(AgentVMError):
    """The configuration does not let cells change what their notebook reaches."""

    code: ClassVar[str] = "network_locked"


class NoNetworkError(AgentVMError):
    """The lease's profile has no network."""

    code: ClassVar[str] = "no_network"


class LeaseNetwork:
    """What a lease may reach, whichever VM it has. Nobody waits for a tunnel: it is dialled in the background.

    Args:
        terms: The lease's.
        settings: What is configured.
        serve: Serves a connection.
        guest_settings: Returns what guests are told where a policy holds.
        cards: Its VMs get network cards.

    Attributes:
        tell: Tells the lease's session.
        notebook: Whose it is.
        on_limit: Told of each time that a VM reached a limit of its network, with the limit's name.

    Raises:
        NameRefusedError: what was asked for with the lease names no host.
    """

    def __init__(
        self,
        terms: Terms,
        settings: Network,
        serve: Serve,
        guest_settings: Callable[[Policy], NetworkSettings],
        tell: Callable[[Message], None],
        *,
        cards: bool = False,
    ) -> None:
        self.tell = tell
        self.on_limit: Callable[[str], None] = lambda _: None
        self._id = terms.id
        self.notebook = terms.session
        self._profile = terms.resources.network
        self._settings = settings
        self._serve = serve
        self._guest_settings = guest_settings
        self._own = NetworkRequest(
            mode=terms.request.mode, allow=terms.request.allow, deny=terms.request.deny, inspect=terms.request.inspect
        )
        self._cell = CellRequest()
        self._told: set[tuple[int, str, int]] = set()
        self._accesses: dict[clone.VM, Access] = {}
        self._tunnels: dict[clone.VM, asyncio.Task[None]] = {}
        self._connected: dict[clone.VM, Tunnel] = {}
        self._has_cards = cards
        self._fitting: set[asyncio.Task[None]] = set()
        self._cassette: Cassette | None = None
        self._budget = Access(self._id, self.notebook, "", Policy())
        self._policy = self._make_policy(self._own, self._cell)

    @property
    def guest(self) -> clone.Network:
        """Whether programs in its VMs may hope for a network."""
        return "none" if self._policy.mode is Mode.ISOLATED else "filtered"

    @property
    def cell(self) -> Cell:
        """The cell that runs, or the last one."""
        return self._cell.cell

    def attach(self, vm: clone.VM) -> None:
        """Carry what a VM sends out, until the VM ends."""
        access = Access(self._id, self.notebook, vm.id, self._policy, self._limits(), cell=_label(self._cell.cell))
        # A session does not get more by forking.
        access.counters, access.spent = self._budget.counters, self._budget.spent
        access.room = self._budget.room
        access.cassette = self._cassette
        access.on_limit = self.on_limit
        access.tally = vm.tally
        self._accesses[vm] = access
        vm.ended.add_done_callback(lambda _: self._accesses.pop(vm, None))
        self._dial(vm)
        self._fit(vm)

    def woken(self, vm: clone.VM) -> None:
        """Do for a VM what was left undone while it rested: the network may have been turned off or on meanwhile.

        Args:
            vm: A VM of the lease that runs again.
        """
        if vm not in self._accesses:
            self.attach(vm)
            return
        self._dial(vm)
        self._fit(vm)

    def _fit(self, vm: clone.VM) -> None:
        """See to it, in the background, that a VM has a network card if it is to have one, and none otherwise.

        Args:
            vm: One that runs.
        """
        if self._has_cards:
            task = asyncio.create_task(_fit(vm, wanted=self.guest != "none"), name=f"card-{vm.id}")
            self._fitting.add(task)
            task.add_done_callback(self._fitting.discard)

    def find(self, address: str) -> Access | None:
        """Return the access of the VM whose network card has an address; ``None`` if none has it.

        Args:
            address: The address.
        """
        for vm, access in self._accesses.items():
            if vm.card is not None and vm.card.address == address:
                return access
        return None

    async def close(self) -> None:
        """Carry nothing any more."""
        await self._hang_up(list(self._tunnels))
        self.play(None)

    async def change(self, request: NetworkRequest, vms: Iterable[clone.VM]) -> None:
        """Change the lease's own part of the policy. No connection is cut but by turning the network off.

        Args:
            request: What it is from now on.
            vms: The VMs of the lease that run.

        Raises:
            NameRefusedError: something names no host.
            NetworkLockedError: cells may not change it.
            NoNetworkError: the profile has none.
            LinkError: a guest did not answer, and does without.
        """
        self._check(request)
        policy, before, inspect = self._make_policy(request, self._cell), self.guest, self._own.inspect
        self._own = request
        self._put(policy)
        if self.guest == before:
            if request.inspect != inspect:
                tunnels = [self._connected[vm] for vm in vms if vm in self._connected]
                await asyncio.gather(*(tunnel.configure(self._guest_settings(policy)) for tunnel in tunnels))
            return
        running = [vm for vm in vms if vm in self._accesses]
        if self.guest == "none":
            await self._hang_up(list(self._tunnels))
        await asyncio.gather(*(vm.restrict(self.guest) for vm in running))
        for vm in running:
            self._dial(vm)
        if self._has_cards:
            await asyncio.gather(*(_fit(vm, wanted=self.guest != "none") for vm in running))

    def play(self, cassette: Cassette | None) -> None:
        """Record into a cassette, or replay one, from now on; ``None`` for neither."""
        if self._cassette is not None:
            self._cassette.close()
        self._cassette = cassette
        for access in self._accesses.values():
            access.cassette = cassette

    def configure(self, settings: Network) -> None:
        """Take over what is configured now.

        Raises:
            NameRefusedError: something there names no host.
        """
        before, self._settings = self._settings, settings
        try:
            self._put(self._make_policy(self._own, self._cell))
        except AgentVMError:
            self._settings = before
            raise

    def set_cell(self, request: CellRequest) -> None:
        """Take note of which cell runs, and let it reach what it names.

        Raises:
            NameRefusedError: something names no host.
            NetworkLockedError: cells may not change what they reach.
        """
        if (request.cell, request.allow) == (self._cell.cell, self._cell.allow):
            return  # there was only something to tell of other cells
        if request.allow and not self._settings.directives:
            raise _locked()
        policy = self._policy
        if request.allow != self._cell.allow:
            policy = self._make_policy(self._own, request)
        self._cell = CellRequest(cell=request.cell, allow=request.allow)
        self._told.clear()
        self._put(policy)

    def is_news(self, run: int, name: str, port: int) -> bool:
        """Return whether the session has not been told yet that a host is refused to a cell, and take note of it.

        Args:
            run: The number of the cell's run.
            name: The host.
            port: The port.
        """
        key = (run, name, port)
        if key in self._told or len(self._told) >= _MOST_TOLD:
            return False
        self._told.add(key)
        return True

    def use(self, vm: clone.VM) -> tuple[Counters, int]:
        """Return what one of the lease's VMs has done by itself, and how many connections it has open."""
        access = self._accesses.get(vm)
        return (Counters(), 0) if access is None else (access.own, access.open)

    def hosts(self, vm: clone.VM, since: float) -> list[str]:
        """Return the hosts with which one of the lease's VMs has spoken, the first first.

        Args:
            vm: It.
            since: Since when, seconds on the monotonic clock.
        """
        access = self._accesses.get(vm)
        return [] if access is None else [host for host, last in access.hosts.items() if last >= since]

    def info(self, vm: clone.VM) -> NetworkInfo:
        """Return what holds, and what was done.

        Args:
            vm: The VM that the lease has.
        """
        counters, limits = self._budget.counters, self._limits()
        return NetworkInfo(
            mode=self._policy.mode.value, profile=self._profile, connected=vm in self._connected,
            directives=self._settings.directives,
            rules=tuple(
                RuleInfo(
                    pattern=str(rule.pattern), verdict=rule.verdict.value, source=rule.source.value,
                    inspect=rule.inspect,
                )
                for rule in self._policy.rules
            ),
            open=sum(access.open for access in self._accesses.values()),
            allowed=counters.allowed, refused=counters.refused, failed=counters.failed,
            bytes_sent=counters.bytes_sent, bytes_received=counters.bytes_received,
            max_connections=limits.connections, max_bytes=limits.max_bytes,
            cassette=_said(self._cassette), card="" if vm.card is None else vm.card.address,
        )  # fmt: skip

    @property
    def summary(self) -> str:
        """What holds, in words; see `summary_of`."""
        return summary_of(self._policy)

    def _check(self, request: NetworkRequest) -> None:
        own = self._own
        if self._profile == "none" and request.mode not in {None, "isolated"}:
            raise NoNetworkError("This notebook's profile has no network.", "%vm profile NAME starts with another.")
        widens = set(request.allow) - set(own.allow) or set(own.deny) - set(request.deny)
        if not self._settings.directives and (widens or request.mode not in {own.mode, "isolated"}):
            raise _locked()

    def _make_policy(self, own: NetworkRequest, cell: CellRequest) -> Policy:
        settings = self._settings
        mode = Mode.ISOLATED if self._profile == "none" else Mode(own.mode or settings.mode)
        policy = replace(configured(settings), mode=mode)
        policy = _with(policy, Source.SESSION, own.allow, own.deny)
        policy = _with(policy, Source.CELL, cell.allow, ())
        return _inspected(policy, (*settings.inspect, *own.inspect))

    def _limits(self) -> AccessLimits:
        settings = self._settings
        rate = settings.mb_per_second
        return AccessLimits(
            settings.connections, settings.connections_per_second, None if rate is None else rate * 10**6,
            settings.max_bytes,
        )  # fmt: skip

    def _put(self, policy: Policy) -> None:
        self._policy = policy
        for access in self._accesses.values():
            access.policy, access.cell, access.limits = policy, _label(self._cell.cell), self._limits()

    def _dial(self, vm: clone.VM) -> None:
        if self.guest == "none" or vm in self._tunnels or vm.ended.done():
            return
        task = self._tunnels[vm] = asyncio.create_task(self._keep(vm, self._accesses[vm]), name=f"tunnel-{vm.id}")
        task.add_done_callback(lambda _: self._tunnels.pop(vm, None))

    async def _hang_up(self, vms: Iterable[clone.VM]) -> None:
        tasks = [self._tunnels[vm] for vm in vms]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep(self, vm: clone.VM, access: Access) -> None:
        """Have a tunnel to a VM's forwarder, again when it was lost, until the VM ends."""
        loop, pause = asyncio.get_running_loop(), _FIRST_PAUSE
        while not vm.ended.done():
            began = loop.time()
            try:
                await self._carry(vm, access)
            except AgentVMError as error:
                _log.info("no tunnel to %s: %s", vm.id, error.message)
            # The guest starts its forwarder again when it died; one that keeps dying must not cost much.
            pause = _FIRST_PAUSE if loop.time() - began > _LONGEST_PAUSE else min(2 * pause, _LONGEST_PAUSE)
            await asyncio.wait([vm.ended], timeout=pause)

    async def _carry(self, vm: clone.VM, access: Access) -> None:
        tunnel = await Tunnel.open(
            vm.egress, vm.key, vm.epoch, partial(self._serve, access), self._guest_settings(self._policy),
            inbox=vm.open_inbox(),
        )  # fmt: skip
        self._connected[vm] = tunnel
        try:
            await asyncio.wait((tunnel.lost, vm.ended), return_when=asyncio.FIRST_COMPLETED)
        finally:
            del self._connected[vm]
            await tunnel.close()


async def _fit(vm: clone.VM, *, wanted: bool) -> None:
    """Give a VM its network card, or take it away; where the guest does not help, the card's link is cut at least."""
    try:
        await (vm.plug() if wanted else vm.unplug())
    except AgentVMError as error:
        if not vm.ended.done():
            _log.warning("the network card of %s: %s", vm.id, error)


@lru_cache(maxsize=4)
def configured(settings: Network) -> Policy:
    """Return the policy of sessions that add nothing of their own; remembered, because leases begin with it.

    Args:
        settings: What is configured.

    Raises:
        ConfigError: something there names no host.
    """
    policy = Policy(Mode(settings.mode), default_rules() if settings.defaults else ())
    try:
        return _inspected(_with(policy, Source.CONFIGURATION, settings.allow, settings.deny), settings.inspect)
    except NameRefusedError as error:
        raise ConfigError(f"[network] {error.message}", error.hint) from error


def summary_of(policy: Policy) -> str:
    """Return what a policy says, in words: the mode, a digest of all rules, and those that are not this package's own.

    Args:
        policy: It.
    """
    rules = [f"{rule.verdict.value} {rule.pattern}" for rule in policy.rules]
    own = [text for text, rule in zip(rules, policy.rules, strict=True) if rule.source is not Source.DEFAULT]
    digest = hashlib.sha256("\n".join(rules).encode()).hexdigest()
    return "; ".join([policy.mode.value, f"{len(rules)} rules, SHA-256 {digest}", *own])


def _with(policy: Policy, source: Source, allow: Iterable[str], deny: Iterable[str]) -> Policy:
    for host in allow:
        policy = policy.allow(Pattern.parse(host), source)
    for host in deny:
        policy = policy.deny(Pattern.parse(host), source)
    return policy


def _inspected(policy: Policy, hosts: Iterable[str]) -> Policy:
    """Return a policy whose rules say which hosts are inspected."""
    patterns = [Pattern.parse(host) for host in hosts]
    rules = (
        replace(rule, inspect=True) if any(_covers(pattern, rule.pattern) for pattern in patterns) else rule
        for rule in policy.rules
    )
    return replace(policy, rules=tuple(rules)) if patterns else policy


def _covers(pattern: Pattern, rule: Pattern) -> bool:
    return (pattern.name, pattern.wildcard) == (rule.name, rule.wildcard) or pattern.matches(rule.name)


def _said(cassette: Cassette | None) -> str:
    if cassette is None:
        return ""
    done = f"recording, {cassette.exchanges} so far" if cassette.recording else f"replaying, {cassette.exchanges} left"
    return f"{cassette.path.name} ({done})"


def _label(cell: Cell) -> str:
    """Return how the log names a cell: the number of its run, and its first line."""
    lines = cell.code.strip().splitlines() or [""]
    return f"{cell.run} {lines[0][:_CODE]}".rstrip() if cell.run else ""


def run_of(label: str) -> int:
    """Return the number of a cell's run.

    Args:
        label: How the log names it.
    """
    return int(label.partition(" ")[0] or 0)


def _locked() -> NetworkLockedError:
    return NetworkLockedError(
        "The configuration does not let cells change what they reach.", "It says directives = false in [network]."
    )
