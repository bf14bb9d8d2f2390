"""The audit log is append-only, chained, private and bounded per event."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest

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


def test_what_the_full_disk_swallows_is_counted_and_the_chain_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    log.record("lease_acquired", vm="vm-1")

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def nearly_full(descriptor: int, data: bytes) -> int:
        return write(descriptor, data[:20])

    write = os.write
    for way in (full, nearly_full):
        monkeypatch.setattr(os, "write", way)
        log.record("lease_released", vm="vm-1")
    monkeypatch.undo()
    log.record("lease_acquired", vm="vm-2")
    log.record("lease_released", vm="vm-2")
    log.close()
    first, second, third = path.read_bytes().splitlines()
    assert json.loads(second)["lost"] == 2
    assert json.loads(second)["previous"] == hashlib.sha256(first).hexdigest()
    assert json.loads(third)["previous"] == hashlib.sha256(second).hexdigest()
    assert "lost" not in json.loads(third)
