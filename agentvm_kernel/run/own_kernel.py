"""Starts this package's kernel process, for who runs a notebook without Jupyter."""

from __future__ import annotations

import sys

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from traitlets import Unicode


class OwnKernel(AsyncKernelManager):
    """Starts it whether its kernelspec is installed or not.

    Attributes:
        module: Which module is run.
    """

    module = Unicode("agentvm_kernel")

    @property
    def kernel_spec(self) -> KernelSpec:
        """Say how it is started."""
        return KernelSpec(
            argv=[sys.executable, "-m", self.module, "-f", "{connection_file}"],
            display_name="AgentVM", language="python", interrupt_mode="message",
        )  # fmt: skip
