"""The supervisor under systemd: the unit, and what systemd is told."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hypervisor import FakeHypervisor
from supervisor_bed import FakeStore, make_paths
from typer.testing import CliRunner

from agentvm_kernel import cli
from agentvm_kernel.config import Paths
from agentvm_kernel.errors import ConfigError
from agentvm_kernel.supervisor import catalogue, daemon
from agentvm_kernel.supervisor.client import SupervisorClient
from agentvm_kernel.supervisor.systemd import install_unit, notify, unit

ANALYZE = shutil.which("systemd-analyze")
ACCELERATED = 'accelerator = "tcg"\ntransport = "serial"\n'


@pytest.fixture
def told(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """systemd's end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(short_tmp / "notify"))
        listening.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", str(short_tmp / "notify"))
        yield listening


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An ordinary user's."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path


def test_systemd_is_told(told: socket.socket) -> None:
    notify("READY=1")
    assert told.recv(100) == b"READY=1"


def test_systemd_is_told_over_an_abstract_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("")  # the kernel chooses an abstract name
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + listening.getsockname()[1:].decode())
        notify("STOPPING=1")
        assert listening.recv(100) == b"STOPPING=1"


def test_nobody_is_told_where_nobody_listens(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    assert not caplog.text
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nothing"))
    notify("READY=1")
    assert "could not be told READY=1" in caplog.text


async def test_the_daemon_tells_when_it_serves_reloads_on_sighup_and_tells_when_it_leaves(
    told: socket.socket, short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "ImageStore", FakeStore)
    monkeypatch.setattr(daemon, "LibvirtHypervisor", lambda *_, **__: FakeHypervisor())
    paths = make_paths(short_tmp)
    daemon.prepare_folders(paths)
    paths.config.write_text(ACCELERATED)
    serving = asyncio.create_task(daemon.serve(paths, None, True))
    assert await asyncio.to_thread(told.recv, 100) == b"READY=1"
    async with SupervisorClient(paths, start=False) as client:
        assert (await client.pool()).max_vms == 64
        paths.config.write_text(f"{ACCELERATED}max_vms = 5\n")
        os.kill(os.getpid(), signal.SIGHUP)
        async with asyncio.timeout(20):
            while (await client.pool()).max_vms != 5:  # noqa: ASYNC110 - it comes with a signal
                await asyncio.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)
    assert await asyncio.to_thread(told.recv, 100) == b"STOPPING=1"
    await serving


def test_the_unit_starts_this_python_with_these_folders(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTVM_STATE_DIR", "/srv/agentvm")
    monkeypatch.delenv("AGENTVM_CONFIG", raising=False)
    text = unit()
    assert f"ExecStart={sys.executable} -P -m agentvm_kernel.supervisor --foreground\n" in text
    assert "Environment=AGENTVM_STATE_DIR=/srv/agentvm\n" in text
    assert "AGENTVM_CONFIG" not in text
    assert "WantedBy=default.target\n" in text
    assert "@" not in text
    for path in ("/srv/my state", "/srv/$x", "/srv/%h"):
        monkeypatch.setenv("AGENTVM_STATE_DIR", path)
        with pytest.raises(ConfigError, match="cannot be written"):
            unit()


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed (package systemd)")
@pytest.mark.parametrize("scope", ["--user", "--system"])
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scope: str) -> None:
    monkeypatch.setenv("AGENTVM_STATE_DIR", "/srv/agentvm")
    (tmp_path / "agentvm.service").write_text(unit())
    assert ANALYZE
    checked = subprocess.run(
        [ANALYZE, "verify", scope, tmp_path / "agentvm.service"],
        capture_output=True, text=True, env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}, check=False,
    )  # fmt: skip
    assert (checked.returncode, checked.stderr) == (0, "")


def test_the_unit_is_installed_for_the_user_and_over_nobody_elses(home: Path) -> None:
    result = CliRunner().invoke(cli.app, ["supervisor", "--install-unit"])
    written = home / "systemd/user/agentvm.service"
    assert str(written) in result.stdout
    assert "systemctl --user enable --now agentvm.service" in result.stdout
    assert "enable-linger" in result.stdout
    assert install_unit() == written
    assert written.read_text() == unit()
    written.write_text("[Service]\nExecStart=/bin/mine\n")
    with pytest.raises(ConfigError, match="not from agentvm"):
        install_unit()
    assert "mine" in written.read_text()


def test_a_second_supervisor_in_the_foreground_says_so_and_fails(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AGENTVM_STATE_DIR", str(short_tmp))
    monkeypatch.setenv("AGENTVM_CACHE_DIR", str(short_tmp / "cache"))
    paths = Paths.of_user()
    daemon.prepare_folders(paths)
    with daemon.only_one(paths):
        assert daemon.run(foreground=True) == 1
        assert "already running" in capsys.readouterr().err
        assert daemon.run() == 0
