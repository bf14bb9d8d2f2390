"""What forks showed, for front ends that show them side by side."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from agentvm_kernel.firewall.names import HOST_MIME
from agentvm_kernel.kernel.forks import ForkResult
from agentvm_kernel.magics import show

MIME: Final = f"{HOST_MIME}forks+json"
_TEXT: Final = 400


def bundle(results: Iterable[ForkResult], run: int) -> dict[str, object]:
    """Return what came of forks, with their outputs as the firewall let them through.

    Args:
        results: What came of each.
        run: Number of the run that made them; `%adopt K --of RUN` adopts one of these and no other.
    """
    return {"run": run, "forks": [_fork(result) for result in results]}


def _fork(result: ForkResult) -> dict[str, object]:
    cell = result.cell
    error = f"{cell.error.name}: {cell.error.value}" if cell.error else ""
    return {
        "fork": result.fork,
        "status": cell.status,
        "seconds": round(cell.seconds, 3),
        "cpu_seconds": round(result.cpu_seconds, 3),
        "memory": result.memory,
        "kept": result.kept,
        "reason": show.plain(cell.reason or error, _TEXT),
        "blocked": sum(cell.blocked.values()),
        "outputs": list(cell.outputs),
    }
