"""A snapshot that cannot be kept costs one line: the notebook goes on, and the next one lacks nothing."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kernel_client import Notebook, notebook, wait_until
from travel import back, named, ok, refused, saved, told, value
from vms import environment_of, own_supervisor

pytestmark = pytest.mark.timeout(300)

STATE = "(steps, zlib.crc32(large), [open(f'/home/agent/{step}').read() == step * 9000 for step in steps])"

FILL = """
import os
with open('/home/agent/large', 'wb') as file:
    for _ in range(96):
        file.write(os.urandom(1 << 20))
    file.flush()
    os.fsync(file.fileno())
"""


def step(nb: Notebook, name: str) -> None:
    """Write something to memory and disk that belongs to no other step."""
    ok(nb, f"steps.append({name!r})\nopen('/home/agent/{name}', 'w').write({name!r} * 9000)\nos.sync()")


def fail_and_recover(nb: Notebook, failure: str, make_room: Callable[[], object]) -> None:
    """Take snapshots that do not fit and, once there is room, one that does; look at what that holds."""
    ok(nb, "import os, zlib\nsteps, large = [], b''")
    step(nb, "before")
    saved(nb, "first")
    step(nb, "earlier")
    ok(nb, "large = bytearray(os.urandom(1 << 20) * 96)")
    for attempt in ("one", "two"):
        assert failure in refused(nb, f"%snapshot {attempt}")
        assert attempt not in told(nb, "%snapshots")
        step(nb, attempt)
    make_room()
    expected = value(nb, STATE)
    assert expected[0] == ["before", "earlier", "one", "two"]
    assert all(expected[2])
    saved(nb, "whole")
    ok(nb, "del large\nfor name in steps:\n    os.remove(f'/home/agent/{name}')\nos.sync()")
    back(nb, "first")
    assert value(nb, "(steps, len(large), os.path.exists('/home/agent/earlier'))") == (["before"], 0, False)
    back(nb, "whole")
    assert value(nb, STATE) == expected
    ok(nb, "import subprocess\nsubprocess.run('echo 3 | sudo tee /proc/sys/vm/drop_caches', shell=True, check=True)")
    assert value(nb, STATE) == expected


def test_an_exceeded_quota() -> None:
    with own_supervisor("[snapshots]\nquota_gb = 0.05\n") as paths:
        with notebook(named(environment_of(paths), "/tests/quota.ipynb")) as nb:
            # What is as it was in the first state is not kept.
            fail_and_recover(nb, "of the 50 MB that snapshots may take", lambda: ok(nb, "large[:] = bytes(len(large))"))
        assert not list((paths.state / "snapshots").glob(".*"))


def mount(options: str, folder: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Have a small file system at a folder."""
    mount("size=64M,mode=711", folder)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")
def test_a_full_disk() -> None:
    with own_supervisor(disk=small_disk) as paths:
        with notebook(named(environment_of(paths), "/tests/full.ipynb")) as nb:
            fail_and_recover(nb, "no room", lambda: mount("remount,size=1G", paths.state))
        assert not list((paths.state / "snapshots").glob(".*"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")
def test_a_host_disk_that_is_full_for_a_moment_only_makes_the_guest_wait() -> None:
    with own_supervisor(disk=small_disk) as paths, notebook(environment_of(paths)) as nb:
        ok(nb, "x = 41")
        msg_id = nb.client.execute(FILL)
        wait_until(lambda: os.statvfs(paths.state).f_bavail == 0, "the disk is full")
        wait_until(lambda: "a write of a VM's failed" in paths.log.read_text(), "QEMU has stopped the guest")
        mount("remount,size=1G", paths.state)
        assert nb.finish(msg_id).status == "ok"
        assert value(nb, "x + 1") == 42


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")
def test_a_host_disk_that_stays_full_ends_the_vm_and_says_so() -> None:
    with own_supervisor(disk=small_disk) as paths, notebook(environment_of(paths)) as nb:
        cell = nb.run(FILL)
        assert cell.status == "error"
        assert str(cell.reply["evalue"]).startswith("The host's disk was full, so that the VM could not write")
        ok(nb, "%vm restart")
