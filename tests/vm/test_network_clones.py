"""Clones and rollbacks while downloads run: old connections die cleanly on both sides, new ones work at once."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest
from egress_bed import Visitor, visitor
from internet import Internet, internet
from kernel_client import wait_until

from agentvm_kernel.config import Paths

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]

DOWNLOADS = """
downloads = [
    subprocess.Popen(["curl", "-sS", "-o", "/dev/null", f"http://good.example.org/trickle?{i}"], stderr=subprocess.PIPE)
    for i in range(3)
]
"""
NEW = "through(b'good.example.org', 80, get('good.example.org', '/new'))[:15]"
# How the old ones end, and whether a new one is served, in one cell.
AFTER = f"[[one.wait(60) for one in downloads], {NEW}]"
# As fast as they can, so that at any moment some of it is on its way; nothing of it is zero, as an empty inbox is.
READERS = """
import threading, urllib.request
foreign, ends = [], []
def read_on():
    try:
        with urllib.request.urlopen("http://good.example.org/bytes/100000000000") as answer:
            while piece := answer.read(1 << 16):
                if not piece.strip(b"\\0"):
                    foreign.append(len(piece))
    except Exception as error:
        ends.append(type(error).__name__)
readers = [threading.Thread(target=read_on, daemon=True) for _ in range(3)]
for one in readers:
    one.start()
"""
ENDED = "[one.join(60) for one in readers] and [len(foreign), len(ends)]"
# curl(1): a transfer that is cut off; a failure in receiving.
CUT_OFF = {18, 56}


@pytest.fixture(scope="module")
def world() -> Iterator[Internet]:
    with internet() as ours:
        yield ours


@pytest.fixture(scope="module")
def paths(world: Internet) -> Iterator[Paths]:
    with world.supervised() as ours:
        yield ours


@pytest.fixture
def vm(paths: Paths) -> Iterator[Visitor]:
    with visitor(paths) as ours:
        yield ours


def active(world: Internet) -> int:
    return world.web.active["/trickle"]


def test_rollback_while_downloads_run(vm: Visitor, world: Internet) -> None:
    vm.do(DOWNLOADS)
    wait_until(lambda: active(world) == 3, "the downloads run")
    taken = vm.session.snapshot("downloading")
    assert vm.value("[one.poll() for one in downloads]") == [None] * 3
    assert active(world) == 3, "a snapshot cuts nothing"
    for _ in range(2):
        vm.session.rollback(taken)
        ends, new = vm.value(AFTER)
        assert set(ends) <= CUT_OFF
        assert new == "data: HTTP/1.1 "
        wait_until(lambda: active(world) == 0, "the servers' ends are closed")
        vm.do(DOWNLOADS)
        wait_until(lambda: active(world) == 3, "new downloads run")
    assert len([one for one in vm.session.connections() if one.verdict == "allowed"]) >= 9
    assert world.trespasses == []


def test_forks_while_downloads_run(vm: Visitor, world: Internet) -> None:
    vm.do(DOWNLOADS)
    wait_until(lambda: active(world) == 3, "the downloads run")
    results = vm.session.fork(3, f"show({AFTER})", timeout=120)
    for result in results:
        ends, new = json.loads(result.cell.stdout.rpartition("\n@")[2])
        assert set(ends) <= CUT_OFF
        assert new == "data: HTTP/1.1 "
    assert vm.value("[one.poll() for one in downloads]") == [None] * 3
    assert active(world) == 3, "the forked VM's own downloads go on"
    vm.session.adopt(results[0].fork)
    assert vm.value(NEW) == "data: HTTP/1.1 "
    wait_until(lambda: active(world) == 0, "the servers' ends are closed")
    vms = {one.vm for one in vm.session.connections() if one.verdict == "allowed"}
    assert len(vms) == 4
    assert world.trespasses == []


def test_no_forks_program_is_given_what_lies_in_its_own_inbox(vm: Visitor, world: Internet) -> None:
    vm.do(READERS)
    path = "/bytes/100000000000"
    wait_until(lambda: world.web.active[path] == 3, "the downloads run")
    for _ in range(3):
        results = vm.session.fork(3, f"show({ENDED})", timeout=120)
        assert [json.loads(one.cell.stdout.rpartition("\n@")[2]) for one in results] == [[0, 3]] * 3
    assert vm.value("[foreign, ends]") == [[], []], "the forked VM's own downloads go on"
    assert world.trespasses == []
