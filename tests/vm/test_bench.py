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


def bench(name: str, repeat: int = 2) -> list[dict[str, Any]]:
    """Run a benchmark with few repetitions."""
    before = remains()
    command = [sys.executable, "-c", "from agentvm_kernel.cli import main; main()", "bench", name, "--json"]
    done = subprocess.run(
        [*command, "--repeat", str(repeat)], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
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
        assert figure["unit"] in {"ms", "MB", "MiB", "/s", "% of a core"}
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


def test_bench_snapshot_measures_pauses_beside_qemus_own() -> None:
    figures = bench("snapshot", 1)
    check(figures)
    assert {15, 0.05, 64} <= {figure["limit"] for figure in figures}
    assert median(figures, "pause with 1024 MiB") > median(figures, "pause, 2 GiB guest")
    assert median(figures, "written before, 2 GiB guest") < 100


def test_bench_rollback_measures_the_way_back() -> None:
    figures = bench("rollback", 2)
    check(figures)
    assert {180, 600} <= {figure["limit"] for figure in figures}
    assert median(figures, "rollback to the first answer") < median(figures, "rollback to the confirmed identity") * 2


def test_bench_fork_measures_results_and_memory() -> None:
    figures = bench("fork", 1)
    check(figures)
    assert {2000, 64} <= {figure["limit"] for figure in figures}
    assert 5 < median(figures, "private memory of an idle fork") < 512


def test_bench_timetravel_measures_cells_and_room() -> None:
    figures = bench("timetravel", 1)
    check(figures)
    assert {30, 250} <= {figure["limit"] for figure in figures}
    assert median(figures, "stored by 100 cells") > 100, "random data cannot be made smaller"


def test_bench_egress_measures_connections_and_downloads_beside_slirp() -> None:
    figures = bench("egress", 1)
    check(figures)
    assert {15, 1} <= {figure["limit"] for figure in figures}
    assert median(figures, "private memory of the gateway's process with 1000") > 10


def test_bench_firewall_measures_messages_beside_trusted_mode_and_cells() -> None:
    figures = bench("firewall")
    check(figures)
    assert {0.2, 0.15} <= {figure["limit"] for figure in figures}
    assert len(figures) == 8
    assert median(figures, "added by the output firewall: a pandas table") > 0
    trips = [figure["baseline"]["median"] for figure in figures if "round trip" in figure["baseline"]["name"]]
    assert min(trips) > 1, "a cell goes through the VM"


def test_bench_sampling_measures_looks_beside_libvirts() -> None:
    figures = bench("sampling", 1)
    check(figures)
    assert {figure["limit"] for figure in figures} == {0.3, None}
    assert median(figures, "sampling 4 idle VMs") > 0
    assert median(figures, "one look at 4 idle VMs") < median(figures, "one close look") * 100
