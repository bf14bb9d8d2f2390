"""A host with an ordinary user, who may use libvirt's system daemon: whose supervisor it is, and whose sessions."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import cast

import lent_sessions
import pytest
from lent_sessions import KEY, Sessions
from system_host import SystemHost

from agentvm_kernel import Session
from agentvm_kernel.config import Paths

USER, UID = "avm-ada", 61_234
_GROUP, _GROUP_ID = "libvirt", 61_235
_PROJECT = Path(__file__).parents[2]

Lease = Callable[..., AbstractContextManager[Session]]


class SharedHost(SystemHost):
    """The world; its supervisors are the user's.

    The user is known in the host's mount namespace only: the machine's own /etc stays as it is.

    Attributes:
        home: The user's folder.
    """

    # As the distributions' packages have it: who is in the group may connect.
    config = f'unix_sock_group = "{_GROUP}"\n{SystemHost.config}'

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.home = folder / "home"
        self._cache = self.home / "cache"
        self.home.mkdir(mode=0o700)
        self._cache.mkdir()
        # Images are readable by all; golden snapshots are this user's own.
        (self._cache / "images").symlink_to(Paths.of_user().cache / "images")
        self._give(self.home)
        groups = [line for line in Path("/etc/group").read_text().splitlines() if not line.startswith(f"{_GROUP}:")]
        groups += [f"{USER}:x:{UID}:", f"{_GROUP}:x:{_GROUP_ID}:{USER}", ""]
        (self.etc / "group").write_text("\n".join(groups))
        users = Path("/etc/passwd").read_text()
        (self.etc / "passwd").write_text(f"{users}{USER}:x:{UID}:{UID}::{self.home}:/bin/sh\n")

    def python(self) -> tuple[list[str], dict[str, str]]:
        """The user's Python."""
        python, extra = readable_python()
        prefix = ["setpriv", "--pdeathsig", "TERM", f"--reuid={USER}", f"--regid={USER}", "--init-groups", str(python)]
        return prefix, {**os.environ, "HOME": str(self.home), "XDG_RUNTIME_DIR": str(self.home), **extra}

    @contextmanager
    def supervised(self, config: str = "") -> Iterator[Paths]:
        """Run a supervisor of the user's on the host."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AGENTVM_CACHE_DIR", str(self._cache))
            with super().supervised(config) as paths:
                yield paths

    @contextmanager
    def supervisor(self, paths: Paths) -> Iterator[None]:
        """Run a supervisor in folders that become the user's."""
        paths.log.touch()
        self._give(paths.config.parent)
        with super().supervisor(paths):
            yield

    @contextmanager
    def sessions(self) -> Iterator[Lease]:
        """Have a process of the user's that opens sessions; what this yields makes one, as `Session` does."""
        address = str(self.home / "sessions")
        python, environment = self.python()
        command = self.command(*python, lent_sessions.__file__, address)
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
                sessions = Sessions(address, KEY)
                sessions.connect()
                yield partial(_leased, sessions)
            finally:
                process.terminate()

    def _give(self, folder: Path) -> None:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, UID, UID, follow_symlinks=False)


@contextmanager
def _leased(sessions: Sessions, **options: object) -> Iterator[Session]:
    session = sessions.lease(**options)  # type: ignore[attr-defined]
    session.open()
    try:
        yield cast("Session", session)
    finally:
        session.close()


def readable_python() -> tuple[Path, dict[str, str]]:
    """Return a Python with our packages that another user can run, and the environment that it needs."""
    packages = Path(sysconfig.get_path("purelib"))
    if not _is_open_to_all(packages) or not _is_open_to_all(Path(__file__)):
        pytest.skip(f"{packages} lies in a folder that other users may not enter")
    if _is_open_to_all(Path(sys.executable).resolve()):
        return Path(sys.executable), {}
    system = Path(f"/usr/bin/python3.{sys.version_info.minor}")
    if not system.exists():
        pytest.skip(f"{sys.executable} is closed to other users, and there is no {system}")
    return system, {"PYTHONPATH": f"{packages}:{_PROJECT}"}


def _is_open_to_all(path: Path) -> bool:
    return all(parent.stat().st_mode & 0o001 for parent in path.parents)
