"""What cells of a real VM are said to have cost is what the host has counted, whatever the guest says of itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from accounting import cpu_seconds, memory
from audited import audited, audited_soon
from internet import Internet, internet
from kernel_client import Cell, Notebook, notebook, wait_until
from travel import ok, told
from vms import environment_of, own_supervisor

from agentvm_kernel.config import Paths
from agentvm_kernel.observe.claims import Claims
from agentvm_kernel.supervisor.operator_messages import VMInfo
from agentvm_kernel.supervisor.sync_client import SyncSupervisorClient

pytestmark = pytest.mark.timeout(400)

MB = 10**6
SITE = "good.example.org"

# A guest takes for CPU time what others have of the host's, so that it cannot be told how long it is to compute.
BURN = "for _ in range(5_000_000): pass"
ALLOCATE = "kept = b'x' * 200_000_000"
WRITE = """
import os
with open("/home/agent/big", "wb") as file:
    for _ in range(100): file.write(os.urandom(1000) * 1000)
    file.flush()
    os.fsync(file.fileno())
"""
DOWNLOAD = f"""
import urllib.request
got = 0
with urllib.request.urlopen("http://{SITE}/bytes/50000000", timeout=200) as answer:
    while block := answer.read(1 << 16): got += len(block)
print(got)
"""
# Put over what the agent reads, by root, with the mount(2) of the C library.
LIE = """
import subprocess
lies = {"loadavg": "9999.99 0 0 1/123456 7\\n", "stat": "processes 100\\n", "meminfo": "MemAvailable: 7 kB\\n"}
for name, text in lies.items():
    open(f"/tmp/{name}", "w").write(text)
    bind = f"import ctypes; exit(ctypes.CDLL(None).mount(b'/tmp/{name}', b'/proc/{name}', None, 4096, None))"
    subprocess.run(["sudo", "python3", "-c", bind], check=True)
"""
STORM = """
import os
for _ in range(250):
    if (pid := os.fork()) == 0: os._exit(0)
    os.waitpid(pid, 0)
"""


@dataclass
class Bed:
    """A notebook, and what the host knows of its QEMU without asking this project."""

    nb: Notebook
    paths: Paths
    pid: int
    vm: str

    def memory(self) -> int:
        """Memory that it has written, bytes."""
        return memory(self.pid)["Anonymous"]

    def disk(self) -> int:
        """What its files take on the host's disk, bytes."""
        return sum(path.lstat().st_blocks * 512 for path in (self.paths.runtime / "vm" / self.vm).iterdir())


def bed(nb: Notebook, paths: Paths) -> Bed:
    ok(nb, "1")
    with SyncSupervisorClient(paths, start=False) as client:
        (lease,) = client.status().leases
        return Bed(nb, paths, lease.pid, lease.vm)


def facts(cell: Cell) -> dict[str, Any]:
    found: dict[str, Any] = cell.metadata["agentvm"]["facts"]
    assert len(json.dumps(found)) < 2048
    return found


def footers(cell: Cell) -> list[str]:
    shown = cell.of("display_data")
    return [one["data"]["text/plain"] for one in shown if one["metadata"] == {"agentvm": {"facts": True}}]


@pytest.fixture(scope="module")
def world() -> Iterator[Internet]:
    with internet() as made:
        yield made


