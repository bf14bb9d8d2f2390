"""Under which user QEMU runs, and what that user is given."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
from pathlib import Path

import pytest

from agentvm_kernel.errors import HostError
from agentvm_kernel.vm import libvirt_connection
from agentvm_kernel.vm.disk import create_overlay, give_to
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


async def test_an_overlay_is_qemus_and_empty(tmp_path: Path) -> None:
    overlay = tmp_path / "disk-2.qcow2"
    owner = (UID, GID) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    await create_overlay(overlay, 1, owner=owner)
    assert (overlay.stat().st_uid, overlay.stat().st_gid) == owner
    shown = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", str(overlay)]))
    assert (shown["format"], shown["virtual-size"], "backing-filename" in shown) == ("qcow2", 999_997_440, False)


@pytest.mark.parametrize("is_there", [True, False])
async def test_a_link_that_qemu_has_put_in_an_overlays_place_is_not_followed(tmp_path: Path, is_there: bool) -> None:
    """Its folder is a running QEMU's, which whoever broke out into it can write to; root would change any file."""
    victim, overlay = tmp_path / "victim", tmp_path / "disk-2.qcow2"
    if is_there:
        victim.write_text("precious")
    overlay.symlink_to(victim)
    with pytest.raises(HostError):
        await create_overlay(overlay, 1, owner=(UID, GID))
    assert (victim.read_text() if victim.exists() else None) == ("precious" if is_there else None)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_a_link_leads_to_is_not_given_away(tmp_path: Path) -> None:
    victim, link = tmp_path / "victim", tmp_path / "link"
    victim.touch()
    link.symlink_to(victim)
    give_to(link, (UID, GID))
    assert victim.stat().st_uid == 0
