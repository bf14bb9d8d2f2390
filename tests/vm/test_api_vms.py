"""The API and the commands with real VMs: what is told of them is true, and what is ended is gone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from jupyter_client.manager import start_new_kernel

from agentvm_kernel.config import Paths
from agentvm_kernel.supervisor.messages import Ended, Granted, LeaseRequest, Leaving, Progress
from agentvm_kernel.supervisor.sync_client import SyncSupervisorClient

pytestmark = pytest.mark.timeout(300)

AGENTVM = [sys.executable, "-c", "from agentvm_kernel.cli import main; main()"]
Events = Iterator[Progress | Granted | Leaving | Ended]


@pytest.fixture
def client(vm_paths: Paths, vm_environment: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name, value in vm_environment.items():
        monkeypatch.setenv(name, value)
    with SyncSupervisorClient(vm_paths) as client:
        yield client


def granted(events: Events) -> Granted:
    return next(event for event in events if isinstance(event, Granted))


def agentvm(*arguments: str) -> str:
    return subprocess.run([*AGENTVM, *arguments], capture_output=True, text=True, check=True).stdout


def test_what_is_told_of_a_vm_is_what_the_host_sees(client: SyncSupervisorClient) -> None:
    with client.lease(LeaseRequest(owner="a test", notebook="api")) as events:
        own = granted(events)
        (vm,) = [vm for vm in client.vms().vms if vm.id == own.vm]
        process = psutil.Process(vm.pid)
        assert own.vm in " ".join(process.cmdline())
        assert (vm.state, vm.lease, vm.owner, vm.notebook) == ("leased", own.lease, "a test", "api")
        assert 0 < vm.cpu_seconds <= sum(process.cpu_times()[:2]) + 0.001  # a sum of floats
        assert 0 < vm.memory <= process.memory_info().rss
        assert vm.age > 0
        shown = json.loads(agentvm("vm", "show", own.vm, "--json"))
        assert (shown["pid"], shown["memory_mib"]) == (vm.pid, 512)
        assert own.vm in agentvm("vm", "top")


def test_a_killed_vm_is_gone_and_its_session_is_told(client: SyncSupervisorClient) -> None:
    with client.lease(LeaseRequest(owner="a test")) as events:
        own = granted(events)
        assert agentvm("vm", "kill", own.vm) == f"Ended {own.vm} (leased, a test).\n"
        ended = next(events)
        assert isinstance(ended, Ended)
        assert (ended.code, ended.reason) == ("killed", "The VM was ended by `agentvm vm kill`.")
        assert not psutil.pid_exists(own.pid)


def test_a_drained_pool_has_no_qemu_until_it_is_filled(client: SyncSupervisorClient) -> None:
    with client.lease(LeaseRequest(owner="a test")) as events:
        own = granted(events)
        agentvm("pool", "drain")
        assert [vm.id for vm in client.vms().vms] == [own.vm]
        assert client.pool().drained
        agentvm("pool", "fill")
        assert not client.pool().drained


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_documentations_requests_work(client: SyncSupervisorClient, vm_paths: Paths, tmp_path: Path) -> None:
    client.pool()  # there is a supervisor
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    script = page.partition("```bash\n")[2].partition("```")[0]
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False,
        env={**os.environ, "S": str(vm_paths.socket)}, timeout=200,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    status, pool, limits, snapshot, tree, vms, refusal = map(json.loads, done.stdout.splitlines())
    assert (status["accelerator"] in {"kvm", "tcg"}, pool["drained"]) == (True, False)
    assert (limits["cell_deadline"], snapshot["label"]) == (30, "clean")
    assert [one["id"] for one in tree["snapshots"]] == [snapshot["id"]] == [tree["current"]]
    assert [vm["notebook"] for vm in vms["vms"] if vm["state"] == "leased"] == ["curl"]
    assert json.loads((tmp_path / "replaced").read_text())["snapshot"]["id"] == snapshot["id"]
    assert (refusal["code"], bool(refusal["hint"])) == ("no_snapshot", True)


def test_a_kernelspec_for_a_profile_starts_a_vm_of_that_profile(
    client: SyncSupervisorClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("AGENTVM_PROFILE", "AGENTVM_IMAGE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path))
    config = Path(os.environ["AGENTVM_CONFIG"])
    text = config.read_text()
    config.write_text(f"{text}\n[profiles.other]\nvcpus = 1\nmemory_mib = 384\ndisk_gb = 4\n")
    try:
        assert "profiles" in agentvm("supervisor", "--reload")
        agentvm("kernelspec", "add", "--user", "--profile", "other", "--image", "minimal")
        manager, kernel = start_new_kernel(kernel_name="agentvm-other-minimal", startup_timeout=200)
        try:
            kernel.execute("1", reply=True, timeout=200)
            leases = [lease for lease in client.status().leases if lease.profile == "other"]
            assert [(lease.memory_mib, lease.flavour) for lease in leases] == [(384, "minimal")]
        finally:
            kernel.stop_channels()
            manager.shutdown_kernel(now=True)
    finally:
        config.write_text(text)
        agentvm("supervisor", "--reload")
