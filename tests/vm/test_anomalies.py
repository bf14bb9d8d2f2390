"""What computes in a real VM although no cell runs is found, audited and told; the VM can be stopped for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from audited import audited, audited_soon
from kernel_client import Message, Notebook, notebook
from travel import ok, told, value
from vms import environment_of, own_supervisor

from agentvm_kernel.config import Paths
from agentvm_kernel.supervisor.sync_client import SyncSupervisorClient

pytestmark = pytest.mark.timeout(500)

CONFIG = """
[anomalies]
warning = "{response}"

[anomalies.rules.unattended-cpu]
window = 5
"""
BURN = "import subprocess; burner = subprocess.Popen(['sh', '-c', 'while :; do :; done'])"
SCAN = """
import socket
for port in range(1, 60):
    try: socket.create_connection(("victim.example", port), timeout=5).close()
    except OSError: pass
"""


@contextmanager
def burning(response: str) -> Iterator[tuple[Paths, Notebook, Message]]:
    """A notebook whose VM computes behind its back, and the note that says so."""
    with own_supervisor(CONFIG.format(response=response)) as paths, notebook(environment_of(paths)) as nb:
        ok(nb, "1")
        assert audited(paths.state, "anomaly_detected") == []
        msg_id = nb.client.execute(BURN)
        assert nb.finish(msg_id).status == "ok"
        note = nb.wait_for("stream", lambda content: "Anomaly" in content["text"])
        assert note["parent_header"]["msg_id"] == msg_id
        yield paths, nb, note


def test_a_burner_without_a_cell_is_audited_and_noted_under_its_cell() -> None:
    with burning("note") as (paths, nb, note):
        assert "unattended-cpu (warning): the VM computes without a rest" in note["content"]["text"]
        (entry,) = audited_soon(paths.state, 1, "anomaly_detected")
        assert (entry["kind"], entry["severity"], entry["response"]) == ("unattended-cpu", "warning", "note")
        assert entry["value"] > 95
        assert entry["vm"] in told(nb, "%vm")
        assert audited(paths.state, "anomaly_response") == []
        assert value(nb, "burner.poll()") is None


def test_a_burner_is_kept_and_stopped_and_runs_on_when_told_to() -> None:
    with burning("pause") as (paths, nb, _):
        (entry,) = audited_soon(paths.state, 1, "anomaly_response")
        assert entry["response"] == "pause"
        nb.client.execute("answer = 6 * 7")
        assert told(nb, "%vm resume") == "The VM runs on."
        assert value(nb, "answer") == 42
        (label,) = [word for word in entry["detail"].replace("(", " ").replace(")", " ").split() if "anomaly-" in word]
        assert label in str(ok(nb, "%snapshots").messages)
        assert [one["response"] for one in audited_soon(paths.state, 2, "anomaly_response")] == ["pause", "resume"]
        assert value(nb, "burner.poll()") is None


def test_a_burners_vm_is_ended_and_the_notebook_is_told_why() -> None:
    with burning("kill") as (paths, nb, _):
        (entry,) = audited_soon(paths.state, 1, "anomaly_response")
        assert (entry["response"], entry["detail"]) == ("kill", "ended")
        with SyncSupervisorClient(paths, start=False) as client:
            assert entry["vm"] not in [vm.id for vm in client.vms().vms]
        cell = nb.run("1")
        assert cell.status == "error"
        assert "ended because of the anomaly unattended-cpu" in str(cell.errors)
        assert "%vm restart" in str(cell.errors)
        ok(nb, "%vm restart")
        assert value(nb, "6 * 7") == 42
        assert entry["vm"] not in told(nb, "%vm")


def test_a_scan_by_a_cell_is_noted_under_it() -> None:
    with own_supervisor() as paths, notebook(environment_of(paths)) as nb:
        msg_id = nb.client.execute(SCAN)
        note = nb.wait_for("stream", lambda content: "Anomaly port-scan (critical)" in content["text"])
        assert note["parent_header"]["msg_id"] == msg_id
        (entry,) = audited_soon(paths.state, 1, "anomaly_detected")
        assert (entry["kind"], entry["response"]) == ("port-scan", "note")


def test_a_burner_is_slowed_down_until_that_is_taken_back() -> None:
    with burning("slow") as (paths, nb, _):
        (entry,) = audited_soon(paths.state, 1, "anomaly_response")
        assert (entry["response"], entry["detail"].startswith("goes behind")) == ("slow", True)
        with SyncSupervisorClient(paths, start=False) as client:
            assert client.resume(entry["vm"]).was_slowed
            assert not client.resume(entry["vm"]).was_slowed
        assert value(nb, "burner.poll()") is None
        assert [one["response"] for one in audited_soon(paths.state, 2, "anomaly_response")] == ["slow", "resume"]
