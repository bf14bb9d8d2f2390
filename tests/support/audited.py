"""What stands in an audit log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def audited(state: Path, *events: str) -> list[dict[str, Any]]:
    """Return the records of a supervisor, oldest first.

    Args:
        state: Its state folder.
        events: Only these.
    """
    files = sorted((state / "audit").glob("*-*-*.jsonl"))
    records = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [record for record in records if not events or record["event"] in events]
