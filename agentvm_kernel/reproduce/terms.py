"""Under what terms a leg is run: the recorded profile, limits and policy, as far as the user's own configuration gives.

A record may be anybody's. So what it says only ever lowers a limit, or closes the network; what it would raise or open
is told and left as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from agentvm_kernel.egress.names import NameRefusedError, Pattern
from agentvm_kernel.profiles import LIMIT_WORDS, Limits, Profile, Sizes
from agentvm_kernel.reproduce.error import ReproduceError
from agentvm_kernel.reproduce.recorded import RecordedSession, as_object, network_of, rules_of
from agentvm_kernel.settings import Settings
from agentvm_kernel.supervisor.lease_network import configured, summary_of
from agentvm_kernel.supervisor.messages import NetworkMode

_UNLIMITED: Final = ("lifetime", "cpu", "user_memory_mib", "disk_mb_per_second", "disk_iops")
"""What need not be limited; records leave it out then."""

_CLOSED: Final[tuple[NetworkMode, ...]] = ("isolated", "filtered", "record-only")
"""The modes, the most closed first."""

_UNITS: Final = {"vcpus": "{} CPUs", "memory_mib": "{} MiB of memory", "disk_gb": "{} GB of disk"}

_HOSTS: Final = 20
_RULES: Final = 35
"""Characters of a policy's digest that are shown."""


@dataclass(frozen=True)
class Terms:
    """They.

    Attributes:
        profile: Name of the profile; empty for the configured one.
        mode: What the network is to be; None for the configured mode.
        deny: Hosts that are refused besides.
        limits: Words for `%limits`, each of which lowers one.
        most: The mode that the user's own configuration gives.
        sizes: How large the machine is to be, where that is less than the profile gives.
        notes: What of the recorded terms is not granted, a line each.
    """

    profile: str = ""
    mode: NetworkMode | None = None
    deny: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    most: NetworkMode = "isolated"
    sizes: Sizes = field(default_factory=Sizes)
    notes: tuple[str, ...] = ()


def terms_of(
    session: RecordedSession | None, profile: str, settings: Settings, allow: Sequence[str], file: Path
) -> Terms:
    """Return the terms of one machine.

    Args:
        session: What is recorded of it, if anything.
        profile: Name of the profile that is wanted; empty for the configured one.
        settings: The user's own configuration.
        allow: Hosts that the user allows besides.
        file: Where the configuration is.

    Raises:
        ReproduceError: the profile is none that is configured.
    """
    known = settings.known_profiles
    if profile and profile not in known:
        raise ReproduceError(
            f"The notebook was run with the profile {profile!a:.70}, which is not configured here.",
            f"Choose another with --profile: {', '.join(sorted(known))}.",
        )
    name, own = settings.find_profile(profile)
    most: NetworkMode = "isolated" if own.network == "none" else settings.network.mode
    if session is None:
        return Terms(profile, most=most)
    mode, said = _mode(session, most, settings)
    denied = _denied(session)
    sizes = _sizes(session, own)
    told = [*_sizes_told(session, name, own, sizes, file)]
    own = own.reduced(sizes)
    notes = [*told, *_raised(session, own), said, *_rules(session, settings, allow, denied)]
    return Terms(profile, mode, denied, tuple(_lowered(session, own)), most, sizes, tuple(filter(None, notes)))


def _is_closer(mode: NetworkMode, than: NetworkMode) -> bool:
    return _CLOSED.index(mode) < _CLOSED.index(than)


def may_be(mode: str, most: NetworkMode) -> bool:
    """Return whether a mode is no more open than the user's own configuration gives.

    Args:
        mode: Any text.
        most: What the configuration gives.
    """
    return mode == most or any(one == mode and _is_closer(one, most) for one in _CLOSED)


# Limits


def _recorded(session: RecordedSession) -> dict[str, Any]:
    """Return the recorded limits that are valid; None for those that were not limited."""
    said = as_object(session.limits)
    if not said:
        return {}
    found: dict[str, Any] = {}
    for name in Limits.model_fields:
        if name not in said:
            if name in _UNLIMITED:
                found[name] = None
            continue
        try:
            Limits.model_validate({name: said[name]}, strict=True)
        except ValidationError:
            continue
        found[name] = said[name]
    return found


def _ceiling(name: str, own: Profile) -> float | None:
    """Return what the user's own profile gives; None for no limit."""
    whole = {"cpu": own.vcpus, "user_memory_mib": own.memory_mib}
    given: float | None = getattr(own, name)
    return whole.get(name) if given is None else given


