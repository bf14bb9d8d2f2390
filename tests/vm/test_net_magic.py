"""`%net`, directives and policies in real VMs: what is allowed arrives, the rest is refused with a reason, and noted.

The servers are on loopback, where only the configuration's `reachable` lets connections lead; the host's name server is
a hosts file that only the supervisor under test sees.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from audited import audited
from kernel_client import Notebook, notebook, wait_until
from travel import back, ok, refused, saved, told, value
from vms import environment_of, own_supervisor

from agentvm_kernel import Session
from agentvm_kernel.config import Paths

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.geteuid() != 0, reason="a mount namespace, for a hosts file, needs root"),
    pytest.mark.skipif(not Path("/etc/hosts").exists(), reason="there is no /etc/hosts to hide"),
]

NETWORK = """
[profiles.offline]
vcpus = 1
memory_mib = 512
disk_gb = 4
network = "none"

[network]
defaults = false
reachable = ["127.0.0.1"]
"""
NAMES = ("one.example", "two.example", "three.example")

TOOLS = """
import socket, subprocess

def curl(host):
    return subprocess.run(["curl", "-sS", "--max-time", "60", f"http://{host}/"], capture_output=True, text=True)

def resolved(name):
    try:
        return socket.gethostbyname(name)
    except OSError as error:
        return type(error).__name__
"""


class _Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, _Web)
        self.server.asked.append(self.headers["Host"])
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        pass


class _Web(ThreadingHTTPServer):
    """A web server that remembers whom it was asked as."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Page)
        self.asked: list[str] = []


@dataclass(frozen=True)
class Bed:
    """The supervisor under test, and the server."""

    paths: Paths
    web: _Web

    @property
    def environment(self) -> dict[str, str]:
        return environment_of(self.paths)

    @property
    def port(self) -> int:
        return int(self.web.server_port)

    def at(self, name: str) -> str:
        return f"{name}:{self.port}"


@contextmanager
def _serving() -> Iterator[_Web]:
    with _Web() as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        try:
            yield web
        finally:
            web.shutdown()
            thread.join()


@contextmanager
def _supervised(paths: Paths) -> Iterator[None]:
    """Run the supervisor where the names of the test lead to loopback."""
    hosts = paths.config.parent / "hosts"
    hosts.write_text("".join(f"127.0.0.1 {name} {name}.\n" for name in ("localhost", *NAMES)))
    mount = 'mount --bind "$0" /etc/hosts && exec "$@"'
    command = [sys.executable, "-m", "agentvm_kernel.supervisor", "--foreground"]
    with (paths.config.parent / "supervisor.txt").open("wb") as log:
        process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", mount, str(hosts), *command],
            env=os.environ | paths.environment, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        wait_until(paths.socket.exists, "the supervisor's socket")
        yield
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def bed() -> Iterator[Bed]:
    with own_supervisor(NETWORK) as paths, _serving() as web, _supervised(paths):
        yield Bed(paths, web)


@contextmanager
def _notebook(environment: Mapping[str, str]) -> Iterator[Notebook]:
    with notebook(environment) as nb:
        ok(nb, TOOLS)
        yield nb


@pytest.fixture
def nb(bed: Bed) -> Iterator[Notebook]:
    bed.web.asked.clear()
    with _notebook(bed.environment) as nb:
        yield nb


def got(nb: Notebook, host: str) -> str:
    """What curl gets from a host."""
    return str(value(nb, f"curl({host!r}).stdout"))


def test_a_cell_is_refused_told_how_and_then_let_through(bed: Bed, nb: Notebook) -> None:
    one = bed.at("one.example")
    cell = ok(nb, f"print(curl({one!r}).stdout)")
    assert "one.example is not allowed" in cell.text()
    assert bed.web.asked == []
    assert f"Refused by the network policy: {one}." in cell.text("stderr")
    assert f"%net allow {one}" in cell.text("stderr")
    assert f"Allowed: {one}." in told(nb, f"%net allow {one}")
    assert got(nb, one) == "hello"
    assert bed.web.asked == [one]
    verdicts = [line.split()[-1] for line in _log(nb, "one.example", ("refused", "allowed"))]
    assert verdicts == ["refused", "allowed"]
    status = dict(line.split("  ", 1) for line in told(nb, "%net").splitlines())
    assert status["allowed by %net"].strip() == one
    assert "1 allowed in all, 1 refused" in status["connections"]


def _log(nb: Notebook, name: str, verdicts: tuple[str, ...]) -> list[str]:
    """The lines of `%net log` about a name, cut behind the verdict."""
    lines = [line for line in told(nb, "%net log").splitlines() if name in line]
    return [line[: line.index(word) + len(word)] for line in lines for word in verdicts if word in line][:2]


