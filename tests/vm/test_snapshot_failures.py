"""A snapshot that cannot be kept costs one line: the notebook goes on, and the next one lacks nothing."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kernel_client import Notebook, notebook
from travel import back, named, ok, refused, saved, told, value
from vms import environment_of, own_supervisor

pytestmark = pytest.mark.timeout(300)

STATE = "(steps, zlib.crc32(large), [open(f'/home/agent/{step}').read() == step * 9000 for step in steps])"


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
