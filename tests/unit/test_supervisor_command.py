"""``agentvm vm``, ``pool``, ``status`` and ``supervisor``: what they print and do, over a hypervisor without VMs."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import Result
from fake_hypervisor import FakeHypervisor
from supervisor_bed import make_paths, serving
from typer.testing import CliRunner

from agentvm_kernel import cli
from agentvm_kernel.blocking import LoopThread
from agentvm_kernel.config import Paths
from agentvm_kernel.errors import AgentVMError, SupervisorError
from agentvm_kernel.supervisor.core import Supervisor
from agentvm_kernel.supervisor.messages import Ended, Granted, LeaseRequest
from agentvm_kernel.supervisor.operator_messages import VMInfo
from agentvm_kernel.supervisor.sync_client import SyncSupervisorClient
from agentvm_kernel.supervisor.top import _Seen, vm_table

NASTY = "[red]evil[/] \x1b[31m"


@dataclass
class Bed:
    """A served supervisor, its paths, and the thread that serves."""

    paths: Paths
    supervisor: Supervisor
    thread: LoopThread


@pytest.fixture
def bed(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bed]:
    paths = make_paths(short_tmp)
    monkeypatch.setenv("AGENTVM_CACHE_DIR", str(paths.cache))
    monkeypatch.setenv("AGENTVM_STATE_DIR", str(paths.state))
    monkeypatch.setenv("AGENTVM_CONFIG", str(paths.config))
    monkeypatch.setenv("COLUMNS", "200")
    served = serving(paths, FakeHypervisor())
    with LoopThread() as thread:
        supervisor = thread.call(served.__aenter__())
        yield Bed(paths, supervisor, thread)
        thread.call(served.__aexit__(None, None, None))


@pytest.fixture
def granted(bed: Bed) -> Iterator[Granted]:
    """A VM that somebody has leased, with names that try to steer the terminal."""
    with (
        SyncSupervisorClient(bed.paths, start=False) as client,
        client.lease(LeaseRequest(owner=NASTY, notebook=NASTY)) as events,
    ):
        yield next(event for event in events if isinstance(event, Granted))


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(cli.app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_vms_are_listed_with_names_taken_literally(granted: Granted) -> None:
    printed = run("vm", "list").stdout
    assert granted.vm in printed
    assert "leased" in printed
    assert "[red]evil[/] \N{REPLACEMENT CHARACTER}[31m" in printed
    listed = json.loads(run("vm", "list", "--json").stdout)["vms"]
    assert [vm["notebook"] for vm in listed if vm["id"] == granted.vm] == [NASTY]


def test_one_vm_is_shown_by_the_beginning_of_its_id(granted: Granted) -> None:
    assert f"id {granted.vm}" in run("vm", "show", granted.vm[:-2]).stdout
    assert json.loads(run("vm", "show", granted.vm, "--json").stdout)["pid"] == granted.pid
    for wanted, says in ((granted.vm + "x", "no VM"), ("", "no VM"), ("\x1b", "no VM")):
        with pytest.raises(AgentVMError, match=says):
            run("vm", "show", wanted)


def test_an_ambiguous_beginning_is_refused(bed: Bed, granted: Granted) -> None:
    bed.thread.call(bed.supervisor.pool.filled())
    with pytest.raises(AgentVMError, match="VMs begin with 'vm-'"):
        run("vm", "show", "vm-")


def test_vms_are_killed_and_what_is_not_there_is_said(bed: Bed) -> None:
    with (
        SyncSupervisorClient(bed.paths, start=False) as client,
        client.lease(LeaseRequest(owner="a script")) as events,
    ):
        granted = next(event for event in events if isinstance(event, Granted))
        result = run("vm", "kill", "vm-nothing", granted.vm)
        assert result.exit_code == 1
        assert f"Ended {granted.vm} (leased, a script)." in result.stdout
        assert "no VM 'vm-nothing'" in result.stderr
        assert isinstance(next(events), Ended)


def test_a_vm_that_is_neither_stopped_nor_slowed_down_is_left_alone(granted: Granted) -> None:
    assert run("vm", "resume", granted.vm[:6]).stdout == f"{granted.vm} was neither stopped nor slowed down.\n"
    with pytest.raises(SupervisorError, match="There is no VM"):
        run("vm", "resume", "vm-nothing")


def test_the_pool_is_shown_drained_and_filled(bed: Bed, granted: Granted) -> None:
    bed.thread.call(bed.supervisor.pool.filled())
    stocks = json.loads(run("pool", "list", "--json").stdout)["stocks"]
    assert stocks[0]["snapshot"] in run("pool", "list").stdout
    assert f"1 of {bed.supervisor.settings.max_vms} VMs out" in run("pool", "show").stdout
    assert run("pool", "drain").exit_code == 0
    assert "drained" in run("pool", "show").stdout
    assert json.loads(run("pool", "show", "--json").stdout)["drained"]
    assert "drained" not in run("pool", "fill").stdout


def test_the_supervisor_tells_of_itself_reads_its_configuration_and_leaves(bed: Bed, granted: Granted) -> None:
    printed = run("status").stdout
    assert f"pid {os.getpid()}" in printed
    assert f"leased: {granted.vm} (tiny) to [red]evil[/]" in printed
    assert granted.key not in printed + run("status", "--json").stdout
    assert json.loads(run("status", "--json").stdout)["leases"][0]["vm"] == granted.vm
    bed.paths.config.write_text("max_vms = 3\n")
    assert "max_vms" in run("supervisor", "--reload").stdout
    assert run("supervisor", "--reload").stdout == "Nothing has changed.\n"
    bed.paths.config.write_text("max_vms = 0\n")
    with pytest.raises(AgentVMError, match="max_vms"):
        run("supervisor", "--reload")
    assert run("supervisor", "--stop").exit_code == 0


def test_without_a_supervisor_it_is_said(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTVM_STATE_DIR", str(short_tmp))
    for command in (("vm", "list"), ("pool", "show"), ("status",), ("vm", "top"), ("supervisor", "--stop")):
        with pytest.raises(AgentVMError, match="not running"):
            run(*command)


def test_an_error_is_printed_without_what_steers_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise AgentVMError("[red]two\x1b[31m\nlines", "[blue]hint")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit):
        cli.main()
    said = capsys.readouterr().err
    assert "internal: [red]two\N{REPLACEMENT CHARACTER}[31m\nlines\n[blue]hint" in said


def test_top_prints_once_where_there_is_no_terminal(granted: Granted) -> None:
    printed = run("vm", "top").stdout
    assert granted.vm in printed
    assert "VMs out" in printed


@pytest.mark.parametrize("leave", ["key", "signal"])
def test_top_is_live_until_it_is_left(granted: Granted, leave: str) -> None:
    here, there = pty.openpty()
    termios.tcsetwinsize(there, (40, 200))
    before = termios.tcgetattr(there)
    program = "from agentvm_kernel.cli import main; main()"
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "200"}
    process = subprocess.Popen(
        [sys.executable, "-c", program, "vm", "top", "--every", "0.1"],
        stdin=there, stdout=there, stderr=there, env=environment, start_new_session=True,
    )  # fmt: skip
    seen = b""
    while seen.count(granted.vm.encode()) < 2 or b"CPU" not in seen:
        seen += os.read(here, 65536)
    if leave == "key":
        os.write(here, b"xq")
    else:
        process.send_signal(signal.SIGINT)
    while b"\x1b[?1049l" not in seen:  # the alternate screen is left
        seen += os.read(here, 65536)
    assert process.wait(30) == 0
    assert termios.tcgetattr(there) == before
    os.close(here)
    os.close(there)


def test_what_was_moved_is_told_by_the_second_between_two_measurements() -> None:
    vm = VMInfo(id="a", state="leased", lease="l", vcpus=1, memory_mib=1, pid=1, age=10, disk_read=1000)
    later = vm.model_copy(update={"age": 12.0, "disk_read": 21_000, "cpu_percent": 49.7, "executing": True})
    seen = _Seen()
    for vms in ([vm], [vm], [later], [later, vm.model_copy(update={"id": "b"})]):
        seen.note(vms)
    rows = {
        str(column.header): [str(cell) for cell in column.cells] for column in vm_table([later], seen.before).columns
    }
    assert (rows["read/s"], rows["CPU"], rows["cell"]) == (["10 kB"], ["50%"], ["runs"])
    rows = {str(column.header): [str(cell) for cell in column.cells] for column in vm_table([later]).columns}
    assert rows["read"] == ["21 kB"]
    seen.note([])
    assert seen.before == {}
