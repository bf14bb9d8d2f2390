"""The benchmarks run in real VMs, say what they should and leave nothing behind. How fast they are is not tested."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SECONDS = 600

pytestmark = pytest.mark.timeout(SECONDS + 60)


def bench(name: str) -> list[dict[str, Any]]:
    """Run a benchmark with few repetitions."""
    before = remains()
    command = [sys.executable, "-c", "from agentvm_kernel.cli import main; main()", "bench", name, "--json"]
    done = subprocess.run([*command, "--repeat", "2"], capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    assert "in turns" in done.stderr
    assert remains() <= before
    return list(json.loads(done.stdout))


def remains() -> set[str]:
    """Return the benchmarks' folders, and the processes that have one in their command line or environment."""
    found = {str(path) for path in Path("/tmp").glob("avmb-*")}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if b"/tmp/avmb-" in (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes():
                found.add(entry.name)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


def check(figures: list[dict[str, Any]]) -> None:
    assert figures
    for figure in figures:
        assert figure["unit"] in {"ms", "MB"}
        assert figure["n"] >= 1
        assert figure["median"] <= figure["p95"]
        assert figure["baseline"]["median"] >= 0
        assert figure["verdict"] in ({"met", "missed"} if figure["limit"] else {None})
        assert len(figure["load_average"]) == 2
    assert len({(figure["name"], figure["baseline"]["name"]) for figure in figures}) == len(figures)


def median(figures: list[dict[str, Any]], beginning: str) -> float:
    return next(float(figure["median"]) for figure in figures if figure["name"].startswith(beginning))


def test_bench_kernel_measures_cells_display_data_and_memory() -> None:
    figures = bench("kernel")
    check(figures)
    limits = {figure["limit"] for figure in figures}
    assert {3, 1.5, 80, 120} <= limits
    # A cell goes through the VM, and a kernel process holds an interpreter.
    assert median(figures, "cell `1`") > 1
    assert median(figures, "1 MiB of display data") > 1
    assert median(figures, "private memory, kernel process") > 5
    assert median(figures, "private memory, supervisor") > 5


def test_bench_clone_measures_acquires_clones_and_memory() -> None:
    figures = bench("clone")
    check(figures)
    limits = {figure["limit"] for figure in figures}
    assert {20, 200, 600} <= limits
    assert median(figures, "acquire") > 1
    # What contains another thing takes longer, in every sample.
    blank = median(figures, "clone from a blank: to the agent's first answer")
    assert 1 < blank < median(figures, "clone with no blank at hand: to the agent's first answer")
    assert median(figures, "private memory, idle clone") > 5
