"""What the server extension refuses, besides what the supervisor and the kernels refuse."""

from __future__ import annotations

from typing import Final

from agentvm_kernel.errors import AgentVMError
from agentvm_kernel.supervisor.route import STATUS


class NoKernelError(AgentVMError):
    """This server has no such kernel."""

    code = "no_kernel"


class ForeignKernelError(AgentVMError):
    """The kernel has no VM of ours: nothing is typed into it."""

    code = "foreign_kernel"


class NotRunningError(AgentVMError):
    """The kernel has no process now: it is about to be started."""

    code = "not_running"


class BusyError(AgentVMError):
    """Too much waits for the kernel already."""

    code = "busy"


class KernelGoneError(AgentVMError):
    """The kernel's process ended in the middle."""

    code = "kernel_gone"


class SlowError(AgentVMError):
    """The kernel takes too long."""

    code = "slow"


_STATUS: Final = STATUS | {
    "no_kernel": 404,
    "foreign_kernel": 409,
    "not_running": 409,
    "compare": 409,
    "failed": 409,
    "busy": 429,
    "supervisor": 503,
    "slow": 504,
}


def status_of(error: AgentVMError) -> int:
    """Return the HTTP status of an error.

    Args:
        error: The error.
    """
    return _STATUS.get(error.code, 500)
