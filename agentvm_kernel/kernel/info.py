"""What the host answers for the guest: who it is while it is not there yet, and what it uses, as measured outside."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Final

from agentvm_kernel import __version__
from agentvm_kernel.kernel.machine import Machine, State
from agentvm_kernel.observe.process import read_usage
from agentvm_kernel.supervisor.messages import Granted

if TYPE_CHECKING:
    import psutil  # type: ignore[import-untyped]

BANNER: Final = f"AgentVM Kernel {__version__}: every cell runs in an isolated virtual machine."


def kernel_info() -> dict[str, object]:
    """Return the `kernel_info_reply` of the host, for as long as there is no guest to ask.

    It says what the guest images have: Python 3.13 under ipykernel 7.
    """
    return {
        "status": "ok",
        "protocol_version": "5.5",
        "implementation": "ipython",
        "implementation_version": __version__,
        "language_info": {
            "name": "python",
            "version": "3.13",
            "mimetype": "text/x-python",
            "codemirror_mode": {"name": "ipython", "version": 3},
            "pygments_lexer": "ipython3",
            "nbconvert_exporter": "python",
            "file_extension": ".py",
        },
        "banner": BANNER,
        "help_links": [],
        "supported_features": ["kernel subshells", "debugger"],
    }


def with_banner(content: dict[str, object]) -> dict[str, object]:
    """Add the line about AgentVM to a guest's `kernel_info_reply`."""
    return content | {"banner": f"{str(content.get('banner', '')).rstrip()}\n{BANNER}\n"}


class Usage:
    """Measures a QEMU process from outside; psutil is imported when first asked for."""

    def __init__(self) -> None:
        self._process: psutil.Process | None = None

    def measure(self, granted: Granted) -> tuple[float, int]:
        """Return the VM's CPU use since the last call (percent of one core) and its memory on the host (bytes).

        Memory is the proportional set size, or the resident one where the former may not be read (a QEMU that runs
        under another user). Zeros for a process that is gone.
        """
        import psutil  # noqa: PLC0415 - costs memory that a notebook without a monitor need not pay

        try:
            if self._process is None or self._process.pid != granted.pid:
                self._process = psutil.Process(granted.pid)
            cpu = self._process.cpu_percent(None)
            try:
                return cpu, int(self._process.memory_full_info().pss)
            except psutil.AccessDenied:
                return cpu, int(self._process.memory_info().rss)
        except psutil.Error:
            return 0.0, 0

    def cpu_seconds(self, granted: Granted) -> float:
        """Return the CPU time that the VM has used; 0 for a process that is gone."""
        usage = read_usage(granted.pid)
        return usage.cpu_seconds if usage is not None else 0.0

    def reply(self, granted: Granted | None) -> dict[str, object]:
        """Return the content of a `usage_reply`, in ipykernel's form, about the VM."""
        import psutil  # noqa: PLC0415

        content: dict[str, object] = {"hostname": socket.gethostname(), "pid": os.getpid()}
        if granted is not None:
            cpu, memory = self.measure(granted)
            content |= {"hostname": granted.vm, "pid": granted.pid, "kernel_cpu": cpu, "kernel_memory": memory}
        if host_cpu := psutil.cpu_percent():
            content["host_cpu_percent"] = host_cpu
        content["cpu_count"] = granted.vcpus if granted else psutil.cpu_count(logical=True)
        content["host_virtual_memory"] = dict(psutil.virtual_memory()._asdict())
        return content


def condition(machine: Machine) -> dict[str, str]:
    """Return how the notebook's VM is, for programs: its state's name, what is going on or why there is none, a remedy.

    Args:
        machine: The VM.
    """
    if machine.state is State.ENDED and machine.error is not None:
        return {"state": machine.state.value, "text": machine.error.message, "hint": machine.error.hint}
    text = f"{machine.task}: {machine.stage}" if machine.stage else machine.task
    return {"state": machine.state.value, "text": text, "hint": ""}