def test_a_directive_holds_for_its_cell_only(bed: Bed, nb: Notebook) -> None:
    two = bed.at("two.example")
    ids = [nb.client.execute(code) for code in (
        f"# net: allow {two}\nprint(curl({two!r}).stdout)", f"print(curl({two!r}).stdout)",
    )]  # fmt: skip
    inside, after = (nb.finish(msg_id) for msg_id in ids)
    assert inside.text().strip() == "hello"
    assert "is not allowed" in after.text()
    assert bed.web.asked == [two]
    assert "is no directive" in refused(nb, "# net: open everything\n1")


def test_the_policy_goes_along_through_rollback_fork_adoption_and_restart(bed: Bed, nb: Notebook) -> None:
    one, three = bed.at("one.example"), bed.at("three.example")
    saved(nb, "before")
    ok(nb, f"%net allow {one} {three}")
    assert got(nb, one) == "hello"
    plan = told(nb, "%rollback before --dry-run")
    assert "Not undone: what went over the network, in 1 connection:" in plan
    assert f"  {one}  " in plan
    back(nb, "before")
    assert got(nb, one) == "hello"
    ok(nb, f"%%fork 2\nseen = curl({three!r}).stdout; seen")
    assert bed.web.asked.count(three) == 2
    ok(nb, "%adopt 2")
    assert value(nb, "seen") == "hello"
    assert got(nb, three) == "hello"
    ok(nb, "%vm restart")
    ok(nb, TOOLS)
    assert got(nb, one) == "hello"
    ok(nb, f"%net deny {three}")
    assert "is denied" in got(nb, three)
    assert bed.web.asked.count(three) == 3


def test_a_recording_is_replayed_without_the_host(bed: Bed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one, two = bed.at("one.example"), bed.at("two.example")
    bed.web.asked.clear()
    with _notebook(bed.environment) as nb:
        ok(nb, f"%net allow {one} {two}")
        assert "recording" in told(nb, "%net record demo")
        assert got(nb, one) == "hello"
        assert "replaying, 1 left" in told(nb, "%net replay demo")
        assert got(nb, one) == "hello"
        assert value(nb, f"'not recorded' in curl({two!r}).stdout") is True
        assert bed.web.asked == [one]
        ok(nb, "%net live")
        assert got(nb, two) == "hello"
    assert (tmp_path / "demo.cassette.jsonl").exists()


def test_off_is_nothing_not_even_names(bed: Bed, nb: Notebook) -> None:
    one = bed.at("one.example")
    ok(nb, f"%net allow {one}")
    assert got(nb, one) == "hello"
    assert value(nb, "resolved('one.example')").startswith("198.1")
    assert "Mode isolated" in told(nb, "%net off")
    assert value(nb, "resolved('one.example')") == "gaierror"
    assert value(nb, f"curl({one!r}).returncode") != 0
    assert "Mode filtered" in told(nb, "%net mode filtered")
    assert got(nb, one) == "hello"
    assert bed.web.asked == [one, one]


def test_the_isolated_profile_resolves_nothing_whatever_cells_say(bed: Bed) -> None:
    with _notebook(bed.environment | {"AGENTVM_PROFILE": "offline"}) as nb:
        assert value(nb, "resolved('one.example')") == "gaierror"
        assert value(nb, "curl('198.18.0.9').returncode") != 0
        assert "has no network" in refused(nb, "%net mode record-only")
        ok(nb, f"%net allow {bed.at('one.example')}")
        assert value(nb, f"curl({bed.at('one.example')!r}).returncode") != 0
        assert "nothing is carried" in told(nb, "%vm security")


def test_sessions_and_commands_allow_hosts_from_the_beginning(bed: Bed, tmp_path: Path) -> None:
    one, two = bed.at("one.example"), bed.at("two.example")
    bed.web.asked.clear()
    with Session(image="minimal", profile="test", allow=[one], paths=bed.paths) as session:
        session.run(TOOLS)
        assert session.run(f"curl({one!r}).stdout").result == "'hello'"
        assert "is not allowed" in session.run(f"curl({two!r}).stdout").result
        assert [(each.name, each.verdict) for each in session.connections()] == [
            ("one.example", "allowed"),
            ("two.example", "refused"),
        ]
    script = tmp_path / "get.py"
    script.write_text(TOOLS + f"print(curl({two!r}).stdout, curl({one!r}).stdout)\n")
    done = subprocess.run(
        [str(Path(sys.executable).with_name("agentvm")), "run", "--allow", two, str(script)],
        env=os.environ | bed.environment, capture_output=True, text=True, timeout=200, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("hello ")
    assert f"refused: {one}" in done.stderr
    assert f"--allow {one} allows it." in done.stderr
    assert bed.web.asked == [one, two]
    events = audited(bed.paths.state, "network_connection_allowed", "network_connection_blocked")
    kinds = {(event["event"], event["name"]["claimed"]) for event in events}
    assert ("network_connection_allowed", "two.example") in kinds
    assert ("network_connection_blocked", "one.example") in kinds
