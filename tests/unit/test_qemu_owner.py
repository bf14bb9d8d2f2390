"""Under which user QEMU runs, and what that user is given."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from agentvm_kernel.errors import HostError
from agentvm_kernel.vm import libvirt_connection
from agentvm_kernel.vm.disk import give_to
from agentvm_kernel.vm.libvirt_connection import QEMU_USER, qemu_owner

UID, GID = 4242, 4243


@pytest.fixture
def system_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system daemon's folder, as an ordinary user sees it."""
    monkeypatch.setattr(libvirt_connection, "_SYSTEM_FOLDER", tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: UID)
    monkeypatch.setattr(os, "getegid", lambda: GID)
    return tmp_path


@pytest.mark.parametrize("uri", ["embed", "qemu:///session"])
def test_a_users_own_libvirt_has_only_that_user(system_folder: Path, uri: str) -> None:
    assert qemu_owner(uri) is None


def test_the_system_daemon_runs_an_ordinary_users_qemu_as_that_user(system_folder: Path) -> None:
    system_folder.chmod(0o751)
    assert qemu_owner("qemu:///system") == (UID, GID)


def test_where_the_daemons_folder_is_closed_qemu_gets_its_group(system_folder: Path) -> None:
    system_folder.chmod(0o750)
    assert qemu_owner("qemu:///system") == (UID, system_folder.stat().st_gid)


def test_a_host_without_system_daemon_is_named(system_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libvirt_connection, "_SYSTEM_FOLDER", system_folder / "absent")
    with pytest.raises(HostError, match="absent"):
        qemu_owner("qemu:///system")


def test_roots_qemu_runs_as_libvirts_user(monkeypatch: pytest.MonkeyPatch) -> None:
    me = pwd.getpwuid(os.getuid())
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(pwd, "getpwnam", {QEMU_USER: me}.__getitem__)
    assert qemu_owner("embed") == qemu_owner("qemu:///system") == (me.pw_uid, me.pw_gid)


def test_a_file_stays_in_its_group_where_qemu_runs_as_this_user(tmp_path: Path) -> None:
    group = tmp_path.stat().st_gid
    give_to(tmp_path, (os.geteuid(), group + 1))
    assert tmp_path.stat().st_gid == group
