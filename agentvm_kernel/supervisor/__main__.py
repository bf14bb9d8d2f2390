"""``python -m agentvm_kernel.supervisor``: how a client starts the supervisor on demand."""

from __future__ import annotations

import argparse
import sys

from agentvm_kernel.supervisor.daemon import run


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="agentvm-supervisor", description="The AgentVM supervisor")
    parser.add_argument("--foreground", action="store_true", help="log to standard error and stay when idle")
    parser.add_argument("--ready-fd", type=int, help="descriptor that gets 1 once requests are served")
    arguments = parser.parse_args()
    return run(arguments.ready_fd, arguments.foreground)


if __name__ == "__main__":
    sys.exit(main())
