"""``agentvm doctor``: examines the host, finding by finding, each with its remedy."""

from __future__ import annotations

import asyncio
import os
import platform
import pwd
import re
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agentvm_kernel.config import Paths, load_settings
from agentvm_kernel.errors import AgentVMError, SupervisorError
from agentvm_kernel.image.store import ImageStore
from agentvm_kernel.settings import SYSTEM
from agentvm_kernel.supervisor.client import SupervisorClient
from agentvm_kernel.vm import nat_guard
from agentvm_kernel.vm.accelerator import QEMU, probe
from agentvm_kernel.vm.libvirt_connection import EMBED, LibvirtConnection
from agentvm_kernel.vm.libvirt_hypervisor import LibvirtHypervisor
from agentvm_kernel.vm.libvirt_nat import check
from agentvm_kernel.vm.limits import NOBODY, enforced_by
from agentvm_kernel.vm.pagemap import has_soft_dirty

Status = Literal["ok", "warning", "failure"]

QEMU_FLOOR = (8, 2)
LIBVIRT_FLOOR = (9, 0)
_SETUP = "Run `agentvm setup`."
_DELEGATE = (
    "Run the supervisor as a systemd service, which has control groups of its own: `agentvm supervisor --install-unit`,"
    " then `systemctl --user enable --now agentvm.service`."
)
_LIMITS = {
    "cell_deadline": "cells",
    "disk_iops": "disk rate",
    "processes": "processes",
    "cpu": "CPU share",
    "qemu_memory": "QEMU's memory",
}
_WRITE_PROTECTION_FLOOR = (6, 7)
_NEEDED_GB = 6
_PTRACE_SCOPE = Path("/proc/sys/kernel/yama/ptrace_scope")
_SYSTEM_FOLDER = Path("/var/lib/libvirt/qemu")
_VHOST_VSOCK = Path("/dev/vhost-vsock")


@dataclass(frozen=True)
class Finding:
    """One thing the doctor looked at.

    Attributes:
        name: What.
        status: ``failure``: no notebook can run; ``warning``: it runs, with less.
        detail: What was found.
        remedy: What to do about it; empty if nothing.
    """

    name: str
    status: Status
    detail: str
    remedy: str = ""


async def examine(paths: Paths) -> list[Finding]:
    """Examine this host.

    Args:
        paths: The user's folders.

    Returns:
        One finding for each check; a notebook can run if none is a failure.
    """
    checks: list[Callable[[Paths], Awaitable[Finding]]] = [
        _configuration, _machine, _accelerator, _qemu, _libvirt, _cards, _vsock, _snapshots, _limits, _image_tools,
        _disk, _image,
    ]  # fmt: skip
    return [await check(paths) for check in checks]


async def _configuration(paths: Paths) -> Finding:
    try:
        settings = load_settings(paths)
        settings.find_profile("")
    except AgentVMError as error:
        return Finding("configuration", "failure", error.message, error.hint)
    where = str(paths.config) if paths.config.exists() else "built-in defaults"
    return Finding("configuration", "ok", f"{where}: libvirt {settings.uri}, image {settings.image}")


async def _machine(_paths: Paths) -> Finding:
    machine = platform.machine()
    if platform.system() != "Linux" or machine != "x86_64":
        return Finding("machine", "failure", f"{platform.system()} on {machine}", "Use Linux on x86-64.")
    return Finding("machine", "ok", f"Linux {platform.release()} on {machine}, {os.cpu_count()} CPUs")


async def _accelerator(_paths: Paths) -> Finding:
    try:
        found = await probe()
    except AgentVMError as error:
        return Finding("accelerator", "failure", error.message, error.hint)
    if found.accelerator == "kvm":
        return Finding("accelerator", "ok", f"KVM: {found.reason}")
    return Finding(
        "accelerator", "warning",
        f"software emulation (TCG): {found.reason}. Slower, and QEMU gives no isolation guarantee under it",
        "Run on a host with KVM for code you do not trust.",
    )  # fmt: skip


async def _output(*command: str) -> str | None:
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
    except FileNotFoundError:
        return None
    output, _ = await process.communicate()
    return output.decode(errors="replace")


async def _qemu(_paths: Paths) -> Finding:
    text = await _output(QEMU, "--version")
    match = re.search(r"version (\d+)\.(\d+)\.(\d+)", text or "")
    if match is None or shutil.which("qemu-img") is None:
        return Finding("QEMU", "failure", f"{QEMU} or qemu-img is not installed", _SETUP)
    version = tuple(map(int, match.groups()))
    dotted = ".".join(match.groups())
    if version < QEMU_FLOOR:
        floor = ".".join(map(str, QEMU_FLOOR))
        return Finding("QEMU", "failure", f"{dotted} is older than {floor}", f"{_SETUP} (Debian 12: backports)")
    return Finding("QEMU", "ok", dotted)


async def _libvirt(paths: Paths) -> Finding:
    try:
        settings = load_settings(paths)
        with tempfile.TemporaryDirectory(prefix="agentvm-doctor-") as folder:
            # A root of its own: only one process may have the supervisor's open.
            hypervisor = LibvirtHypervisor(settings.uri, Path(folder), "doctor")
            await hypervisor.open()
            version = await hypervisor.version()
            await hypervisor.close()
    except AgentVMError as error:
        return Finding("libvirt", "failure", error.message, error.hint if "doctor" not in error.hint else _SETUP)
    match = re.search(r"libvirt (\d+)\.(\d+)", version)
    if match is None or tuple(map(int, match.groups())) < LIBVIRT_FLOOR:
        return Finding("libvirt", "failure", f"{version}: older than {'.'.join(map(str, LIBVIRT_FLOOR))}", _SETUP)
    owner = hypervisor.owner
    user = pwd.getpwuid(owner[0] if owner else os.geteuid()).pw_name
    return Finding("libvirt", "ok", f"{settings.uri}: {version}; QEMU runs as {user}, seccomp sandbox on")


