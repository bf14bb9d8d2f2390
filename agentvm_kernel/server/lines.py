"""The magics that a page's wishes are typed as: one line each, but for the code of forks."""

from __future__ import annotations

import shlex

from agentvm_kernel.profiles import LIMIT_WORDS
from agentvm_kernel.server.bodies import (
    AdoptBody,
    ForkBody,
    LimitsBody,
    NetworkBody,
    SnapshotBody,
    ToBody,
    TravelBody,
    VMBody,
)


def snapshot(body: SnapshotBody) -> str:
    """Return the magic that takes a snapshot."""
    words = ["%snapshot"]
    if body.label:
        words.append(body.label)
    if body.text.strip():
        # With the space in front it is no option, whatever it is.
        words += ["-m", shlex.quote(f" {body.text.strip()}")]
    if body.now:
        words.append("--now")
    return " ".join(words)


def rollback(body: ToBody) -> str:
    """Return the magic that goes back."""
    return f"%rollback {body.to}"


def fork(body: ForkBody) -> str:
    """Return the magic that runs code in clones, with the code below it."""
    timeout = "" if body.timeout is None else f" --timeout {body.timeout}"
    return f"%%fork {body.count} --randomness {body.randomness}{timeout}\n{body.code}"


def adopt(body: AdoptBody) -> str:
    """Return the magic that goes on in a fork."""
    return f"%adopt {body.fork}" if body.of is None else f"%adopt {body.fork} --of {body.of}"


def network(body: NetworkBody) -> list[str]:
    """Return the magics that deny and allow hosts."""
    wanted = (("deny", body.deny), ("allow", body.allow))
    return [f"%net {verb} {' '.join(hosts)}" for verb, hosts in wanted if hosts]


def limits(body: LimitsBody) -> str:
    """Return the magic that changes limits."""
    words = [_limit(name, getattr(body, name)) for name in sorted(body.model_fields_set)]
    return " ".join(["%limits", *words])


def travel(body: TravelBody) -> str:
    """Return the magic that switches time travel."""
    return f"%timetravel {'on' if body.on else 'off'}"


def machine(body: VMBody) -> str:
    """Return the magic that does something with the whole VM."""
    return f"%vm {body.do}"


def _limit(name: str, value: float | None) -> str:
    magic, unit = LIMIT_WORDS[name]
    if value is None:
        return f"{magic}=none"
    number = f"{value:.6f}".rstrip("0").rstrip(".")
    return f"{magic}={number}{unit}"
