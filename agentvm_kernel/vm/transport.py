"""What carries the link on this host."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from agentvm_kernel.errors import HostError
from agentvm_kernel.vm.spec import Transport

VHOST_VSOCK: Final = Path("/dev/vhost-vsock")


def choose_transport(wanted: str, device: Path = VHOST_VSOCK) -> Transport:
    """Return what carries the link on this host.

    Args:
        wanted: ``auto``, ``vsock`` or ``serial``.
        device: The vhost-vsock device.

    Raises:
        HostError: vsock is wanted and not there.
    """
    usable = _can_open(device)
    if wanted == "vsock" and not usable:
        raise HostError(
            f"vsock is configured, but {device} cannot be opened.",
            "Load the module (`modprobe vhost_vsock`) and join the group kvm, or set transport to auto.",
        )
    return Transport.SERIAL if wanted == "serial" or not usable else Transport.VSOCK


def _can_open(device: Path) -> bool:
    """Say whether a device can be opened; its node may be there without its module."""
    try:
        with device.open("r+b", buffering=0):
            return True
    except OSError:
        return False
