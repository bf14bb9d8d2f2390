"""By which command the kernel process is started."""

from __future__ import annotations

import sys
from typing import Final

MODULE: Final = "agentvm_kernel"


def kernel_command(module: str = MODULE) -> list[str]:
    """Return the command, as a kernelspec has it.

    Kernels are started in the notebook's folder. Without ``-P`` Python would look for modules there first, and what
    lies beside a notebook would run on the host.

    Args:
        module: Which module is run.
    """
    return [sys.executable, "-P", "-m", module, "-f", "{connection_file}"]


def is_kernel(command: object) -> bool:
    """Return whether a kernelspec's command starts this package's kernel, also that of an older version.

    Args:
        command: What stands there as ``argv``.
    """
    if not isinstance(command, list):
        return False
    return command[1:3] == ["-m", MODULE] or command[1:4] == ["-P", "-m", MODULE]
