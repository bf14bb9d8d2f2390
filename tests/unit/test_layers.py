"""What is found around a QEMU, from files as proc(5) and the control groups have them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agentvm_kernel.vm import layers as module
from agentvm_kernel.vm.layers import Layer, examine

PID = 4711


class Host:
    """A /proc and a /sys/fs/cgroup."""

    def __init__(self, folder: Path) -> None:
        self.proc, self.cgroups = folder / "proc", folder / "cgroup"
        self.cgroups.mkdir()
        for name in (str(PID), "self"):
            process = self.proc / name
            (process / "ns").mkdir(parents=True)
            (process / "attr").mkdir()
            (process / "cgroup").write_text("0::/user.slice\n")
            for namespace in ("mnt", "pid", "net", "ipc", "uts", "user", "cgroup"):
                (process / "ns" / namespace).symlink_to(f"{namespace}:[1]")
        self.qemu = self.proc / str(PID)
        self.status("0", 64055, "0000000000000000")
        (self.qemu / "attr" / "current").write_text("unconfined\n")

    def status(self, seccomp: str, uid: int, capabilities: str) -> None:
        ids = f"Uid:\t{uid}\t{uid}\t{uid}\t{uid}\n"
        text = f"Name:\tqemu\n{ids}CapEff:\t{capabilities}\nSeccomp:\t{seccomp}\nSeccomp_filters:\t1\n"
        (self.qemu / "status").write_text(text)

    def group(self, path: str, **files: str) -> None:
        folder = self.cgroups / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name.replace("__", ".")).write_text(text + "\n")

    def found(self, accelerator: str = "tcg") -> dict[str, Layer]:
        return {one.name: one for one in examine(PID, accelerator, self.proc, self.cgroups)}  # type: ignore[arg-type]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_only_kvm_is_hardware_virtualisation(host: Host) -> None:
    assert host.found("kvm")["hardware virtualisation"].active == "yes"
    assert host.found("tcg")["hardware virtualisation"].active == "no"


def test_a_seccomp_filter_is_seen(host: Host) -> None:
    assert host.found()["seccomp sandbox"].active == "no"
    host.status("2", 64055, "0")
    assert host.found()["seccomp sandbox"].active == "yes"


def test_namespaces_are_told_one_by_one(host: Host) -> None:
    assert host.found()["namespaces"].active == "no"
    (host.qemu / "ns" / "mnt").unlink()
    (host.qemu / "ns" / "mnt").symlink_to("mnt:[2]")
    layer = host.found()["namespaces"]
    assert layer.active == "yes"
    assert layer.detail == "of its own: mnt; shared with the host: pid, net, ipc, uts, user, cgroup"


def test_what_may_not_be_looked_at_is_unknown(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_path: Path) -> Path:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "readlink", refuse)
    assert host.found()["namespaces"].active == "unknown"


def test_limits_of_version_2_are_read_from_the_nearest_group_that_has_some(host: Host) -> None:
    assert host.found()["cgroup limits"].active == "no"
    (host.qemu / "cgroup").write_text("0::/user.slice/agentvm/vm-1\n")
    host.group("user.slice/agentvm/vm-1", memory__max=str(512 << 20), cpu__max="150000 100000")
    assert host.found()["cgroup limits"].detail == "memory 512 MiB, CPU 1.5 cores"


def test_limits_of_version_1_are_read_above_libvirts_emulator_group(host: Host) -> None:
    (host.proc / "self" / "cgroup").write_text("2:memory:/\n1:cpu,cpuacct:/\n")
    (host.qemu / "cgroup").write_text("2:memory:/machine/vm-1\n1:cpu,cpuacct:/machine/vm-1/emulator\n0::/\n")
    host.group("memory/machine/vm-1", memory__limit_in_bytes=str(1 << 30))
    host.group("cpu,cpuacct/machine/vm-1/emulator", cpu__cfs_quota_us="-1")
    host.group("cpu,cpuacct/machine/vm-1", cpu__cfs_quota_us="50000")
    assert host.found()["cgroup limits"].detail == "memory 1024 MiB, CPU 0.5 cores"


def test_no_limit_is_no_limit(host: Host) -> None:
    (host.proc / "self" / "cgroup").write_text("2:memory:/\n")
    (host.qemu / "cgroup").write_text("2:memory:/machine/vm-1\n")
    host.group("memory/machine/vm-1", memory__limit_in_bytes="9223372036854771712")
    assert host.found()["cgroup limits"].active == "no"


def test_limits_that_hold_for_this_process_too_are_not_the_vms(host: Host) -> None:
    (host.qemu / "cgroup").write_text("0::/user.slice\n")
    host.group("user.slice", memory__max=str(1 << 30))
    assert host.found()["cgroup limits"].active == "no"


@pytest.mark.parametrize(
    ("label", "active"),
    [
        ("libvirt-6e2f (enforce)\n", "yes"),
        ("system_u:system_r:svirt_t:s0:c1,c2\0", "yes"),
        ("unconfined\n", "no"),
    ],
)
def test_confinement_is_told_by_its_label(host: Host, label: str, active: str) -> None:
    (host.qemu / "attr" / "current").write_text(label)
    assert host.found()["AppArmor or SELinux"].active == active


def test_a_kernel_without_confinement_says_so(host: Host) -> None:
    (host.qemu / "attr" / "current").unlink()
    assert "neither is active" in host.found()["AppArmor or SELinux"].detail


def test_its_user_is_told(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    assert host.found()["a user of its own"].active == "yes"
    host.status("0", os.geteuid(), "3fffffffff")
    assert host.found()["a user of its own"].active == "no"
    assert "with capabilities" in host.found()["a user of its own"].detail
    monkeypatch.setattr(module.os, "geteuid", lambda: 12345)
    host.status("0", 999_999, "0")
    assert host.found()["a user of its own"].detail == "QEMU runs as 999999, without capabilities"
