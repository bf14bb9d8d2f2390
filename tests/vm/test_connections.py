"""The VM layer over libvirt's embedded driver, its session and its system daemon, as root and as an ordinary user."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from kernel_client import notebook
from other_user import readable_python
from subreaper import reaped
from travel import back, ok, saved, told, value
from vms import environment_of, own_supervisor

from agentvm_kernel.config import Paths
from agentvm_kernel.supervisor.sync_client import SyncSupervisorClient

SCRIPT = Path(__file__).with_name("clone_script.py")
SOCKETS = Path("/run/libvirt")
USER = "nobody"
SECONDS = 400

pytestmark = pytest.mark.timeout(SECONDS + 60)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="another user's VMs can only be tried by root")


def run_script(uri: str, folder: Path, user: str | None = None, group: str | None = None) -> dict[str, object]:
    """Run the script as a user, maybe with a supplementary group, and return what it saw."""
    python = Path(sys.executable)
    if user is None:
        cache, prefix, environment = Paths.of_user().cache, [], dict(os.environ)
    else:
        entry = pwd.getpwnam(user)
        cache = folder / "cache"
        cache.mkdir()
        # Images are readable by all; golden snapshots are this user's own.
        (cache / "images").symlink_to(Paths.of_user().cache / "images")
        for path in (folder, cache):
            os.chown(path, entry.pw_uid, entry.pw_gid)
        folder.chmod(0o700)  # as homes are
        groups = f"--groups={group}" if group else "--init-groups"
        prefix = ["setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", groups]
        python, extra = readable_python()
        environment = {"HOME": str(folder), "PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": str(folder), **extra}
    command = reaped([*prefix, str(python), str(SCRIPT), uri, str(folder), str(cache)])
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="avm-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def system_daemon() -> Iterator[None]:
    """Libvirt's system daemon: the host's own if it runs, else one that ends with the tests."""
    if is_answering():
        yield
        return
    if shutil.which("libvirtd") is None or os.geteuid() != 0:
        pytest.skip("no libvirtd runs and only root could start one")
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as config:
        # As the distributions' packages have it: who is in the group may connect.
        config.write('unix_sock_group = "libvirt"\nunix_sock_rw_perms = "0770"\nauth_unix_rw = "none"\n')
        config.flush()
        # So have they this; a daemon started by hand makes it for root alone.
        SOCKETS.mkdir(exist_ok=True)
        SOCKETS.chmod(0o755)
        processes = [start_daemon("virtlogd"), start_daemon("libvirtd", "--config", config.name)]
        try:
            if not any(is_answering() for _ in range(100)):
                raise AssertionError("libvirtd does not answer")
            yield
        finally:
            for process in reversed(processes):
                process.send_signal(signal.SIGTERM)
                process.wait(60)


def start_daemon(name: str, *arguments: str) -> subprocess.Popen[bytes]:
    path = shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin")
    assert path is not None
    return subprocess.Popen(reaped([path, *arguments]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def is_answering() -> bool:
    command = ["virsh", "-c", "qemu:///system", "version"]
    try:
        return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return False


def check(seen: dict[str, object], uid: int) -> None:
    assert seen["left"] == []
    first, second = seen["vms"]
    for vm in (first, second):
        assert vm["link"] is True
        assert vm["uid"] == uid
        assert vm["seccomp"] == 2, "QEMU's seccomp sandbox is off"
        assert vm["shared"] == "The VM's kernel has no 9p file system, by which folders are shared. None"
    assert first["facts"]["hostname"] == "vm-a"
    assert second["facts"]["hostname"] == "vm-b"


def test_embedded_as_this_user(folder: Path) -> None:
    root = os.geteuid() == 0
    check(run_script("embed", folder), pwd.getpwnam("libvirt-qemu").pw_uid if root else os.geteuid())


@needs_root
def test_embedded_as_an_ordinary_user(folder: Path) -> None:
    check(run_script("embed", folder, USER), pwd.getpwnam(USER).pw_uid)


@needs_root
def test_session_daemon_as_an_ordinary_user(folder: Path) -> None:
    check(run_script("qemu:///session", folder, USER), pwd.getpwnam(USER).pw_uid)


@needs_root
def test_system_daemon_as_root(folder: Path, system_daemon: None) -> None:
    check(run_script("qemu:///system", folder), pwd.getpwnam("libvirt-qemu").pw_uid)


@needs_root
def test_system_daemon_as_an_ordinary_user(folder: Path, system_daemon: None) -> None:
    check(run_script("qemu:///system", folder, USER, "libvirt"), pwd.getpwnam(USER).pw_uid)


@needs_root
def test_a_folder_is_shared_by_a_vm_of_the_system_daemon(system_daemon: None) -> None:
    mine = Path(tempfile.mkdtemp(prefix="avm-mine-"))
    mine.chmod(0o777)  # QEMU is another user
    (mine / "data").write_text("from the host")
    with own_supervisor("\n[pool]\nwarm = 0\nblanks = 0\n") as paths:  # each QEMU takes this daemon long to start
        environment = {**environment_of(paths), "AGENTVM_IMAGE": "standard", "AGENTVM_URI": "qemu:///system"}
        with notebook(environment) as nb:
            told(nb, f"%workspace {mine}")
            with SyncSupervisorClient(paths, start=False) as client:
                assert client.status().libvirt == "qemu:///system"
            assert value(nb, "open('shared/data').read()") == "from the host"
            assert nb.run("open('shared/new', 'w')").status == "error"
            told(nb, f"%workspace {mine} --rw")
            ok(nb, "open('shared/new', 'w').write('from the VM')")
            saved(nb, "with")
            ok(nb, "import os; left = True")
            back(nb, "with")
            assert value(nb, "('left' in globals(), open('shared/new').read())") == (False, "from the VM")
            assert told(nb, "%workspace off") == "No folder is shared with the VM."
    assert sorted(path.name for path in mine.iterdir()) == ["data", "new"]
    assert stat.S_ISREG((mine / "new").lstat().st_mode)
    shutil.rmtree(mine)
