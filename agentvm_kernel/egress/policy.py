"""Which hosts a VM may talk to: rules, and what they say about a name and a port."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from agentvm_kernel.egress.names import Pattern

USUAL_PORTS: Final = frozenset({22, 80, 443, 9418})
"""Ports of rules that name none: ssh, http, https, git."""


class Mode(StrEnum):
    """What holds for names that no rule is about."""

    FILTERED = "filtered"
    ISOLATED = "isolated"
    RECORD_ONLY = "record-only"


class Verdict(StrEnum):
    """What a rule says."""

    ALLOW = "allow"
    DENY = "deny"


class Source(StrEnum):
    """Where a rule comes from."""

    DEFAULT = "default"
    CONFIGURATION = "configuration"
    SESSION = "session"
    CELL = "cell"


@dataclass(frozen=True)
class Rule:
    """One line of a policy.

    Attributes:
        pattern: Which hosts and ports.
        verdict: Whether they are allowed or denied.
        source: Where the rule comes from.
        max_bytes: What may be sent to and received from all these hosts together in a session; None for no limit.
        inspect: Let the gateway look into TLS (its own certificate authority; see `Inspector`).
        tls_name_required: TLS is let through only if its ClientHello openly names the decided host, and ports 80 and
            443 carry only HTTP and TLS. False lets hidden and absent server names and other protocols pass; a *wrong*
            name never passes.
    """

    pattern: Pattern
    verdict: Verdict = Verdict.ALLOW
    source: Source = Source.SESSION
    max_bytes: int | None = None
    inspect: bool = False
    tls_name_required: bool = True

    @property
    def ports(self) -> frozenset[int]:
        """The ports that the rule is about."""
        return USUAL_PORTS if self.pattern.ports is None else self.pattern.ports

    def __str__(self) -> str:
        return f"{self.verdict} {self.pattern} ({self.source})"


@dataclass(frozen=True)
class Decision:
    """What a policy says about a connection.

    Attributes:
        name: The normalised name; None for a raw address.
        port: The port.
        allowed: Whether it may be made.
        rule: The rule that decided; None if none is about it.
        reason: Why, one sentence.
        hint: What a user can do about a refusal, one sentence; empty for what is allowed.
    """

    name: str | None
    port: int
    allowed: bool
    rule: Rule | None
    reason: str
    hint: str = ""


@dataclass(frozen=True)
class Policy:
    """What one session may reach. A value: changes make a new one.

    Attributes:
        mode: What holds for names that no rule is about.
        rules: The rules; their order means nothing, deny wins over allow.
    """

    mode: Mode = Mode.FILTERED
    rules: tuple[Rule, ...] = field(default=())

    def allow(self, pattern: Pattern, source: Source = Source.SESSION, **options: bool | int | None) -> Policy:
        """Return this policy with one more rule that allows; a denial of the same pattern and source goes.

        Args:
            pattern: Which hosts and ports.
            source: Where the rule comes from.
            **options: ``max_bytes``, ``inspect``, ``tls_name_required`` of the rule.
        """
        return self._with(Rule(pattern, Verdict.ALLOW, source, **options))  # type: ignore[arg-type]

    def deny(self, pattern: Pattern, source: Source = Source.SESSION) -> Policy:
        """Return this policy with one more rule that denies; a permission of the same pattern and source goes.

        Args:
            pattern: Which hosts and ports.
            source: Where the rule comes from.
        """
        return self._with(Rule(pattern, Verdict.DENY, source))

    def without(self, source: Source) -> Policy:
        """Return this policy without the rules of one source, such as the last cell's."""
        return replace(self, rules=tuple(rule for rule in self.rules if rule.source is not source))

    def plus(self, rules: Iterable[Rule]) -> Policy:
        """Return this policy with more rules."""
        return replace(self, rules=(*self.rules, *rules))

    def decide(self, name: str | None, port: int) -> Decision:
        """Decide about a connection.

        Args:
            name: The normalised name; None for a raw address.
            port: The port.
        """
        if self.mode is Mode.ISOLATED:
            return _refusal(name, port, "The network is off.", "%net mode filtered turns it on.")
        if name is None:
            return _refusal(name, port, "Raw addresses are never allowed.", "Use the host's name.")
        about = [rule for rule in self.rules if rule.pattern.matches(name)]
        rules = [rule for rule in about if port in rule.ports]
        denial = next((rule for rule in rules if rule.verdict is Verdict.DENY), None)
        if denial is not None:
            return _refusal(name, port, f"{name} is denied by the rule {denial}.", _undo(denial), denial)
        if self.mode is Mode.RECORD_ONLY:
            return Decision(name, port, True, next(iter(rules), None), "Every name is allowed and written down.")
        permission = max(rules, key=_order, default=None)
        if permission is not None:
            return Decision(name, port, True, permission, f"Allowed by the rule {permission}.")
        known = any(rule.verdict is Verdict.ALLOW for rule in about)
        wanted = f"{name}:{port}" if known or port not in USUAL_PORTS else name
        reason = f"Port {port} of {name} is not allowed." if known else f"{name} is not allowed."
        return _refusal(name, port, reason, f"%net allow {wanted}")

    def _with(self, rule: Rule) -> Policy:
        kept = (old for old in self.rules if (old.pattern, old.source) != (rule.pattern, rule.source))
        return replace(self, rules=(*kept, rule))


def _refusal(name: str | None, port: int, reason: str, hint: str, rule: Rule | None = None) -> Decision:
    return Decision(name, port, False, rule, reason, hint)


def _undo(denial: Rule) -> str:
    if denial.source is Source.SESSION:
        return f"%net allow {denial.pattern} takes that back."
    return "That is not for this session to change: see [network] deny in the configuration."


def _order(rule: Rule) -> tuple[int, int]:
    """Prefer the rule that names the host best, and of those the nearest to the user."""
    exact = {"": 2, "*": 1, "**": 0}[rule.pattern.wildcard]
    return exact, list(Source).index(rule.source)
