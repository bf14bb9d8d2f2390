"""Run a command and reap at once what it leaves without a parent, as a host's init does.

`python subreaper.py COMMAND [ARGUMENT...]`. Where PID 1 reaps late, as in some containers, libvirt takes the zombies of
the QEMUs that it probes for living ones and waits seconds for each.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from agentvm_kernel.vm.reaper import become_subreaper


def reaped(command: list[str]) -> list[str]:
    """Return the command that runs this one under a reaper; SIGTERM is passed on."""
    return [sys.executable, __file__, *command]


def main(command: list[str]) -> int:
    become_subreaper()
    child = subprocess.Popen(command)
    signal.signal(signal.SIGTERM, lambda number, _: os.kill(child.pid, number))
    while True:
        pid, status = os.wait()
        if pid == child.pid:
            return os.waitstatus_to_exitcode(status) % 256


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
