"""KVM is believed only after the CPU's flag and a guest that ran."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentvm_kernel.errors import HostError
from agentvm_kernel.vm import accelerator


@pytest.fixture
def cpuinfo(tmp_path: Path) -> Path:
    path = tmp_path / "cpuinfo"
    path.write_text("processor : 0\nflags\t\t: fpu vmx sse2\n")
    return path


async def test_without_a_device_it_is_tcg(tmp_path: Path, cpuinfo: Path) -> None:
    found = await accelerator.probe(tmp_path / "kvm", cpuinfo)
    assert found.accelerator == "tcg"
    assert "does not exist" in found.reason


async def test_without_the_cpu_flag_the_device_is_not_believed(tmp_path: Path, cpuinfo: Path) -> None:
    (tmp_path / "kvm").touch()
    cpuinfo.write_text("flags : fpu sse2 svm_lock\n")
    found = await accelerator.probe(tmp_path / "kvm", cpuinfo)
    assert found.accelerator == "tcg"
    assert "neither vmx nor svm" in found.reason


async def test_a_guest_that_does_not_run_means_tcg(
    tmp_path: Path, cpuinfo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kvm").touch()
    qemu = tmp_path / "qemu"
    qemu.write_text("#!/bin/sh\necho 'kvm: broken' >&2\nexit 1\n")
    qemu.chmod(0o755)
    monkeypatch.setattr(accelerator, "QEMU", str(qemu))
    found = await accelerator.probe(tmp_path / "kvm", cpuinfo)
    assert (found.accelerator, "kvm: broken" in found.reason) == ("tcg", True)


async def test_a_guest_that_hangs_means_tcg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    qemu = tmp_path / "qemu"
    qemu.write_text("#!/bin/sh\nexec sleep 600\n")
    qemu.chmod(0o755)
    monkeypatch.setattr(accelerator, "QEMU", str(qemu))
    assert "did not end within" in await accelerator.run_tiny_guest("kvm", seconds=0.2)


async def test_the_tiny_guest_really_runs_in_qemu() -> None:
    assert await accelerator.run_tiny_guest("tcg", seconds=60) == ""


async def test_a_missing_qemu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "QEMU", "/nonexistent/qemu")
    with pytest.raises(HostError, match="not installed"):
        await accelerator.run_tiny_guest("tcg")