async def _cards(paths: Paths) -> Finding:
    settings = load_settings(paths)
    if settings.uri != SYSTEM:
        return Finding("network cards", "ok", f"none; they could be had with {SYSTEM} only")
    connection = LibvirtConnection(settings.uri, paths.state)
    try:
        await connection.open()
        try:
            await check(connection)
        finally:
            await connection.close()
    except AgentVMError as error:
        # Nobody misses what was not asked for.
        return Finding("network cards", "failure" if settings.network.nat else "ok", error.message, error.hint)
    reports = "" if nat_guard.is_possible() else "; what they refuse is written down only for root, by nft"
    have = "VMs have cards" if settings.network.nat else "none; nat = true in [network] gives VMs some"
    return Finding("network cards", "ok", have + reports)


async def _vsock(_paths: Paths) -> Finding:
    if not _VHOST_VSOCK.exists():
        return Finding(
            "vsock", "ok", f"{_VHOST_VSOCK} does not exist: virtio-serial carries the link",
            "For vsock: modprobe vhost_vsock.",
        )  # fmt: skip
    if not os.access(_VHOST_VSOCK, os.R_OK | os.W_OK):
        return Finding(
            "vsock", "ok", f"{_VHOST_VSOCK} cannot be opened: virtio-serial carries the link",
            "For vsock: join the group kvm.",
        )  # fmt: skip
    return Finding("vsock", "ok", f"{_VHOST_VSOCK}: vsock carries the link")


async def _snapshots(paths: Paths) -> Finding:
    obstacle, remedy = _memory_obstacle(load_settings(paths).uri)
    if obstacle:
        detail = f"{obstacle}: QEMU's memory cannot be read; snapshots are complete dumps and take seconds"
        return Finding("snapshots", "warning", detail, remedy)
    if has_soft_dirty():
        return Finding("snapshots", "ok", "incremental, by soft-dirty bits of the page table")
    release = tuple(int(part) for part in re.findall(r"\d+", platform.release())[:2])
    if release >= _WRITE_PROTECTION_FLOOR:
        return Finding("snapshots", "ok", "incremental, by write protection of QEMU's memory")
    return Finding(
        "snapshots", "warning", "by comparing all that a VM wrote since it was made: the pause grows with that",
        "Use a kernel with CONFIG_MEM_SOFT_DIRTY, or Linux 6.7 or newer.",
    )  # fmt: skip


def _memory_obstacle(uri: str) -> tuple[str, str]:
    """Return why this user cannot read QEMU's memory, and the remedy; empty if nothing is known to be in the way."""
    if os.geteuid() == 0:
        return "", ""
    scope = _PTRACE_SCOPE.read_text().strip() if _PTRACE_SCOPE.exists() else "0"
    # Under scope 1 only descendants may be read: the embedded driver's QEMUs are, a daemon's are not.
    if scope not in ({"0", "1"} if uri == EMBED else {"0"}):
        return f"ptrace scope {scope}", f'sysctl kernel.yama.ptrace_scope={1 if uri == EMBED else 0}, or uri = "embed".'
    if "system" in uri and not os.access(_SYSTEM_FOLDER, os.X_OK):
        return f"{_SYSTEM_FOLDER} is closed, so QEMU has another group", f"As root: chmod o+x {_SYSTEM_FOLDER}"
    return "", ""


async def _limits(paths: Paths) -> Finding:
    enforced = await _enforced(paths)
    detail = "; ".join(f"{name}: {enforced[key]}" for key, name in _LIMITS.items())
    if enforced["qemu_memory"].startswith(NOBODY):
        return Finding("limits", "warning", detail, _DELEGATE)
    return Finding("limits", "ok", detail)


async def _enforced(paths: Paths) -> dict[str, str]:
    """Return who enforces what: as the supervisor says, else as one started from here would find it."""
    try:
        async with SupervisorClient(paths, start=False) as client:
            said = (await client.status()).enforced_by
    except SupervisorError:
        said = {}
    return said or enforced_by(load_settings(paths).uri)


async def _image_tools(_paths: Paths) -> Finding:
    missing = [tool for tool in ("mmdebstrap", "mke2fs") if shutil.which(tool, path=_sbin_path()) is None]
    if missing:
        return Finding("image tools", "failure", f"not installed: {', '.join(missing)}", _SETUP)
    return Finding("image tools", "ok", "mmdebstrap, mke2fs")


def _sbin_path() -> str:
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


async def _disk(paths: Paths) -> Finding:
    folder = paths.cache
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 1e9
    detail = f"{free:.0f} GB free below {folder}"
    if free < _NEEDED_GB:
        return Finding(
            "disk", "failure", detail, f"Free {_NEEDED_GB} GB, or set AGENTVM_CACHE_DIR and AGENTVM_STATE_DIR."
        )
    return Finding("disk", "ok", detail)


async def _image(paths: Paths) -> Finding:
    try:
        settings = load_settings(paths)
        image = ImageStore(paths.cache).find(settings.image)
    except AgentVMError as error:
        return Finding("image", "failure", error.message, error.hint)
    if image is None:
        return Finding(
            "image", "ok", f"{settings.image}: not built yet; the first notebook builds it",
            f"Run `agentvm image build {settings.image}` to build it now.",
        )  # fmt: skip
    return Finding("image", "ok", f"{settings.image}: {image.digest[:12]}")