def test_what_a_cell_cost_is_what_the_host_has_counted(world: Internet) -> None:
    with world.supervised(f'\n[network]\nallow = ["{SITE}"]\n') as paths, notebook(environment_of(paths)) as nb:
        ours = bed(nb, paths)

        cpu = cpu_seconds(ours.pid)
        burnt = facts(ok(nb, BURN))
        assert burnt["cpu_seconds"] == pytest.approx(cpu_seconds(ours.pid) - cpu, rel=0.1)
        assert 0.1 < burnt["cpu_seconds"] < 4 * burnt["seconds"]
        assert (burnt["network_sent"], burnt["network_received"], burnt["hosts"]) == (0, 0, [])
        assert burnt["disk_written"] < 5 * MB
        assert burnt["memory_grown"] < 20 * MB

        memory = ours.memory()
        grown = facts(ok(nb, ALLOCATE))
        assert grown["memory_grown"] == pytest.approx(200 * MB, rel=0.1)
        assert grown["memory_grown"] == pytest.approx(ours.memory() - memory, rel=0.1)
        assert grown["memory_peak"] == pytest.approx(ours.memory(), rel=0.1)

        disk = ours.disk()
        wrote = facts(ok(nb, WRITE))
        assert wrote["disk_written"] == pytest.approx(100 * MB, rel=0.1)
        assert wrote["disk_written"] == pytest.approx(ours.disk() - disk, rel=0.1)
        again = facts(ok(nb, "for _ in range(1_000_000): pass"))
        assert again["disk_written"] < 5 * MB

        world.forget()
        cell = ok(nb, DOWNLOAD)
        (request,) = world.requests()
        assert (cell.text(), request.path) == ("50000000\n", "/bytes/50000000")
        loaded = facts(cell)
        assert loaded["network_received"] == pytest.approx(50 * MB, rel=0.1)
        assert 0 < loaded["network_sent"] < MB
        assert (loaded["hosts"], loaded["host_count"]) == ([SITE], 1)

        ended = audited_soon(paths.state, 6, "execution_completed")
        assert ended[1]["cpu_seconds"] == burnt["cpu_seconds"]
        assert ended[-1]["network_received"] == loaded["network_received"]


def leased(paths: Paths) -> VMInfo:
    with SyncSupervisorClient(paths, start=False) as client:
        (vm,) = [one for one in client.vms().vms if one.state == "leased"]
    return vm


def told_by(paths: Paths) -> Claims:
    claims = leased(paths).claimed
    assert claims is not None
    return claims


def test_a_guest_that_lies_about_itself_changes_nothing_that_is_measured() -> None:
    with own_supervisor() as paths, notebook(environment_of(paths)) as nb:
        ours = bed(nb, paths)
        ok(nb, LIE)
        lines = told(nb, "%vm status").splitlines()
        claimed = {line for line in lines if "(claimed by the guest)" in line}
        assert {line.rpartition("  ")[2].strip() for line in claimed} >= {"123456", "9999.99", "7 KiB"}
        assert not any("123456" in line or "9999" in line for line in set(lines) - claimed)
        cpu = cpu_seconds(ours.pid)
        found = facts(ok(nb, BURN))
        assert found["cpu_seconds"] == pytest.approx(cpu_seconds(ours.pid) - cpu, rel=0.1)
        assert found["memory_peak"] == pytest.approx(ours.memory(), rel=0.1)
        # It is asked again every other second, if it has worked.
        lie = (123456, 7 << 10)
        wait_until(lambda: (told_by(paths).processes, told_by(paths).memory_free) == lie, "the lie is told")
        wait_until(
            lambda: leased(paths).cpu_seconds == pytest.approx(cpu_seconds(ours.pid), rel=0.1), "the CPU time is right"
        )


def test_a_storm_of_processes_is_an_anomaly_as_the_guest_claims() -> None:
    rule = "\n[anomalies.rules.process-storm]\nthreshold = 200\nwindow = 30\n"
    with own_supervisor(rule) as paths, notebook(environment_of(paths)) as nb:
        ours = bed(nb, paths)
        ok(nb, BURN)
        assert audited(paths.state, "anomaly_detected") == []
        ok(nb, STORM)
        (entry,) = audited_soon(paths.state, 1, "anomaly_detected")
        assert (entry["kind"], entry["is_claimed"], entry["vm"]) == ("process-storm", True, ours.vm)
        assert entry["value"] > 200


def test_the_line_under_a_cell_and_time_travel_say_the_same_as_the_reply() -> None:
    with own_supervisor("\n[notebook]\nfooter = true\n") as paths, notebook(environment_of(paths)) as nb:
        first = ok(nb, "print(1)")
        (line,) = footers(first)
        assert f"CPU {facts(first)['cpu_seconds']:.2f} s" in line
        ok(nb, "%timetravel on")
        before = facts(ok(nb, "x = 1"))
        cell = ok(nb, "x = 2")
        after = facts(cell)
        assert after["snapshot_before"] == before["snapshot_after"] != before["snapshot_before"]
        assert f"snapshot {after['snapshot_before']} to {after['snapshot_after']}" in footers(cell)[0]
        assert told(nb, "%vm facts off") == "Cells do not say what they cost."
        assert footers(ok(nb, "x")) == []
