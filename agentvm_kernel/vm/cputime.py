"""How much a process wants the CPU (Documentation/scheduler/sched-stats.rst in the kernel's sources: schedstat)."""

from __future__ import annotations

from pathlib import Path


def wanted_cpu(pid: int) -> dict[int, float]:
    """Return, for each thread of a process, for how many seconds it had a CPU or waited for one.

    What it had alone would not do: a process that gets little because others want the CPU, too, would look idle.

    Args:
        pid: The process; there are no threads of one that is gone, and where the kernel does not count.
    """
    wanted = {}
    for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        try:
            running, waiting, _ = task.read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        wanted[int(task.parent.name)] = (int(running) + int(waiting)) / 1e9
    return wanted
