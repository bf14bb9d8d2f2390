"""The audit log is append-only, chained, private and bounded per event."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from agentvm_kernel.observe.audit import AuditLog


def test_each_line_carries_the_digest_of_the_one_before_over_restarts(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    for run in range(2):
        log = AuditLog(path)
        log.record("lease_acquired", vm=f"vm-{run}")
        log.record("lease_released", vm=f"vm-{run}", reason="x" * 10_000)
        log.close()
    lines = path.read_bytes().splitlines()
    entries = [json.loads(line) for line in lines]
    digests = ["0" * 64] + [hashlib.sha256(line).hexdigest() for line in lines[:-1]]
    assert [entry["previous"] for entry in entries] == digests
    assert len(entries[1]["reason"]) == 512
    assert path.stat().st_mode & 0o777 == 0o600
