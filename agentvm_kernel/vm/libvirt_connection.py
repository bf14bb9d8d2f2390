"""The connection to libvirt: embedded driver, session or system daemon.

Libvirt's Python API blocks; its calls run in threads here. One thread starts domains, because several starts at once
are slower than one after the other; a few more carry short monitor commands, so that an acquire does not wait behind a
start.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import stat
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import libvirt

from agentvm_kernel.errors import HostError, HypervisorError

_T = TypeVar("_T")

QEMU_USER = "libvirt-qemu"
EMBED = "embed"
CGROUPS = Path("/sys/fs/cgroup")
_SYSTEM_FOLDER = Path("/var/lib/libvirt/qemu")
_OPEN_SECONDS = 60.0

# Without an explicit file handler the embedded driver looks for virtlogd. Core dumps would hold the guest's memory.
# `user` is only for libvirt's questions about QEMU's capabilities (each domain names its own user): asked as a user who
# may not open /dev/kvm where root may, libvirt takes its cached answers for outdated and asks again, for 10 s a start.
_QEMU_CONF = """\
stdio_handler = "file"
dump_guest_core = 0
"""
_QEMU_CONF_OF_ROOT = """\
user = "+0"
group = "+0"
"""

_event_loop_lock = threading.Lock()
_event_loop_thread: threading.Thread | None = None


def _run_events() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


def _ensure_event_loop() -> None:
    """Start libvirt's event loop: once in a process, before the first connection is opened."""
    global _event_loop_thread  # noqa: PLW0603 - libvirt's event loop is global to the process
    with _event_loop_lock:
        if _event_loop_thread is None:
            libvirt.registerErrorHandler(lambda _context, _error: None, None)  # errors come as exceptions
            libvirt.virEventRegisterDefaultImpl()
            _event_loop_thread = threading.Thread(target=_run_events, name="libvirt-events", daemon=True)
            _event_loop_thread.start()


def qemu_owner(uri: str) -> tuple[int, int] | None:
    """Return uid and gid under which QEMU is to run, or ``None`` where only this process's own are possible.

    Root's QEMUs run as libvirt's own user. An ordinary user's run as that user, also in the system daemon: no other
    user could read the memory files in their home.

    Args:
        uri: ``embed`` or a libvirt URI.
    """
    if os.geteuid() == 0:
        try:
            entry = pwd.getpwnam(QEMU_USER)
        except KeyError as error:
            raise HostError(f"There is no user {QEMU_USER} to run QEMU as.", "Run `agentvm setup`.") from error
        return entry.pw_uid, entry.pw_gid
    return (os.geteuid(), _group_for_system()) if "system" in uri else None


def _group_for_system() -> int:
    # QEMU has to reach its secret below the daemon's folder, which Debian closes to others; upstream's mode is 0751.
    # Where it is closed, QEMU gets its group; then ptrace(2)'s rules keep this process from QEMU's memory.
    try:
        folder = _SYSTEM_FOLDER.stat()
    except FileNotFoundError as error:
        raise HostError(f"Libvirt has no {_SYSTEM_FOLDER}.", "Run `agentvm setup`.") from error
    return os.getegid() if folder.st_mode & stat.S_IXOTH else folder.st_gid


class DomainGoneError(HypervisorError):
    """The domain ended before it could be asked."""


def has_cgroups(uri: str) -> bool:
    """Return whether libvirt gives QEMU control groups: its privileged drivers do where a CPU controller is mounted.

    Args:
        uri: ``embed`` or a libvirt URI.
    """
    is_privileged = "system" in uri or (uri == EMBED and os.geteuid() == 0)
    return is_privileged and any((CGROUPS / name).exists() for name in ("cgroup.controllers", "cpu"))


class LibvirtConnection:
    """One open connection.

    Args:
        uri: ``embed`` or a libvirt URI.
        root: Folder for the embedded driver's state.
    """

    def __init__(self, uri: str, root: Path) -> None:
        self.uri = f"qemu:///embed?root={root}" if uri == EMBED else uri
        self.has_cgroups = has_cgroups(uri)
        self._root = root if uri == EMBED else None
        self._connection: libvirt.virConnect | None = None
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="libvirt-start")
        self._workers = ThreadPoolExecutor(4, thread_name_prefix="libvirt")

    @property
    def handle(self) -> libvirt.virConnect:
        """The open connection."""
        if self._connection is None:
            raise HypervisorError("The connection to libvirt is not open.")
        return self._connection

    @property
    def is_open(self) -> bool:
        """Whether it is open."""
        return self._connection is not None

    async def open(self) -> None:
        """Connect.

        Raises:
            HypervisorError: libvirt refused or did not answer.
        """
        if self._root is not None:
            prepare_root(self._root)
        _ensure_event_loop()
        try:
            self._connection = await asyncio.wait_for(self.call(libvirt.open, self.uri), _OPEN_SECONDS)
        except HypervisorError as error:
            raise HypervisorError(
                f"No connection to libvirt ({self.uri}): {error.message}", "Run `agentvm doctor` for the remedy."
            ) from error

    async def call(self, function: Callable[..., _T], *arguments: object, start: bool = False) -> _T:
        """Run a blocking libvirt call in a thread.

        Args:
            function: What to call.
            *arguments: Its arguments.
            start: It starts a domain: those go one at a time.

        Raises:
            DomainGoneError: libvirt does not know the domain any more.
            HypervisorError: libvirt raised; the message is libvirt's.
        """
        executor = self._starter if start else self._workers
        try:
            return await asyncio.get_running_loop().run_in_executor(executor, partial(function, *arguments))
        except libvirt.libvirtError as error:
            is_gone = error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN
            kind = DomainGoneError if is_gone else HypervisorError
            raise kind(error.get_error_message() or str(error)) from error

    async def close(self) -> None:
        """Disconnect."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await self.call(connection.close)
        self._starter.shutdown()
        self._workers.shutdown()


def prepare_root(root: Path) -> None:
    """Make the folder of an embedded driver, with its configuration.

    Args:
        root: The folder.
    """
    (root / "etc").mkdir(parents=True, exist_ok=True)
    # QEMU's own user (when root owns the supervisor) has to reach the monitor sockets below.
    is_root = os.geteuid() == 0
    root.chmod(0o711 if is_root else 0o700)
    (root / "etc" / "qemu.conf").write_text(_QEMU_CONF + (_QEMU_CONF_OF_ROOT if is_root else ""))
