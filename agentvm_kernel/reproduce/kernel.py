"""The kernel process of a notebook that is reproduced: its magics are those that are permitted, and no others."""

from __future__ import annotations

import os

from agentvm_kernel.kernel.app import AgentVMKernelApp
from agentvm_kernel.reproduce.permits import VARIABLE, Permits, PermittedMagics


def main() -> None:
    """Run the kernel process."""
    permits = Permits.model_validate_json(os.environ[VARIABLE])
    app = AgentVMKernelApp(magics=PermittedMagics(permits), sizes=permits.sizes)
    app.initialize()
    app.start()


if __name__ == "__main__":
    main()
