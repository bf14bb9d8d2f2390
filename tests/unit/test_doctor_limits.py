"""What `agentvm doctor` says of limits."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentvm_kernel.config import Paths
from agentvm_kernel.host import doctor
from agentvm_kernel.vm.limits import enforced_by


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    """Folders of nobody's supervisor."""
    return Paths(tmp_path, tmp_path, tmp_path, tmp_path / "config.toml")


def enforcing(monkeypatch: pytest.MonkeyPatch, **who: str) -> None:
    said = enforced_by() | who
    monkeypatch.setattr(doctor, "enforced_by", lambda _uri: said)


async def test_what_nobody_enforces_is_a_warning_with_its_remedy(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    why = "/user.slice is not writable"
    enforcing(monkeypatch, cpu=f"number of vCPUs only: {why}", qemu_memory=f"nobody: {why}")
    finding = await doctor._limits(paths)
    assert finding.status == "warning"
    assert f"CPU share: number of vCPUs only: {why}; QEMU's memory: nobody: {why}" in finding.detail
    assert "systemctl --user enable --now agentvm.service" in finding.remedy


async def test_a_host_that_enforces_all_says_by_whom(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    enforcing(monkeypatch, cpu="cgroup v2 of ours, CPU quota", qemu_memory="cgroup v2 of ours")
    finding = await doctor._limits(paths)
    assert (finding.status, finding.remedy) == ("ok", "")
    for words in ("cells: the kernel process", "disk rate: QEMU's throttling", "CPU share: cgroup v2 of ours"):
        assert words in finding.detail
