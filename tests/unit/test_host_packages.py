"""The script that installs the host's packages, with made-up dpkg, apt and sudo in front of PATH."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from agentvm_kernel import host
from agentvm_kernel.errors import HostError

COMMON = "ca-certificates e2fsprogs gcc git libc6-dev mmdebstrap pkg-config python3 python3-dev python3-venv uidmap"
VIRTUAL = "qemu-system-x86 qemu-utils libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients libvirt-dev"


class Host:
    """A made-up host: a folder of programs, a list of installed packages, a record of what ran as root."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.installed = folder / "installed"
        self.calls = folder / "calls"
        self.calls.touch()
        self.program("dpkg-query", f"cat {self.installed}")
        self.program("dpkg", f'[ "$1" = --print-architecture ] && cat {folder}/architecture || exec /usr/bin/dpkg "$@"')
        self.program("id", "echo 1000")
        self.program(
            "apt-get",
            f"case $1 in indextargets) cat {folder}/targets ;; *) cat {folder}/after > {self.installed} ;; esac",
        )
        # The commands are recorded, with what they are given to write; only apt "runs".
        self.program(
            "sudo",
            f'echo "$@" >> {self.calls}\ncase $1 in tee) cat >> {self.calls} ;; env) shift 2; "$@" ;; esac',
        )
        (folder / "architecture").write_text("amd64\n")
        (folder / "targets").write_text("")
        self.release("debian", "12")
        self.install(f"{COMMON} {VIRTUAL} libvirt-daemon-log")
        (folder / "after").write_text(self.installed.read_text())

    def program(self, name: str, text: str) -> None:
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def release(self, name: str, version: str) -> None:
        (self.folder / "os-release").write_text(f'PRETTY_NAME="A System"\nID={name}\nVERSION_ID="{version}"\n')

    def install(self, names: str, qemu: str = "1:10.0.2+ds-2") -> None:
        versions = {"qemu-system-x86": qemu}
        self.installed.write_text("".join(f"installed {name} {versions.get(name, '1.0')}\n" for name in names.split()))

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = variables | {
            "PATH": f"{self.folder}:/usr/bin:/bin",
            "AGENTVM_OS_RELEASE": str(self.folder / "os-release"),
        }
        command = ["/bin/sh", str(host.SCRIPT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    # `make test` asks for what the tests need besides.
    monkeypatch.delenv("AGENTVM_TEST_PACKAGES", raising=False)
    return Host(tmp_path)


def test_complete_host_is_left_alone(made_up: Host) -> None:
    done = made_up.run()
    assert (done.returncode, done.stdout, done.stderr) == (0, "All packages are there.\n", "")
    assert made_up.run("--check").returncode == 0
    assert made_up.calls.read_text() == ""


def test_check_lists_what_is_missing_and_changes_nothing(made_up: Host) -> None:
    made_up.install(f"{COMMON} {VIRTUAL}".replace("uidmap", "").replace("libvirt-dev", ""))
    done = made_up.run("--check")
    assert done.returncode == 1
    assert done.stdout.split() == ["libvirt-dev", "libvirt-daemon-log", "uidmap"]
    assert made_up.calls.read_text() == ""


def test_a_removed_package_counts_as_missing(made_up: Host) -> None:
    made_up.installed.write_text(made_up.installed.read_text().replace("installed git", "config-files git"))
    assert made_up.run("--check").stdout.split() == ["git"]


@pytest.mark.parametrize(("version", "missing"), [("1:7.2+dfsg-7", ["qemu-system-x86"]), ("1:8.2.2+ds-0", [])])
def test_a_qemu_that_is_too_old_counts_as_missing(made_up: Host, version: str, missing: list[str]) -> None:
    made_up.install(f"{COMMON} {VIRTUAL} libvirt-daemon-log", qemu=version)
    assert made_up.run("--check").stdout.split() == missing


@pytest.mark.parametrize(
    ("name", "version", "extra"),
    [
        ("debian", "12", {"libvirt-daemon-log"}),
        ("debian", "13", {"libvirt-daemon-log"}),
        ("ubuntu", "24.04", {"libvirt-daemon-system", "debian-archive-keyring"}),
    ],
)
def test_each_system_has_its_packages(made_up: Host, name: str, version: str, extra: set[str]) -> None:
    made_up.release(name, version)
    made_up.install("")
    assert set(made_up.run("--check").stdout.split()) == {*COMMON.split(), *VIRTUAL.split(), *extra}


def one_line(folder: Path) -> str:
    path = folder / "debian.list"
    path.write_text("deb [arch=amd64 signed-by=/keys/one.gpg] http://mirror.example/debian bookworm main\n")
    return f"{path}:1"


def deb822(folder: Path) -> str:
    path = folder / "debian.sources"
    path.write_text(
        "Types: deb\nURIs: http://other.example\n\nTypes: deb\nSuites: bookworm\nSigned-By: /keys/two.gpg\n"
    )
    return f"{path}:2"


def unsigned(folder: Path) -> str:
    path = folder / "plain.list"
    path.write_text("deb http://mirror.example/debian bookworm main\n")
    return f"{path}:1"


@pytest.mark.parametrize(
    ("source", "key"),
    [
        (one_line, "/keys/one.gpg"),
        (deb822, "/keys/two.gpg"),
        (unsigned, "/usr/share/keyrings/debian-archive-keyring.gpg"),
    ],
)
def test_debian_12_gets_backports_from_its_own_mirror(made_up: Host, source: Callable[[Path], str], key: str) -> None:
    made_up.install("")
    (made_up.folder / "targets").write_text(f"bookworm main http://mirror.example/debian/ {source(made_up.folder)}\n")
    done = made_up.run()
    assert done.returncode == 0, done.stderr
    calls = made_up.calls.read_text()
    stanza = "Types: deb\nURIs: http://mirror.example/debian/\nSuites: bookworm-backports\nComponents: main\n"
    assert f"{stanza}Signed-By: {key}\n" in calls
    assert f"install --target-release bookworm-backports {VIRTUAL} libvirt-daemon-log\n" in calls
    assert f"install {COMMON}\n" in calls


def test_backports_that_are_there_are_used_as_they_are(made_up: Host) -> None:
    made_up.install("")
    line = "bookworm-backports main http://mirror.example/debian/ /etc/apt/sources.list:1\n"
    (made_up.folder / "targets").write_text(line)
    assert made_up.run().returncode == 0
    assert "agentvm-backports" not in made_up.calls.read_text()


def test_debian_12_without_a_mirror_is_told_what_to_add(made_up: Host) -> None:
    made_up.install("")
    done = made_up.run()
    assert done.returncode == 2
    assert "do not name a mirror of bookworm" in done.stderr


def test_other_systems_install_from_their_own_release(made_up: Host) -> None:
    made_up.release("debian", "13")
    made_up.install("")
    assert made_up.run().returncode == 0
    calls = made_up.calls.read_text()
    assert "backports" not in calls
    assert "--no-install-recommends --no-remove install" in calls


def test_what_the_tests_need_runs_as_no_service(made_up: Host) -> None:
    made_up.release("debian", "13")
    (made_up.folder / "after").write_text(made_up.installed.read_text() + "installed prometheus 2.42\n")
    assert made_up.run(AGENTVM_TEST_PACKAGES="prometheus").returncode == 0
    assert "update-rc.d prometheus disable\n" in made_up.calls.read_text().partition(" prometheus\n")[2]
    before = made_up.calls.read_text()
    assert made_up.run(AGENTVM_TEST_PACKAGES="prometheus").returncode == 0
    assert made_up.calls.read_text() == before


def test_apt_that_does_not_deliver_is_reported(made_up: Host) -> None:
    made_up.release("debian", "13")
    made_up.install("")
    (made_up.folder / "after").write_text("")
    done = made_up.run()
    assert done.returncode == 2
    assert "still missing" in done.stderr


def test_apt_that_fails_is_reported(made_up: Host) -> None:
    made_up.release("debian", "13")
    made_up.install("")
    made_up.program("apt-get", "exit 100")
    done = made_up.run()
    assert done.returncode == 2
    assert "apt-get ended with an error" in done.stderr


def test_without_root_and_sudo_the_remedy_is_named(made_up: Host) -> None:
    made_up.install("")
    made_up.release("debian", "13")
    (made_up.folder / "sudo").unlink()
    tools = made_up.folder / "tools"
    tools.mkdir()
    for name in ("sed", "head", "tr", "env", "cat"):
        (tools / name).symlink_to(Path("/usr/bin") / name)
    environment = {"PATH": f"{made_up.folder}:{tools}", "AGENTVM_OS_RELEASE": str(made_up.folder / "os-release")}
    done = subprocess.run(["/bin/sh", str(host.SCRIPT)], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2
    assert f"As root: sh {host.SCRIPT}" in done.stderr


@pytest.mark.parametrize(("name", "version"), [("fedora", "42"), ("debian", "11"), ("ubuntu", "22.04"), ("", "")])
def test_unsupported_systems_are_refused_with_what_to_do(made_up: Host, name: str, version: str) -> None:
    made_up.release(name, version)
    done = made_up.run()
    assert done.returncode == 2
    assert "not a supported system" in done.stderr
    assert "Supported: Debian 12, Debian 13, Ubuntu 24.04" in done.stderr


def test_other_architectures_are_refused(made_up: Host) -> None:
    (made_up.folder / "architecture").write_text("arm64\n")
    done = made_up.run()
    assert done.returncode == 2
    assert "only amd64 is supported, and this is arm64" in done.stderr


def test_unknown_argument_shows_the_usage(made_up: Host) -> None:
    assert "Usage: packages.sh [--check]" in made_up.run("--force").stderr


def test_python_callers_get_names_and_errors(made_up: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{made_up.folder}:{os.environ['PATH']}")
    monkeypatch.setenv("AGENTVM_OS_RELEASE", str(made_up.folder / "os-release"))
    assert host.missing_packages() == []
    host.install_packages()
    made_up.release("fedora", "42")
    with pytest.raises(HostError, match="'fedora 42' is not a supported system") as raised:
        host.missing_packages()
    assert raised.value.hint.startswith("Supported: Debian 12")
    with pytest.raises(HostError):
        host.install_packages()
