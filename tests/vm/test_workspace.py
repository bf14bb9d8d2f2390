"""`%workspace` in real VMs: a folder of the host is there, read-only or not, and nothing else of the host is."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from audited import audited_soon
from kernel_client import Notebook, notebook, wait_until
from travel import back, last_words, ok, refused, saved, told, value
from vms import environment_of, own_supervisor, qemus, supervisor_pid

from agentvm_kernel.config import Paths

pytestmark = pytest.mark.timeout(900)

TOOLS = """
import os, socket, stat, subprocess

def root(*words):
    done = subprocess.run(["sudo", *words], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr

def tried(action):
    try:
        return action()
    except OSError as error:
        return type(error).__name__
"""
# Of its own, past the place that was named.
MOUNT = """
options = "trans=virtio,version=9p2000.L,aname=../..,access=any"
root("mkdir", "-p", "/mnt/x")
said = root("busybox", "mount", "-t", "9p", "-o", options, "agentvmshared", "/mnt/x")
"""


@pytest.fixture(scope="module")
def paths() -> Iterator[Paths]:
    with own_supervisor() as ours:
        yield ours


@pytest.fixture(scope="module")
def nb(paths: Paths) -> Iterator[Notebook]:
    with notebook({**environment_of(paths), "AGENTVM_IMAGE": "standard"}) as ours:
        ok(ours, TOOLS)
        yield ours


@pytest.fixture
def world() -> Iterator[Path]:
    """A folder with one that may be shared, into which everybody may write: root's QEMUs run as another user."""
    folder = Path(tempfile.mkdtemp(prefix="avm-world-"))
    folder.chmod(0o711)
    (folder / "secret").write_text("not for the VM")
    shared = folder / "mine"
    shared.mkdir()
    shared.chmod(0o777)
    (shared / "data").write_text("from the host")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def mine(nb: Notebook, world: Path) -> Iterator[Path]:
    yield world / "mine"
    assert told(nb, "%workspace off") == "No folder is shared with the VM."


def test_it_is_there_at_once_and_cannot_be_changed(nb: Notebook, mine: Path, paths: Paths) -> None:
    assert told(nb, "%workspace") == "No folder is shared with the VM."
    assert told(nb, f"%workspace {mine}") == f"{mine} is shared read-only; in the VM it is /workspace/shared."
    assert value(nb, "open('shared/data').read()") == "from the host"
    (mine / "later").write_text("and more")
    assert value(nb, "open('/workspace/shared/later').read()") == "and more"
    assert value(nb, "tried(lambda: open('shared/data', 'w'))") == "OSError"
    assert value(nb, "root('busybox', 'mount', '-o', 'remount,rw', '/home/agent/shared')") == (0, "")
    for words in ("'rm', 'shared/data'", "'touch', 'shared/new'", "'chmod', '777', 'shared/data'"):
        code, said = value(nb, f"root({words})")
        assert (code != 0, "Read-only file system" in said) == (True, True), said
    assert sorted(path.name for path in mine.iterdir()) == ["data", "later"]
    assert f"{mine} is shared read-only" in told(nb, "%vm status")
    cell = ok(nb, f"%workspace {mine} --rw")
    assert cell.metadata["agentvm"]["shared"] == {"path": str(mine), "writable": True}
    said = [record["what"] for record in audited_soon(paths.state, 2, "configuration_changed")]
    assert said[:2] == [f"workspace: {mine}, read-only", f"workspace: {mine}, read and write"]


def test_what_the_vm_makes_is_harmless_here(nb: Notebook, mine: Path, world: Path) -> None:
    (mine / "out").symlink_to(world / "secret")
    (mine / "up").symlink_to("../secret")
    told(nb, f"%workspace {mine} --rw")
    ok(nb, "open('shared/new', 'w').write('from the VM'); os.mkdir('shared/sub'); open('shared/sub/a', 'w').close()")
    assert ((mine / "new").read_text(), (mine / "sub" / "a").exists()) == ("from the VM", True)
    for words in (
        "'mknod', 'shared/null', 'c', '1', '3'",
        "'cp', '/usr/bin/id', 'shared/id'",
        "'chmod', '6755', 'shared/id'",
        f"'ln', '-s', '{world}/secret', 'shared/sly'",
        "'mkfifo', 'shared/pipe'",
    ):
        assert value(nb, f"root({words})")[0] == 0, words
    assert value(nb, "(stat.S_ISCHR(os.stat('shared/null').st_mode), os.readlink('shared/sly')[-6:])") == (
        True,
        "secret",
    )
    for name in ("null", "id", "sly", "pipe"):
        status = (mine / name).lstat()
        assert stat.S_ISREG(status.st_mode), name
        assert not status.st_mode & (stat.S_ISUID | stat.S_ISGID), name
    # Links lead where they lead in the VM, or nowhere; nothing leads above the folder.
    for name in ("sly", "../../../../../secret"):
        assert value(nb, f"tried(lambda: open('shared/{name}').read())") == "FileNotFoundError", name
    for name in ("out", "up"):
        assert value(nb, f"tried(lambda: open('shared/{name}').read())") == "OSError", name
        assert value(nb, f"root('cat', 'shared/{name}')")[0] != 0
    told(nb, f"%workspace {mine}")
    ok(nb, "open('secret', 'w').write('of the VM')")
    assert value(nb, "[tried(lambda: open(f'shared/{name}').read()) for name in ('out', 'up')]") == [
        "FileNotFoundError", "of the VM",
    ]  # fmt: skip


def test_root_in_the_vm_gets_no_further(nb: Notebook, mine: Path, world: Path) -> None:
    told(nb, f"%workspace {mine}")
    ok(nb, "assert root('busybox', 'umount', '/home/agent/shared')[0] == 0")
    ok(nb, MOUNT)
    assert value(nb, "sorted(os.listdir('/mnt/x')) if said[0] == 0 else said") == ["data"]
    assert value(nb, "root('touch', '/mnt/x/new')[0] != 0")
    assert [path.name for path in mine.iterdir()] == ["data"]
    ok(nb, "assert root('busybox', 'umount', '/mnt/x')[0] == 0")


def test_snapshots_and_forks_do_not_have_it_and_the_notebook_keeps_it(nb: Notebook, mine: Path) -> None:
    told(nb, f"%workspace {mine} --rw")
    ok(nb, "kept = open('shared/data')")
    said = refused(nb, "%snapshot refused")
    assert "The shared folder is in use in the VM: by python" in said
    assert "in use" in refused(nb, "%workspace off")
    assert value(nb, "kept.read()") == "from the host", "nothing is lost"
    ok(nb, "kept.close(); open('shared/before', 'w').close()")
    saved(nb, "with")
    assert value(nb, "sorted(os.listdir('shared'))") == ["before", "data"]
    forks = told(nb, "%%fork 1\nprint('in the fork:', os.path.exists('shared'))")
    assert "in the fork: False" in forks
    assert value(nb, "sorted(os.listdir('shared'))") == ["before", "data"]
    ok(nb, "state = 'changed'")
    back(nb, "with")
    assert value(nb, "('state' in globals(), sorted(os.listdir('shared')))") == (False, ["before", "data"])
    assert "is shared to read and write" in told(nb, "%workspace")


def test_an_adopted_fork_gets_it_or_it_is_told_why_not(nb: Notebook, mine: Path) -> None:
    told(nb, f"%workspace {mine} --rw")
    forks = told(nb, "%%fork 2\nchosen = os.path.exists('shared')\nos.makedirs('shared/own')\nchosen")
    assert forks.count("False") == 2, forks
    line = told(nb, "%adopt 1")
    assert "shares it again. Something is in /workspace/shared of the VM already." in line
    assert "has lost it" in told(nb, "%workspace")
    ok(nb, "os.removedirs('shared/own')")
    assert "is shared to read and write" in told(nb, f"%workspace {mine} --rw")
    assert value(nb, "chosen") is False
    saved(nb, "adopted")
    told(nb, "%%fork 2\nchosen = os.getpid()")
    assert "not in it" not in told(nb, "%adopt 2")
    ok(nb, "open('shared/after', 'w').write('from the fork')")
    assert (mine / "after").read_text() == "from the fork"
    assert "not in it" not in last_words(back(nb, "adopted"))
    assert value(nb, "(chosen, sorted(os.listdir('shared')))") == (False, ["after", "data"])


def test_a_guest_that_does_not_let_go_is_told_of_and_loses_it_with_its_vm(
    nb: Notebook, world: Path, paths: Paths
) -> None:
    mine = world / "mine"
    told(nb, f"%workspace {mine}")
    ok(nb, "root('mkdir', '-p', '/mnt/y')")
    ok(nb, "assert root('busybox', 'mount', '--bind', '/workspace/shared', '/mnt/y')[0] == 0")
    assert "does not let go of the shared folder, and still has it" in refused(nb, "%workspace off")
    assert value(nb, "1 + 1") == 2
    told(nb, "%vm restart")
    assert told(nb, "%workspace") == "No folder is shared with the VM."
    ok(nb, TOOLS)
    assert value(nb, "os.path.exists('shared')") is False


def test_a_kernel_without_9p_is_told_with_a_remedy(vm_environment: dict[str, str], world: Path) -> None:
    with notebook(vm_environment) as minimal:
        said = refused(minimal, f"%workspace {world / 'mine'}")
        assert "no 9p file system" in said
        assert value(minimal, "__import__('os').path.exists('shared')") is False
        saved(minimal, "afterwards")


def test_a_killed_supervisor_leaves_the_folder_as_it_is(world: Path) -> None:
    mine = world / "mine"
    with own_supervisor() as paths:
        with notebook({**environment_of(paths), "AGENTVM_IMAGE": "standard"}) as nb:
            told(nb, f"%workspace {mine} --rw")
            ok(nb, "open('shared/new', 'w').write('x'); kept = open('shared/data')")
            before = supervisor_pid(paths)
            os.kill(before, signal.SIGKILL)
            wait_until(lambda: nb.run("1").status == "error", "the notebook knows that its VM is gone")
            told(nb, "%vm restart")
            assert told(nb, "%workspace") == "No folder is shared with the VM."
            assert supervisor_pid(paths) != before
            audited_soon(paths.state, 1, "vm_destroyed")
        assert qemus(paths.tag) == [] or (mine / "data").exists()
    assert sorted(path.name for path in mine.iterdir()) == ["data", "new"]
    assert (mine / "data").read_text() == "from the host"
