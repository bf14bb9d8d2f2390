"""Which accelerator this host really has.

QEMU opens ``/dev/kvm`` happily on hosts where an ordinary guest then hangs for ever (nested virtualisation without the
CPU's flag, broken cloud images), and ``accel=kvm:tcg`` does not fall back then. So KVM is believed only when the CPU
says so *and* a tiny guest ran to its end within a time limit.
"""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agentvm_kernel.errors import HostError

Accelerator = Literal["kvm", "tcg"]

QEMU = "qemu-system-x86_64"
KVM_DEVICE = Path("/dev/kvm")
CPUINFO = Path("/proc/cpuinfo")
PROBE_SECONDS = 5.0

_EXIT_PORT = 0x501
_EXIT_VALUE = 0x2A
# isa-debug-exit ends QEMU with (value << 1) | 1: a status that nothing else produces.
_EXIT_STATUS = (_EXIT_VALUE << 1) | 1


@dataclass(frozen=True)
class Probe:
    """What the probe found.

    Attributes:
        accelerator: The accelerator to use.
        reason: Why, in one line a user understands.
    """

    accelerator: Accelerator
    reason: str


def boot_sector() -> bytes:
    """Return the tiny guest: a boot sector that writes one byte to QEMU's exit port and halts."""
    code = (
        b"\xfa"  # cli
        + b"\xba" + _EXIT_PORT.to_bytes(2, "little")  # mov dx, port
        + b"\xb0" + bytes([_EXIT_VALUE])  # mov al, value
        + b"\xee"  # out dx, al
        + b"\xf4"  # hlt
    )  # fmt: skip
    return code.ljust(510, b"\0") + b"\x55\xaa"


async def run_tiny_guest(accelerator: Accelerator, seconds: float = PROBE_SECONDS) -> str:
    """Run the tiny guest to its end.

    Args:
        accelerator: The accelerator to try.
        seconds: Time limit.

    Returns:
        An empty string if the guest ran to its end, else what happened instead.

    Raises:
        HostError: QEMU is not installed.
    """
    with tempfile.NamedTemporaryFile(prefix="agentvm-probe-") as sector:
        sector.write(boot_sector())
        sector.flush()
        arguments = [
            "-accel", accelerator, "-machine", "pc", "-m", "16", "-nodefaults", "-no-user-config", "-display", "none",
            "-drive", f"file={sector.name},format=raw,if=floppy,readonly=on", "-boot", "a",
            "-device", f"isa-debug-exit,iobase={_EXIT_PORT:#x},iosize=1",
        ]  # fmt: skip
        try:
            process = await asyncio.create_subprocess_exec(
                QEMU, *arguments, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
        except FileNotFoundError as error:
            raise HostError(f"{QEMU} is not installed.", "Run `agentvm setup`.") from error
        try:
            _, stderr = await asyncio.wait_for(process.communicate(), seconds)
        except TimeoutError:
            return f"a tiny guest did not end within {seconds:g} s"
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    if process.returncode == _EXIT_STATUS:
        return ""
    lines = stderr.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"QEMU ended with status {process.returncode}"


def cpu_has_virtualisation(cpuinfo: Path = CPUINFO) -> bool:
    """Say whether the CPU shows hardware virtualisation (Intel ``vmx`` or AMD ``svm``)."""
    flags: set[str] = set()
    for line in cpuinfo.read_text().splitlines():
        if line.startswith("flags"):
            flags.update(line.partition(":")[2].split())
    return bool(flags & {"vmx", "svm"})


async def probe(device: Path = KVM_DEVICE, cpuinfo: Path = CPUINFO) -> Probe:
    """Find the accelerator to use.

    Args:
        device: The KVM device.
        cpuinfo: Where the CPU's flags are read.

    Returns:
        KVM only if the device is there and may be opened, the CPU has the flag and a tiny guest ran; else TCG.
    """
    if not device.exists():
        return Probe("tcg", f"{device} does not exist")
    if not cpu_has_virtualisation(cpuinfo):
        return Probe("tcg", f"{device} exists, but the CPU shows neither vmx nor svm")
    try:
        with device.open("r+b", buffering=0):
            pass
    except OSError as error:
        return Probe("tcg", f"{device} cannot be opened: {error.strerror}; add yourself to the group that owns it")
    if failure := await run_tiny_guest("kvm"):
        return Probe("tcg", f"KVM failed its trial: {failure}")
    return Probe("kvm", "KVM ran a tiny guest to its end")
