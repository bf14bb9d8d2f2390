"""The hosts that a recorded machine could reach besides what ships: `--allow-recorded` grants them in one word."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from agentvm_kernel.egress.names import NameRefusedError, Pattern
from agentvm_kernel.kernel.directive import DirectiveError, allowed_hosts
from agentvm_kernel.reproduce.error import ReproduceError
from agentvm_kernel.reproduce.path import call_of, plan
from agentvm_kernel.reproduce.recorded import kept_session, network_of
from agentvm_kernel.reproduce.source import Source

MOST: Final = 200
"""Hosts; a reader has to look through them."""

_LONGEST: Final = 300


def recorded_hosts(source: Source) -> dict[str, str]:
    """Return the hosts that were allowed, as they were written, and how they are read.

    These are the session's own from its beginning, of the record or else of the notebook's metadata, and those that the
    notebook's cells allow.

    Args:
        source: What is to be run again.

    Raises:
        ReproduceError: they are more than anybody looks through.
    """
    found: dict[str, str] = {}
    for text in _named(source):
        with suppress(NameRefusedError):  # nothing can be reached by it
            found[text] = str(Pattern.parse(text))
    if len(found) > MOST:
        raise ReproduceError(
            f"The record allows {len(found)} hosts; --allow-recorded allows {MOST} at most.",
            "Look at them, and name those that you trust with --allow.",
        )
    return found


def _named(source: Source) -> Iterator[str]:
    for leg in plan(source.cells, source.record).legs:
        yield from network_of(leg.session or kept_session(source.kept)).allowed
        for step in leg.steps:
            call = call_of(step.source)
            if call and call.name == "net" and call.words[:1] == ("allow",):
                yield from (word for word in call.words[1:] if len(word) <= _LONGEST)
            with suppress(DirectiveError):
                yield from (word for word in allowed_hosts(step.source) if len(word) <= _LONGEST)
