"""What is measured of a real VM is what it did, and a real Prometheus can be asked for it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import quote
from urllib.request import urlopen

import pytest
from accounting import cpu_seconds, memory
from vms import own_supervisor

from agentvm_kernel import Session
from agentvm_kernel.config import Paths
from agentvm_kernel.supervisor.stats_messages import VMStats
from agentvm_kernel.supervisor.sync_client import SyncSupervisorClient

pytestmark = pytest.mark.timeout(400)

SECONDS = 60
IDLE = 4
MB = 10**6

# A guest takes for CPU time what others have of the host's, so how long it computes says little.
BURN = "for _ in range(2_000_000): pass"
BURNT = 3.0
ALLOCATE = "kept = b'x' * 200_000_000"
WRITE = """
import os
with open("/home/agent/big", "wb") as file:
    for _ in range(100): file.write(os.urandom(1000) * 1000)
    file.flush()
    os.fsync(file.fileno())
"""
REFUSED = """
import socket
try:
    with socket.create_connection(("refused.example", 443), timeout=20) as connection: connection.recv(1)
except OSError: pass
"""


@dataclass
class Bed:
    """A session, who tells of it, and its lease."""

    session: Session
    client: SyncSupervisorClient
    lease: str
    pid: int

    def measured(self) -> VMStats:
        """What is told of it when all that it has done up to now is known: of an idle guest QEMU is asked less."""
        begin = time.time() + IDLE
        with self.client.stats(self.lease, follow=True) as events:
            return next(one for one in events if one.time > begin and not one.stale)

    def burn(self, seconds: float) -> None:
        """Let it compute until it has used so much CPU time."""
        until = cpu_seconds(self.pid) + seconds
        while cpu_seconds(self.pid) < until:
            self.run(BURN)

    def run(self, code: str) -> None:
        result = self.session.run(code, timeout=200)
        assert result.status == "ok", result


@contextmanager
def bed(paths: Paths) -> Iterator[Bed]:
    with ExitStack() as stack:
        session = stack.enter_context(Session(paths=paths, notebook="metrics"))
        client = stack.enter_context(SyncSupervisorClient(paths, start=False))
        (lease,) = client.status().leases
        yield Bed(session, client, lease.lease, lease.pid)


@pytest.fixture
def own_paths() -> Iterator[Paths]:
    with own_supervisor() as paths:
        yield paths


def test_cpu_memory_and_disk_are_what_a_cell_used(own_paths: Paths) -> None:
    with bed(own_paths) as ours:
        ours.run("1")
        before, cpu = ours.measured(), cpu_seconds(ours.pid)
        ours.burn(BURNT)
        used, burnt = cpu_seconds(ours.pid) - cpu, ours.measured()
        assert burnt.cpu_seconds - before.cpu_seconds == pytest.approx(used, rel=0.1)
        with ours.client.stats(ours.lease) as events:
            history = [one for one in events if one.time > before.time]
        percents = [one.cpu_percent for one in history]
        assert max(percents) > 20
        spans = [after.time - one.time for one, after in zip([before, *history], history, strict=False)]
        total = sum(percent * seconds / 100 for percent, seconds in zip(percents, spans, strict=True))
        assert total == pytest.approx(history[-1].cpu_seconds - before.cpu_seconds, rel=0.1)

        before, had = ours.measured(), memory(ours.pid)
        ours.run(ALLOCATE)
        after, grown = ours.measured(), memory(ours.pid)
        assert after.memory_guest - before.memory_guest == pytest.approx(200 * MB, rel=0.1)
        assert after.memory - before.memory == pytest.approx(grown["Pss"] - had["Pss"], rel=0.1)
        assert after.memory == pytest.approx(grown["Pss"], rel=0.1)
        private = grown["Private_Clean"] + grown["Private_Dirty"]
        assert after.memory_private == pytest.approx(private, rel=0.1)

        before = ours.measured()
        ours.run(WRITE)
        after = ours.measured()
        assert after.disk_written - before.disk_written == pytest.approx(100 * MB, rel=0.1)
        assert after.disk_space - before.disk_space == pytest.approx(100 * MB, rel=0.1)


def test_a_rollbacks_vm_is_measured_in_the_place_of_the_old_one(own_paths: Paths) -> None:
    with bed(own_paths) as ours:
        ours.run(WRITE)
        taken = ours.session.snapshot()
        old = ours.measured()
        ours.session.rollback(taken)
        new = ours.measured()
        assert new.vm != old.vm
        assert (new.lease, new.state) == (ours.lease, "leased")
        assert new.disk_written < old.disk_written
        listed = [vm.id for vm in ours.client.vms().vms if vm.state == "leased"]
        assert listed == [new.vm]


def test_a_qemu_that_is_stuck_delays_no_other(own_paths: Paths) -> None:
    with bed(own_paths) as ours, ExitStack() as stack:
        other = stack.enter_context(Session(paths=own_paths, notebook="stuck"))
        (stuck,) = (one for one in ours.client.status().leases if one.lease != ours.lease)
        other.run(WRITE)
        stats = stack.enter_context(ours.client.stats(follow=True))
        os.kill(stuck.pid, signal.SIGSTOP)
        stack.callback(os.kill, stuck.pid, signal.SIGCONT)
        before = ours.measured()
        ours.run(WRITE)
        after = ours.measured()
        assert after.disk_written - before.disk_written == pytest.approx(100 * MB, rel=0.1)
        seen: dict[str, list[VMStats]] = {ours.lease: [], stuck.lease: []}
        while max(one[-1].time if one else 0 for one in seen.values()) < after.time:
            one = next(stats)
            seen.setdefault(one.lease, []).append(one)
        assert any(one.stale for one in seen[stuck.lease])
        assert not any(one.stale for one in seen[ours.lease])
        assert abs(len(seen[ours.lease]) - len(seen[stuck.lease])) <= 1


# Prometheus


class Prometheus:
    """A real server that asks a supervisor every second."""

    def __init__(self, folder: Path, target: int) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = int(found.getsockname()[1])
        rules = folder / "rules.yml"
        rules.write_text((files("agentvm_kernel.observe") / "prometheus" / "rules.yml").read_text())
        job = {"job_name": "agentvm", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(rules)],
            "scrape_configs": [job],
        }
        (folder / "prometheus.yml").write_text(json.dumps(config))
        command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
        self._log = (folder / "log").open("wb")
        self.process = subprocess.Popen(
            [*command, f"--web.listen-address=127.0.0.1:{self.port}"], stdout=self._log, stderr=self._log
        )

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        self._log.close()

    def get(self, path: str) -> Any:
        with urlopen(f"http://127.0.0.1:{self.port}/api/v1/{path}", timeout=10) as answer:
            return json.load(answer)["data"]

    def ask(self, query: str, holds: Callable[[list[float]], bool]) -> list[dict[str, Any]]:
        """Ask until the answer is as it should be: what happens comes with one of the next scrapes."""
        deadline = time.monotonic() + SECONDS
        found: list[dict[str, Any]] = []
        while time.monotonic() < deadline:
            try:
                found = self.get(f"query?query={quote(query)}")["result"]
            except URLError:  # it has just been started
                assert self.process.poll() is None
            else:
                if holds([float(one["value"][1]) for one in found]):
                    return found
            time.sleep(0.2)
        raise AssertionError(f"{query} is {found}")


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="the package prometheus is not installed")
def test_a_real_prometheus_can_be_asked_for_what_happened(tmp_path: Path) -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = int(found.getsockname()[1])
    with own_supervisor(f'\n[metrics]\nlisten = "127.0.0.1:{port}"\n') as paths, ExitStack() as stack:
        prometheus = Prometheus(tmp_path, port)
        stack.callback(prometheus.close)
        with bed(paths) as ours:
            vm = ours.measured().vm
            prometheus.ask('up{job="agentvm"}', lambda found: found == [1])
            ours.burn(BURNT)
            busy = f'max_over_time(agent_vm_cpu_usage_percent{{vm="{vm}", profile="test", image="minimal"}}[5m])'
            prometheus.ask(busy, lambda found: len(found) == 1 and found[0] > 20)
            ours.run(WRITE)
            wrote = f'agent_vm_disk_write_bytes_total{{vm="{vm}"}}'
            prometheus.ask(wrote, lambda found: len(found) == 1 and 95 * MB < found[0] < 130 * MB)
            ours.run(REFUSED)
            attempts = 'agent_network_connection_attempts_total{allowed="false"}'
            prometheus.ask(attempts, lambda found: len(found) == 1 and found[0] >= 1)
            taken = ours.session.snapshot()
            for phase in ("pause", "stored"):
                prometheus.ask(
                    f'agent_vm_snapshot_duration_seconds_count{{phase="{phase}"}}', lambda found: found == [1]
                )
            ours.session.rollback(taken)
            count = 'agent_vm_snapshot_restore_duration_seconds_count{kind="rollback"}'
            prometheus.ask(count, lambda found: found == [1])
            prometheus.ask("agent_vm_pool_acquire_duration_seconds_count", lambda found: found == [1])
            prometheus.ask('agent_vm_pool_size{kind="leased"}', lambda found: found == [1])
            prometheus.ask(f'agent_vm_memory_usage_bytes{{vm="{vm}"}}', lambda found: found == [])
            (new,) = prometheus.ask('agent_vm_memory_usage_bytes{profile="test"}', lambda found: len(found) == 1)
            assert new["metric"]["vm"] == ours.measured().vm != vm
            check_exposition(ours.client.metrics())
        prometheus.ask('agent_vm_memory_usage_bytes{profile="test"}', lambda found: found == [])
        prometheus.ask("agentvm:memory_usage_bytes:sum", lambda found: len(found) == 1 and found[0] > 0)
        assert {rule["health"] for group in prometheus.get("rules")["groups"] for rule in group["rules"]} <= {
            "ok", "unknown",
        }  # fmt: skip


def check_exposition(text: str) -> None:
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
