"""A snapshot is complete or absent, whenever the supervisor is killed; the next start is fine."""

from __future__ import annotations

import os
import random
import re
import signal
from collections.abc import Iterator, Mapping

import pytest
from kernel_client import Notebook, notebook, wait_until
from travel import back, named, ok, saved, told, value
from vms import qemus, supervisor_pid

from agentvm_kernel.config import Paths

pytestmark = pytest.mark.timeout(300)

MANY = 12
STATE = "(state, open('/home/agent/state').read())"


@pytest.fixture
def nb(vm_environment: Mapping[str, str]) -> Iterator[Notebook]:
    with notebook(named(vm_environment, "/tests/kill.ipynb")) as running:
        yield running


def enter(state: str) -> str:
    return f"import os\nstate = {state!r}\nopen('/home/agent/state', 'w').write(state)\nos.sync()"


def kill_supervisor(nb: Notebook, paths: Paths) -> set[int]:
    """Kill the supervisor; return the QEMUs that it leaves."""
    left = set(qemus(paths.tag))
    assert left
    pid = supervisor_pid(paths)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: nb.run("1").status == "error", "the notebook says that its VM is gone")
    return left


def test_what_was_answered_is_there_after_a_kill(nb: Notebook, vm_paths: Paths) -> None:
    ok(nb, enter("safe"))
    saved(nb, "safe")
    left = kill_supervisor(nb, vm_paths)
    back(nb, "safe")
    assert value(nb, STATE) == ("safe", "safe")
    assert left.isdisjoint(qemus(vm_paths.tag))


@pytest.mark.parametrize("answered", [1, 4, 9])
def test_a_kill_in_the_middle_leaves_each_complete_or_absent(nb: Notebook, vm_paths: Paths, answered: int) -> None:
    states = [f"k{answered}-{number}" for number in range(MANY)]
    sent = [nb.client.execute(code) for state in states for code in (enter(state), f"%snapshot {state}")]
    replies = [nb.reply(msg_id) for msg_id in sent[: 2 * answered]]
    assert [reply["content"]["status"] for reply in replies] == ["ok"] * len(replies)
    left = kill_supervisor(nb, vm_paths)
    ok(nb, "%vm restart")
    kept = re.findall(rf"○ (k{answered}-\d+) ", told(nb, "%snapshots"))
    assert kept == states[: len(kept)]
    assert len(kept) >= answered
    for state in random.Random(answered).sample(kept, k=len(kept)):
        back(nb, state)
        assert value(nb, STATE) == (state, state)
    assert left.isdisjoint(qemus(vm_paths.tag))
    assert not list((vm_paths.state / "snapshots").glob(".new-*"))
    saved(nb, f"after-{answered}")
