"""Starts this package's kernel process, for who runs a notebook without Jupyter."""

from __future__ import annotations

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from traitlets import Unicode

from agentvm_kernel.kernel_command import MODULE, kernel_command


class OwnKernel(AsyncKernelManager):
    """Starts it whether its kernelspec is installed or not.

    Attributes:
        module: Which module is run.
    """

    module = Unicode(MODULE)

    @property
    def kernel_spec(self) -> KernelSpec:
        """Say how it is started."""
        return KernelSpec(
            argv=kernel_command(self.module), display_name="AgentVM", language="python", interrupt_mode="message"
        )
