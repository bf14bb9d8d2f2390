"""Says in one line what stands in an event."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Final

from agentvm_kernel.observe.fields import Event
from agentvm_kernel.terminal import plain

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_LONGEST: Final = 200
_ELSEWHERE: Final = frozenset({"event", "vm", "notebook", "lease", "code"})


def describe(event: Event, without: Collection[str] = ()) -> str:
    """Return an event's fields, but for those that have columns of their own wherever events are listed.

    Args:
        event: The event; what a guest claims is put in quotes and called so.
        without: Names of more fields that are left out.
    """
    shown = {key: value for key, value in event.fields().items() if key not in _ELSEWHERE and key not in without}
    return "  ".join(f"{key}={_text(value)}" for key, value in shown.items())


def _text(value: object) -> str:
    if isinstance(value, dict) and "claimed" in value:
        # Quoted so that no text of a guest's can look like more fields.
        return f"claimed {json.dumps(plain(str(value['claimed'])[:_LONGEST]), ensure_ascii=False)}"
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:12] if _DIGEST.fullmatch(text) else plain(text[:_LONGEST])
