"""The kernel's entry: `python -m agentvm_kernel -f {connection_file}`."""

from agentvm_kernel.kernel.app import AgentVMKernelApp
from agentvm_kernel.magics import Registry


def main() -> None:
    """Run the kernel process."""
    app = AgentVMKernelApp(magics=Registry())
    app.initialize()
    app.start()


if __name__ == "__main__":
    main()
