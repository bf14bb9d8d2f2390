"""What happens around a real VM stands in the audit log, in order, and the log shows what is done to it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from kernel_client import Cell, notebook, wait_until
from travel import back, ok, saved, told
from vms import environment_of, own_supervisor, shut_down

from agentvm_kernel import Session
from agentvm_kernel.config import Paths

pytestmark = pytest.mark.timeout(400)

REFUSED = """\
import socket
try:
    socket.create_connection(("refused.example", 443), 60).recv(1)
except OSError:
    pass"""


def audit(paths: Paths, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("agentvm")), "audit", *arguments]
    environment = os.environ | environment_of(paths)
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)


def shown(paths: Paths, *arguments: str) -> list[dict[str, object]]:
    done = audit(paths, "show", "--json", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


def in_order(records: list[dict[str, object]], *wanted: str) -> list[dict[str, object]]:
    """Return the records of these events, in this order; others may be between them."""
    found, rest = [], iter(records)
    for name in wanted:
        record = next((one for one in rest if one["event"] == name), None)
        assert record is not None, f"no {name} after {[one['event'] for one in found]}"
        found.append(record)
    return found


def digest(code: str) -> str:
    return hashlib.sha256(code.encode()).hexdigest()


def test_what_happens_is_written_down_and_a_changed_byte_is_found(tmp_path: Path) -> None:
    with own_supervisor() as paths:
        with notebook(environment_of(paths)) as nb:
            ok(nb, "x = 6 * 7")
            saved(nb, "before")
            cell: Cell = nb.run(REFUSED)
            assert "refused.example:443" in cell.text("stderr")
            assert nb.run("1 / 0").status == "error"
            table = told(nb, "%audit 50")
            back(nb, "before")
        wait_until(lambda: shown(paths, "--event", "lease_released"), "the lease is released")
        verified = audit(paths, "verify")
        assert verified.returncode == 0, verified.stdout
        records = shown(paths)
        started, created, _, leased, begun, done, _, asked, blocked, _, _, failed, restored, released = in_order(
            records,
            "supervisor_started", "vm_created", "vm_started", "lease_acquired",
            "execution_started", "execution_completed", "snapshot_created",
            "execution_started", "network_connection_blocked", "execution_completed",
            "execution_started", "execution_failed", "snapshot_restored", "lease_released",
        )  # fmt: skip
        assert {one["accelerator"] for one in (started, created, leased)} <= {"tcg", "kvm"}
        assert begun["digest"] == done["digest"] == digest("x = 6 * 7")
        assert begun["vm"] == leased["vm"]
        assert asked["digest"] == digest(REFUSED)
        assert (blocked["name"], blocked["run"]) == ({"claimed": "refused.example"}, asked["run"])
        assert failed["error"] == {"claimed": "ZeroDivisionError"}
        assert restored["before"] == leased["vm"]
        assert released["vm"] == restored["vm"]
        assert all("6 * 7" not in json.dumps(one) for one in records)
        for name in ("lease_acquired", "execution_failed", "network_connection_blocked", 'claimed "refused.example"'):
            assert name in table
        destroyed = {one["vm"] for one in shown(paths, "--vm", str(leased["vm"]))}
        assert destroyed == {leased["vm"], restored["vm"]}  # also as the one that was replaced

        asyncio.run(shut_down(paths))
        assert audit(paths, "verify").returncode == 0
        assert shown(paths)[-1]["event"] == "supervisor_stopped"
        (file,) = (paths.state / "audit").glob("*-*-*.jsonl")
        lines = file.read_bytes().splitlines(keepends=True)
        number = next(place for place, line in enumerate(lines, 1) if b"network_connection_blocked" in line)
        lines[number - 1] = lines[number - 1].replace(b"refused.example", b"harmful.example", 1)
        file.write_bytes(b"".join(lines))
        found = audit(paths, "verify")
        assert found.returncode == 1
        assert f"{file.name}:{number}: " in found.stdout


def test_sessions_programs_and_forks_are_written_down(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text("raise SystemExit(3)\n")
    with own_supervisor("\n[audit]\ncode = true\n") as paths:
        with Session(image="minimal", profile="test", notebook="an experiment", paths=paths) as session:
            session.run("y = 1")
            session.exec(["true"])
            session.fork(2, "y + 1")
            session.run("import time; time.sleep(60)", timeout=1)
        command = [str(Path(sys.executable).with_name("agentvm")), "run", str(script)]
        ran = subprocess.run(command, env=os.environ | environment_of(paths), check=False, timeout=200)
        assert ran.returncode == 3
        asyncio.run(shut_down(paths))
        mine = shown(paths, "--notebook", "an experiment")
        begun, _, program, done, late = in_order(
            mine, "execution_started", "execution_completed", "execution_started", "execution_completed",
            "execution_timeout",
        )  # fmt: skip
        assert (begun["code"], program["code"], program["kind"], done["kind"]) == (
            "y = 1",
            "true",
            "program",
            "program",
        )
        forks = [one for one in mine if one["event"] == "execution_completed" and one.get("fork")]
        assert {one["fork"] for one in forks} == {1, 2}
        assert {one["vm"] for one in forks}.isdisjoint({begun["vm"]})
        assert late["digest"] == digest("import time; time.sleep(60)")
        failed = shown(paths, "--event", "execution_failed")[-1]
        assert (failed["digest"], failed["reason"]) == (digest(script.read_text()), "exit code 3")
        assert audit(paths, "verify").returncode == 0
