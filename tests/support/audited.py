"""What stands in an audit log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kernel_client import wait_until


def audited(state: Path, *events: str) -> list[dict[str, Any]]:
    """Return the records of a supervisor, oldest first.

    Args:
        state: Its state folder.
        events: Only these.
    """
    files = sorted((state / "audit").glob("*-*-*.jsonl"))
    records = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [record for record in records if not events or record["event"] in events]


def audited_soon(state: Path, count: int, *events: str) -> list[dict[str, Any]]:
    """Return the same, once there are that many: what happens is written down a moment later.

    Args:
        state: The supervisor's state folder.
        count: How many.
        events: Only these.
    """
    wait_until(lambda: len(audited(state, *events)) >= count, f"{count} of {', '.join(events)} in the audit log")
    return audited(state, *events)
