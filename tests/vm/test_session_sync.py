"""Sessions without an event loop in real VMs: the script of the issue, many processes, Ctrl-C, errors."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agentvm_kernel import Session
from agentvm_kernel.config import Paths
from agentvm_kernel.errors import AgentVMError, ApiError
from agentvm_kernel.supervisor.sync_client import SyncSupervisorClient

pytestmark = pytest.mark.timeout(300)

ISSUE = """
from agentvm_kernel import Session

code = "import uuid; str(uuid.uuid4())"
with Session(profile="light") as s: s.run("x = 1"); snap = s.snapshot(); s.rollback(snap); print(s.fork(8, code))
"""


@pytest.fixture
def environment(vm_environment: Mapping[str, str]) -> dict[str, str]:
    return {**os.environ, **vm_environment}


@pytest.fixture
def session_environment(vm_environment: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in vm_environment.items():
        monkeypatch.setenv(name, value)


def run_script(script: str, environment: Mapping[str, str], *, start_new_session: bool = False) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script], env=dict(environment), capture_output=True, text=True, check=False,
        start_new_session=start_new_session,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_script_of_the_issue_runs(environment: Mapping[str, str]) -> None:
    printed = run_script(ISSUE, environment)
    results = set(re.findall(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", printed))
    assert printed.count("status='ok'") == 8
    assert len(results) == 8


def test_the_script_of_the_documentation_runs(environment: Mapping[str, str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    script = page.partition("```python\n")[2].partition("```")[0]
    assert run_script(script, environment) == "21\n"


def test_three_processes_at_once_have_a_vm_each(environment: Mapping[str, str]) -> None:
    script = (
        "import sys\nfrom agentvm_kernel import Session\n"
        "with Session(notebook=sys.argv[1]) as s:\n"
        "    s.run(f'nonce = {sys.argv[1]!r}')\n"
        "    snap = s.snapshot('mine')\n"
        "    s.run('nonce = None')\n"
        "    s.rollback('mine')\n"
        "    print(s.run('nonce').result, len(s.snapshots().snapshots))\n"
    )
    names = [f"process {number}" for number in range(3)]
    started = [
        subprocess.Popen([sys.executable, "-c", script, name], env=dict(environment), stdout=subprocess.PIPE, text=True)
        for name in names
    ]
    assert [one.communicate(timeout=200)[0] for one in started] == [f"'{name}' 1\n" for name in names]


CTRL_C = """
import os, signal, threading
from agentvm_kernel import Session

CELL = '''
try:
    open("begun", "w").close()
    time.sleep(600)
except KeyboardInterrupt:
    stopped = True
    raise
'''

with Session() as s:
    s.run("import time; stopped = False")

    def press():
        s.exec(["sh", "-c", "until [ -e begun ]; do sleep 0.1; done"])
        os.killpg(os.getpid(), signal.SIGINT)

    threading.Thread(target=press).start()
    try:
        s.run(CELL)
    except KeyboardInterrupt:
        print("interrupted", s.run("stopped").result)
"""


def test_ctrl_c_interrupts_the_cell_and_the_session_goes_on(environment: Mapping[str, str]) -> None:
    assert run_script(CTRL_C, environment, start_new_session=True) == "interrupted True\n"


@pytest.mark.usefixtures("session_environment")
def test_threads_share_nothing_but_the_supervisor(vm_paths: Paths) -> None:
    def own(number: int) -> str:
        with Session(paths=vm_paths, notebook=f"thread {number}") as s:
            s.run(f"x = {number}")
            return s.run("x").result

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(own, range(4))) == ["0", "1", "2", "3"]


@pytest.mark.usefixtures("session_environment")
def test_errors_have_a_code_a_message_and_a_hint(vm_paths: Paths) -> None:
    with pytest.raises(AgentVMError) as caught, Session(paths=vm_paths, profile="huge"):
        pass
    assert (caught.value.code, caught.value.message) == ("config", "There is no profile 'huge'.")
    assert "light" in caught.value.hint
    with Session(paths=vm_paths, notebook="errors") as s:
        with pytest.raises(ApiError, match="nowhere") as refused:
            s.rollback("nowhere")
        assert refused.value.code == "no_snapshot"
        with pytest.raises(ApiError, match="cpus") as unknown:
            s.limits(cpus=3)
        assert unknown.value.code == "limit"
        assert s.run("1 / 0").status == "error"
        with ThreadPoolExecutor() as threads, SyncSupervisorClient(vm_paths, start=False) as client:
            cell = threads.submit(s.run, "import time; open('begun', 'w').close(); time.sleep(600)")
            s.exec(["sh", "-c", "until [ -e begun ]; do sleep 0.1; done"])
            (vm,) = [vm for vm in client.vms().vms if vm.notebook == "errors"]
            client.kill(vm.id)
            died = cell.result()
        assert (died.status, died.reason) == ("died", "The VM was ended by `agentvm vm kill`.")
        with pytest.raises(AgentVMError, match="agentvm vm kill") as gone:
            s.run("1")
        assert gone.value.hint
