"""Control groups of our own, in folders that look like the kernel's; tests/vm/test_limits_host.py has the kernel's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agentvm_kernel.vm.cgroup import NoCgroupError, Subtree, find_subtree, limit, remove_tree


@pytest.fixture
def subtree(tmp_path: Path) -> Subtree:
    """A delegated group in which only this process is."""
    base = tmp_path / "agentvm.service"
    base.mkdir()
    (base / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    (base / "cgroup.subtree_control").write_text("")
    (base / "cgroup.type").write_text("domain\n")
    (base / "cgroup.procs").write_text(f"{os.getpid()}\n")
    return Subtree(base)


def proc(tmp_path: Path, group: str, mount: str = "") -> Path:
    folder = tmp_path / "proc"
    folder.mkdir()
    (folder / "cgroup").write_text(f"4:memory:/elsewhere\n0::{group}\n")
    (folder / "mounts").write_text(mount or f"cgroup2 {tmp_path} cgroup2 rw,relatime 0 0\n")
    return folder


def test_it_is_found_below_where_cgroup_v2_is_mounted(tmp_path: Path, subtree: Subtree) -> None:
    assert find_subtree(proc(tmp_path, "/agentvm.service")) == subtree


def test_it_is_found_again_from_the_leaf(tmp_path: Path, subtree: Subtree) -> None:
    (subtree.base / "supervisor").mkdir()
    assert find_subtree(proc(tmp_path, "/agentvm.service/supervisor")) == subtree


@pytest.mark.parametrize(
    ("group", "mount", "why"),
    [("/", "tmpfs /tmp tmpfs rw 0 0\n", "no cgroup v2 is mounted"), ("/gone", "", "is not visible here")],
)
def test_a_host_without_it_is_told_apart(tmp_path: Path, group: str, mount: str, why: str) -> None:
    with pytest.raises(NoCgroupError, match=why):
        find_subtree(proc(tmp_path, group, mount))


def test_controllers_that_are_not_delegated_are_named(subtree: Subtree) -> None:
    (subtree.base / "cgroup.controllers").write_text("memory pids\n")
    with pytest.raises(NoCgroupError, match=r"has no controller for cpu$"):
        subtree.check()


def test_a_group_that_others_are_in_is_left_alone(subtree: Subtree) -> None:
    (subtree.base / "cgroup.procs").write_text(f"{os.getpid()}\n1\n2\n")
    with pytest.raises(NoCgroupError, match="is shared with 2 other processes"):
        subtree.prepare()
    assert not subtree.folder.exists()


def test_in_the_root_of_the_tree_others_do_not_matter(subtree: Subtree) -> None:
    (subtree.base / "cgroup.type").unlink()
    (subtree.base / "cgroup.procs").write_text(f"{os.getpid()}\n1\n2\n")
    subtree.prepare()
    assert not (subtree.base / "supervisor").exists()
    assert subtree.folder.is_dir()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_group_that_is_not_writable_is_told_apart(subtree: Subtree) -> None:
    subtree.base.chmod(0o500)
    with pytest.raises(NoCgroupError, match="is not writable"):
        subtree.check()


def test_this_process_moves_into_a_leaf_before_controllers_are_given_on(subtree: Subtree) -> None:
    subtree.prepare()
    assert (subtree.base / "supervisor" / "cgroup.procs").read_text() == str(os.getpid())
    for group in (subtree.base, subtree.folder):
        assert (group / "cgroup.subtree_control").read_text() == "+cpu +memory"


def test_a_refusal_of_the_kernels_is_a_reason(subtree: Subtree) -> None:
    (subtree.base / "supervisor").write_text("a file is in the way")
    with pytest.raises(NoCgroupError, match="File exists"):
        subtree.prepare()


@pytest.mark.parametrize(("cores", "quota"), [(1.5, "150000 100000"), (None, "max 100000")])
def test_a_process_is_limited_in_a_group_of_its_own(subtree: Subtree, cores: float | None, quota: str) -> None:
    subtree.prepare()
    group = subtree.place("agentvm-1", 4711)
    limit(group, cores=cores, memory=1 << 30)
    assert group == subtree.folder / "agentvm-1"
    assert (group / "cgroup.procs").read_text() == "4711"
    assert (group / "cpu.max").read_text() == quota
    assert (group / "memory.max").read_text() == "1073741824"


def test_what_a_killed_supervisor_left_behind_is_swept_where_nothing_runs(subtree: Subtree) -> None:
    assert subtree.sweep("agentvm-me-") == []
    subtree.prepare()
    for name in ("agentvm-me-1", "agentvm-me-2", "agentvm-other-1"):
        (subtree.folder / name).mkdir()
    (subtree.folder / "agentvm-me-2" / "busy").touch()
    assert subtree.sweep("agentvm-me-") == ["agentvm-me-1"]
    assert {path.name for path in subtree.folder.iterdir() if path.is_dir()} == {"agentvm-me-2", "agentvm-other-1"}


def test_a_tree_of_groups_is_removed_from_its_leaves(tmp_path: Path) -> None:
    (tmp_path / "machine" / "emulator").mkdir(parents=True)
    remove_tree(tmp_path / "machine")
    assert not (tmp_path / "machine").exists()


def test_a_tree_in_which_something_runs_stays(tmp_path: Path) -> None:
    (tmp_path / "machine" / "emulator").mkdir(parents=True)
    (tmp_path / "machine" / "emulator" / "busy").touch()
    remove_tree(tmp_path / "machine")
    assert (tmp_path / "machine" / "emulator").exists()
