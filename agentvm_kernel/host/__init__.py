"""The host's own packages: QEMU, libvirt and what builds the guest image."""

from __future__ import annotations

import subprocess
from pathlib import Path

from agentvm_kernel.errors import HostError

# POSIX sh, because the Makefile runs it before there is a Python environment.
SCRIPT = Path(__file__).with_name("packages.sh")


def missing_packages() -> list[str]:
    """Return the names of the Debian packages that are missing; used by ``agentvm doctor``.

    Raises:
        HostError: this system is not a supported one.
    """
    done = subprocess.run(["/bin/sh", str(SCRIPT), "--check"], capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise _error(done.stderr)
    return done.stdout.split()


def install_packages() -> None:
    """Install what is missing, as root or through sudo, with apt's messages on the terminal; ``agentvm setup``.

    Raises:
        HostError: this system is not a supported one, or apt failed.
    """
    done = subprocess.run(["/bin/sh", str(SCRIPT)], stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise _error(done.stderr)


def _error(said: str) -> HostError:
    message, _, hint = said.strip().rpartition("agentvm: ")[2].partition("\n")
    return HostError(message or "Checking the host's packages failed.", hint)
