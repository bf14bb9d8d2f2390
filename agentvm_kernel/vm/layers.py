"""Which of the five layers around a VM are really there, from what the kernel says of its QEMU process."""

from __future__ import annotations

import os
import pwd
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from agentvm_kernel.vm.accelerator import Accelerator
from agentvm_kernel.vm.cgroup import CPU_PERIOD

Active = Literal["yes", "no", "unknown"]

_FILTER: Final = "2"  # SECCOMP_MODE_FILTER, in proc(5)
_UNLIMITED: Final = 1 << 60  # cgroup v1 says "no limit" by a number near 2^63
_CGROUPS: Final = Path("/sys/fs/cgroup")
_NAMESPACES: Final = ("mnt", "pid", "net", "ipc", "uts", "user", "cgroup")


@dataclass(frozen=True)
class Layer:
    """One layer.

    Attributes:
        name: What it is.
        active: Whether it is there.
        detail: What was found, or why it is not there.
    """

    name: str
    active: Active
    detail: str


def examine(pid: int, accelerator: Accelerator, proc: Path = Path("/proc"), cgroups: Path = _CGROUPS) -> list[Layer]:
    """Look at a QEMU.

    Args:
        pid: Its process id.
        accelerator: What runs the guest's code.
        proc: Where proc(5) is.
        cgroups: Where the control groups are.

    Returns:
        The five layers, and the user that it runs as.

    Raises:
        OSError: the process is gone.
    """
    process = proc / str(pid)
    status = dict(re.findall(r"^(\w+):\s*(.*)$", (process / "status").read_text(), re.MULTILINE))
    return [
        _virtualisation(accelerator),
        _seccomp(status),
        _namespaces(process, proc / "self"),
        _limits(process, proc / "self", cgroups),
        _confinement(process),
        _user(status),
    ]


def _virtualisation(accelerator: Accelerator) -> Layer:
    name = "hardware virtualisation"
    if accelerator == "kvm":
        return Layer(name, "yes", "KVM runs the guest's code")
    return Layer(name, "no", "software emulation (TCG), for which QEMU gives no isolation guarantee; needs KVM")


def _seccomp(status: dict[str, str]) -> Layer:
    name = "seccomp sandbox"
    if status.get("Seccomp") == _FILTER:
        return Layer(name, "yes", f"{status.get('Seccomp_filters', 'some')} filters on QEMU's system calls")
    return Layer(name, "no", "QEMU runs without a filter: its libvirt has seccomp_sandbox off, or it was built without")


def _namespaces(process: Path, own: Path) -> Layer:
    name = "namespaces"
    try:
        apart = [one for one in _NAMESPACES if (process / "ns" / one).readlink() != (own / "ns" / one).readlink()]
    except PermissionError:
        return Layer(name, "unknown", "QEMU runs as another user, so this process may not look")
    shared = ", ".join(one for one in _NAMESPACES if one not in apart)
    if apart:
        return Layer(name, "yes", f"of its own: {', '.join(apart)}; shared with the host: {shared}")
    return Layer(name, "no", "libvirt makes a mount namespace only where it is privileged (root, or qemu:///system)")


def _limits(process: Path, own: Path, cgroups: Path) -> Layer:
    name = "cgroup limits"
    said = []
    if memory := _first(process, own, cgroups, "memory", ("memory.max", "memory.limit_in_bytes")):
        said.append(f"memory {memory >> 20} MiB")
    if quota := _first(process, own, cgroups, "cpu", ("cpu.max", "cpu.cfs_quota_us")):
        said.append(f"CPU {quota / CPU_PERIOD:g} cores")
    if said:
        return Layer(name, "yes", ", ".join(said))
    return Layer(name, "no", "neither memory nor CPU of QEMU is limited: see `agentvm doctor`, limits")


def _first(process: Path, own: Path, cgroups: Path, controller: str, files: tuple[str, ...]) -> int:
    """Return the limit of the nearest control group that has one and that this process is not in; 0 for none."""
    mine = set(_groups(own, cgroups, controller))
    for group in _groups(process, cgroups, controller):
        for file in files:
            path = group / file
            text = path.read_text().split()[0] if group not in mine and path.exists() else ""
            if text.isdigit() and int(text) < _UNLIMITED:
                return int(text)
    return 0


def _groups(process: Path, cgroups: Path, controller: str) -> list[Path]:
    """Return a process's group of a controller and those above it, of version 1 or 2, wherever it is mounted."""
    found = []
    for line in (process / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            top = cgroups / (controllers or "unified")
            top = top if top.is_dir() else cgroups
            group = top / path.lstrip("/")
            found += [group, *(parent for parent in group.parents if parent.is_relative_to(top))]
    return found


def _confinement(process: Path) -> Layer:
    name = "AppArmor or SELinux"
    try:
        label = (process / "attr" / "current").read_text().strip("\0\n ")
    except PermissionError:
        return Layer(name, "unknown", "QEMU runs as another user, so this process may not look")
    except OSError:
        return Layer(name, "no", "neither is active in this host's kernel")
    if label.startswith("libvirt-") or "svirt" in label:
        return Layer(name, "yes", label)
    return Layer(name, "no", f"QEMU is {label or 'unconfined'}: libvirt confines it only with qemu:///system")


def _user(status: dict[str, str]) -> Layer:
    uid = int(status["Uid"].split()[1])
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    able = "without capabilities" if int(status.get("CapEff", "0"), 16) == 0 else "with capabilities"
    if uid == os.geteuid():
        return Layer("a user of its own", "no", f"QEMU runs as {user}, {able}, as this process does")
    return Layer("a user of its own", "yes", f"QEMU runs as {user}, {able}")