def _lowered(session: RecordedSession, own: Profile) -> Iterator[str]:
    for name, value in _recorded(session).items():
        most = _ceiling(name, own)
        if value is not None and (most is None or value < most):
            yield _word(name, value)


def _raised(session: RecordedSession, own: Profile) -> Iterator[str]:
    higher = []
    for name, value in _recorded(session).items():
        given = getattr(own, name)
        most = _ceiling(name, own)
        if given is not None and most is not None and (value is None or value > most):
            higher.append(f"{_word(name, value)} (here {_word(name, most).partition('=')[2]})")
    if higher:
        yield f"Not granted, for the profile here gives less: {', '.join(higher)}."


def _word(name: str, value: float | None) -> str:
    word, unit = LIMIT_WORDS[name]
    return f"{word}={'none' if value is None else f'{value:.12g}{unit}'}"


# The machine


def _sizes(session: RecordedSession, own: Profile) -> Sizes:
    """Return the recorded sizes that are less than the user's own."""
    found: dict[str, int] = {}
    for name in Sizes.model_fields:
        value = getattr(session, name)
        with suppress(ValidationError):
            if Sizes.model_validate({name: value}) and value < getattr(own, name):
                found[name] = value
    return Sizes(**found)


def _sizes_told(session: RecordedSession, name: str, own: Profile, sizes: Sizes, file: Path) -> Iterator[str]:
    """Say in what the machine is another than that of the profile, or than the recorded one."""
    recorded = {field: value for field in Sizes.model_fields if (value := getattr(session, field))}
    if lowered := sizes.model_dump(exclude_none=True):
        yield f"The machine is smaller than the profile {name} has it, as recorded: {_in_words(lowered)}."
    if larger := {field: value for field, value in recorded.items() if value > getattr(own, field)}:
        lines = ", ".join(
            f"{field} = {max(recorded.get(field, 0), getattr(own, field))}" for field in Sizes.model_fields
        )
        yield (
            f"Not granted: the recorded machine had {_in_words(larger)} "
            f"(here {_in_words({field: getattr(own, field) for field in larger})}); "
            f"[profiles.{name}] with {lines} in {file} gives it."
        )
    if other := {field: value for field, value in recorded.items() if field not in {*lowered, *larger}
                 and value != getattr(own, field)}:  # fmt: skip
        yield f"Not granted: no machine has {_in_words(other)}."


def _in_words(sizes: Mapping[str, int]) -> str:
    return ", ".join(_UNITS[field].format(value) for field, value in sizes.items())


# The network


def _mode(session: RecordedSession, most: NetworkMode, settings: Settings) -> tuple[NetworkMode | None, str]:
    """Return which mode is to be asked for, and what there is to say of it."""
    recorded = network_of(session).mode
    mode = next((one for one in _CLOSED if one == recorded), None)
    if mode is None or mode == most:
        return None, ""
    if not may_be(mode, most):
        return None, f"Not granted: the network was {mode}, and is {most} here."
    if mode != "isolated" and not settings.network.directives:
        return None, f"The network was {mode}, and is {most} here, which the configuration lets no notebook change."
    return mode, ""


def _denied(session: RecordedSession) -> tuple[str, ...]:
    """Return the hosts that were refused besides, as far as they are any."""
    found = []
    for host in network_of(session).denied:
        with suppress(NameRefusedError):
            found.append(str(Pattern.parse(host)))
    return tuple(found)


def _rules(session: RecordedSession, settings: Settings, allow: Sequence[str], denied: Sequence[str]) -> Iterator[str]:
    """Say what the recorded machine could reach that this one cannot, and whether the rules were others."""
    network = network_of(session)
    own = {*allow, *settings.network.allow}
    if others := [host for host in network.allowed if host not in own]:
        yield (
            f"The recorded machine could also reach {', '.join(others[:_HOSTS])!a:.600}: --allow HOST allows one, "
            "--allow-recorded all."
        )
    policy = configured(settings.network)
    for host in allow:
        policy = policy.allow(Pattern.parse(host))
    for host in denied:
        policy = policy.deny(Pattern.parse(host))
    now = rules_of(summary_of(policy))
    if network.rules and network.mode != "isolated" and network.rules != now:
        yield f"The policy had other rules than now: {network.rules[:_RULES]}…, now {now[:_RULES]}…."
