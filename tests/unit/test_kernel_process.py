"""The kernel process as an operating system sees it: connection file, signals, parent, memory, restart."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from jupyter_client import BlockingKernelClient
from kernel_client import TIMEOUT, notebook, wait_until
from kernel_fixtures import kernel_environment  # noqa: F401

from agentvm_kernel.config import Paths
from agentvm_kernel.kernel.app import AgentVMKernelApp
from agentvm_kernel.supervisor.client import SupervisorClient


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "options" in metafunc.fixturenames:
        metafunc.parametrize("options", [[], ["--transport=ipc", "--ip={folder}/k"]], ids=["tcp", "ipc"])


@contextmanager
def process(environment: Mapping[str, str], *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "agentvm_kernel", *arguments]
    with subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.PIPE) as running:
        try:
            yield running
        finally:
            running.kill()


@contextmanager
def client_of(path: Path) -> Iterator[BlockingKernelClient]:
    client = BlockingKernelClient()
    client.load_connection_file(str(path))
    client.start_channels()
    try:
        client.wait_for_ready(timeout=TIMEOUT)
        yield client
    finally:
        client.stop_channels()
        client.context.term()


def content_of(path: Path) -> bytes:
    """What a connection file holds; nothing for a moment while it is written anew."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def has_json(path: Path) -> bool:
    return content_of(path).rstrip().endswith(b"}")


def test_a_connection_file_is_written_where_there_is_none_and_removed_at_the_end(
    kernel_environment: Mapping[str, str],  # noqa: F811
    short_tmp: Path,
    options: list[str],
) -> None:
    path = short_tmp / "connection.json"
    arguments = [option.format(folder=short_tmp) for option in options]
    with process(kernel_environment, "-f", str(path), *arguments) as kernel:
        wait_until(lambda: has_json(path), "connection file")
        assert path.stat().st_mode & 0o777 == 0o600
        with client_of(path) as client:
            assert client.execute_interactive("1", timeout=TIMEOUT)["content"]["status"] == "ok"
            client.shutdown()
            client.get_control_msg(timeout=TIMEOUT)
        assert kernel.wait(20) == 0
        assert list(short_tmp.iterdir()) == []


def test_what_a_given_connection_file_says_is_kept_and_missing_ports_are_added(
    kernel_environment: Mapping[str, str],  # noqa: F811
    short_tmp: Path,
) -> None:
    path = short_tmp / "connection.json"
    path.write_text(json.dumps({"key": "secret", "ip": "127.0.0.1", "transport": "tcp", "kernel_name": "mine"}))
    with process(kernel_environment, "-f", str(path)) as kernel:
        wait_until(lambda: has_json(path) and b"shell_port" in content_of(path), "ports")
        info = json.loads(path.read_text())
        assert (info["key"], info["kernel_name"]) == ("secret", "mine")
        kernel.send_signal(signal.SIGINT)
        with client_of(path) as client:
            client.shutdown()
            client.get_control_msg(timeout=TIMEOUT)
        assert kernel.wait(20) == 0
    assert path.exists()


def children_of(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_the_kernel_ends_with_its_parent(kernel_environment: Mapping[str, str], short_tmp: Path) -> None:  # noqa: F811
    path = short_tmp / "connection.json"
    code = (
        "import os, subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-m', 'agentvm_kernel', '-f', sys.argv[1]],"
        " env=dict(os.environ, JPY_PARENT_PID=str(os.getpid())))\ntime.sleep(100)"
    )
    environment = {**os.environ, **kernel_environment}
    with subprocess.Popen([sys.executable, "-c", code, str(path)], env=environment) as parent:
        wait_until(lambda: has_json(path), "connection file")
        (kernel,) = children_of(parent.pid)
        watched = os.pidfd_open(kernel)
        parent.kill()
    os.set_blocking(watched, False)
    wait_until(lambda: not alive(kernel), "the kernel's end")
    os.close(watched)


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_the_kernel_process_is_small(kernel_environment: Mapping[str, str]) -> None:  # noqa: F811
    with notebook(kernel_environment) as nb:
        nb.run("%vm status")
        for _ in range(100):
            nb.run("1")
        rollup = Path(f"/proc/{nb.pid}/smaps_rollup").read_text()
    private = sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_")) / 1024
    assert private < 80, f"{private:.1f} MiB"


def test_a_killed_kernel_gives_its_vm_back(kernel_environment: Mapping[str, str]) -> None:  # noqa: F811
    with notebook(kernel_environment) as nb:
        agent = nb.control("usage_request", {})["pid"] if nb.run("1").status == "ok" else 0
        os.kill(nb.pid, signal.SIGKILL)
        wait_until(lambda: not alive(int(agent)), "the guest's end")


def test_snapshots_belong_to_the_notebook_that_jupyter_names_else_to_the_kernel(
    kernel_environment: Mapping[str, str],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in kernel_environment.items():
        monkeypatch.setenv(name, value)
    paths = Paths.of_user()

    async def notebooks() -> list[str]:
        async with SupervisorClient(paths, start=False) as client:
            return [lease.notebook for lease in (await client.status()).leases]

    for session in ("/home/ada/study.ipynb", ""):
        with notebook({**kernel_environment, "JPY_SESSION_NAME": session}) as nb:
            assert nb.run("1").status == "ok"
            assert (session or Path(nb.manager.connection_file).stem) in asyncio.run(notebooks())


def test_flags_and_aliases_are_those_of_jupyter(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(short_tmp))
    old = signal.getsignal(signal.SIGINT)
    app = AgentVMKernelApp()
    try:
        app.initialize(["--ip=127.0.0.1", "--ident=me", "--user=ada", "--profile=light", "--image=minimal", "--debug"])
        assert (app.session.session, app.session.username) == ("me", "ada")
        assert (app.profile, app.image, app.log_level) == ("light", "minimal", 10)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert Path(app.connection_file).parent == short_tmp
    finally:
        signal.signal(signal.SIGINT, old)
        app.sockets.close()
        app.heartbeat.start()
        app.heartbeat.stop()
        app._remove_connection_file()


def test_stdout_and_stderr_can_be_silenced(kernel_environment: Mapping[str, str], short_tmp: Path) -> None:  # noqa: F811
    path = short_tmp / "connection.json"
    with process(kernel_environment, "-f", str(path), "--no-stderr", "--no-stdout", "--debug") as kernel:
        wait_until(lambda: has_json(path), "connection file")
        kernel.kill()
        assert kernel.stderr
        assert kernel.stderr.read() == b""
