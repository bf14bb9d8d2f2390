"""A guest that owns its VM takes the link over: that link ends with a named error, nothing else notices."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from kernel_client import Notebook, notebook
from vms import anonymous_kib, supervisor_pid

from agentvm_kernel.config import Paths
from agentvm_kernel.link.limits import Limits

pytestmark = pytest.mark.timeout(300)

SCRIPT = Path(__file__).parents[1] / "unit" / "hostile_guest.py"
# What is not a message costs next to nothing; a message under way may grow to the limit of one, and no further.
SLACK_KIB = 16 << 10
MESSAGE_KIB = Limits().max_message >> 10

ATTACK = f"""
from pathlib import Path
import subprocess, time
Path("/tmp/hostile.py").write_text({SCRIPT.read_text()!r})
pid = subprocess.run("pgrep -f agentvm_guest/agent.py", shell=True, capture_output=True, text=True).stdout.split()[0]
print(pid, flush=True)
subprocess.Popen(["sudo", "python3", "/tmp/hostile.py", MODE, "--take-over", pid], start_new_session=True)
time.sleep(50)
"""


@pytest.fixture(scope="module")
def bystander(vm_environment: Mapping[str, str]) -> Iterator[Notebook]:
    with notebook(vm_environment) as running:
        assert running.run("marker = 42").status == "ok"
        yield running


@pytest.fixture(scope="module")
def victim(vm_environment: Mapping[str, str]) -> Iterator[Notebook]:
    with notebook(vm_environment) as running:
        yield running


@pytest.mark.parametrize(
    ("mode", "named"),
    [
        ("noise", "not allow|unknown|invalid|type|flag|garbage"),
        ("huge", "length|bytes"),
        ("half", "answer|silen|heartbeat|heard"),
        ("flood", "credit|flood|part count"),
        ("flood-pings", "frames without data"),
        ("many-parts", "part"),
        ("big-message", "message|bytes"),
        ("deaf", "answer|silen|heartbeat|heard"),
    ],
)
def test_misbehaviour_ends_the_link_with_a_named_error(
    victim: Notebook, bystander: Notebook, vm_paths: Paths, mode: str, named: str
) -> None:
    restarted = victim.run("%vm restart")
    assert restarted.status == "ok", restarted.reply
    assert victim.run("1").status == "ok"
    before, supervisor_before = anonymous_kib(victim.pid), anonymous_kib(supervisor_pid(vm_paths))
    attack = victim.client.execute(f"MODE = {mode!r}\n{ATTACK}")
    assert bystander.run("marker").result == "42"
    cell = victim.finish(attack)
    assert cell.status == "error"
    text = f"{cell.reply['ename']}: {cell.reply['evalue']}"
    assert re.search(named, text, re.IGNORECASE), text
    growth = anonymous_kib(victim.pid) - before
    assert growth < SLACK_KIB + (MESSAGE_KIB if mode == "flood" else 0), f"the kernel process grew by {growth} KiB"
    assert anonymous_kib(supervisor_pid(vm_paths)) - supervisor_before < SLACK_KIB
    assert bystander.run("marker").result == "42"
    print(f"{mode}: {text!r}; kernel process {before} -> {before + growth} KiB")
