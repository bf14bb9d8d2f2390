"""How much of the host VMs may take."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agentvm_kernel.supervisor import budget


@pytest.fixture
def meminfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "meminfo"
    monkeypatch.setattr(budget, "_MEMINFO", path)
    return path


@pytest.mark.parametrize(("mib", "room"), [(100, 0), (183, 1), (10240, 56)])
def test_room_follows_the_available_memory(meminfo: Path, mib: int, room: int) -> None:
    meminfo.write_text(f"MemTotal: 99999999 kB\nMemFree: 1 kB\nMemAvailable:   {mib * 1024} kB\n")
    assert budget.available_memory() == mib << 20
    assert budget.Budget(0.7).room() == room


def test_one_fork_runs_in_any_case_and_no_more_than_the_cores_bear(
    meminfo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1})
    meminfo.write_text("MemAvailable: 1 kB\n")
    assert budget.Budget(0.7).slots() == 1
    meminfo.write_text(f"MemAvailable: {1 << 30} kB\n")
    assert budget.Budget(0.7).slots() == 8
