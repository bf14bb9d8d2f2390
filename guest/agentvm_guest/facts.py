"""What the guest tells of itself; it may be anything, and hosts show it as claimed."""

from __future__ import annotations

import os
import platform
import socket

from agentvm_guest.claims import claims
from agentvm_guest.kernel import KernelProcess
from agentvm_guest.system import System


def facts(kernel: KernelProcess, system: System) -> dict[str, object]:
    """Return what the guest is, and what it does.

    Args:
        kernel: Its ipykernel.
        system: The privileged operations.
    """
    told: dict[str, object] = {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "hostname": socket.gethostname(),
        "cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "ipykernel_state": kernel.state.value,
        "ipykernel_pid": kernel.pid,
        **kernel.versions,
        **claims(),
    }
    return told if system.recorded is None else told | {"recorded": system.recorded}
