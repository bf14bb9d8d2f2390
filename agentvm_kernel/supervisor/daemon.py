"""The supervisor's process: lock, log, signals, readiness, idle exit."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path

from aiohttp import web

from agentvm_kernel.config import Paths, load_settings
from agentvm_kernel.errors import AgentVMError, ConfigError, SupervisorError, host_error
from agentvm_kernel.supervisor.api import make_app
from agentvm_kernel.supervisor.core import Supervisor
from agentvm_kernel.supervisor.operator import Operator
from agentvm_kernel.supervisor.systemd import notify
from agentvm_kernel.vm.libvirt_hypervisor import LibvirtHypervisor

_log = logging.getLogger(__name__)

_LOG_BYTES = 1_000_000
_LOG_FILES = 3
# A Unix socket's path holds 107 bytes (unix(7)); below the runtime folder lie vm/<id>/control.sock and the like.
_MAX_RUNTIME_PATH = 107 - len("/vm/vm-00000000/control.sock")
_SHUTDOWN_SECONDS = 2.0


class AlreadyRunningError(SupervisorError):
    """Another supervisor of this user is running; that one serves."""

    code = "already_running"


def prepare_folders(paths: Paths) -> None:
    """Create the user's folders with the right modes.

    Raises:
        SupervisorError: a folder cannot be made, or the runtime folder's path is too long for sockets.
    """
    if len(os.fsencode(paths.runtime)) > _MAX_RUNTIME_PATH:
        raise SupervisorError(
            f"The path {paths.runtime} is too long for Unix sockets ({_MAX_RUNTIME_PATH} bytes).",
            "Set AGENTVM_STATE_DIR to a shorter one.",
        )
    # Root's QEMUs run as another user, who has to pass through, not to look around.
    mode = 0o711 if os.geteuid() == 0 else 0o700
    for folder in (paths.cache, paths.state, paths.runtime):
        try:
            folder.mkdir(mode=mode, parents=True, exist_ok=True)
            folder.chmod(mode)
        except OSError as error:
            raise SupervisorError(f"{folder}: {error.strerror}.", "Make it writable, or set AGENTVM_*_DIR.") from error


@contextmanager
def only_one(paths: Paths) -> Iterator[None]:
    """Hold the lock that only one supervisor of a user can have.

    Raises:
        AlreadyRunningError: another one has it.
    """
    with (paths.runtime / "supervisor.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise AlreadyRunningError(
                "A supervisor of this user is already running.", "`agentvm supervisor --stop` lets it leave."
            ) from error
        yield


class _PrivateLog(RotatingFileHandler):
    """A log that nobody else reads, however often it is begun anew: others may pass through root's state folder."""

    def _open(self) -> TextIOWrapper:
        private = partial(os.open, mode=0o600)
        return open(self.baseFilename, "a", encoding=self.encoding, opener=private)


def _configure_log(paths: Paths, foreground: bool) -> None:
    handler: logging.Handler = logging.StreamHandler()
    if not foreground:
        handler = _PrivateLog(paths.log, maxBytes=_LOG_BYTES, backupCount=_LOG_FILES)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("qemu.qmp").setLevel(logging.WARNING)  # it tells of every QEMU that ends


@contextmanager
def _private_socket(path: Path) -> Iterator[None]:
    """Let nobody else open the socket between its creation and its chmod."""
    path.unlink(missing_ok=True)
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)


async def serve(paths: Paths, ready_fd: int | None, foreground: bool) -> None:
    """Run until told to stop, or until nobody has needed a VM for long enough.

    Args:
        paths: The user's folders.
        ready_fd: Gets ``1`` when requests are served.
        foreground: Do not leave when idle.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    settings = load_settings(paths)
    hypervisor = LibvirtHypervisor(settings.uri, paths.state / "libvirt", paths.tag, nat=settings.network.nat)
    supervisor = Supervisor(paths, settings, hypervisor)
    await supervisor.open()
    runner = web.AppRunner(
        make_app(supervisor, stop), handler_cancellation=True, shutdown_timeout=_SHUTDOWN_SECONDS, access_log=None
    )
    await runner.setup()
    with _private_socket(paths.socket):
        await web.UnixSite(runner, str(paths.socket)).start()
    loop.add_signal_handler(signal.SIGHUP, _reload, supervisor)
    _log.info("serving on %s, accelerator %s: %s", paths.socket, supervisor.accelerator, supervisor.accelerator_reason)
    gc.freeze()  # all that there is now stays: to look through it again and again would hold up who waits for a VM
    if ready_fd is not None:
        _tell(ready_fd, b"1")
    notify("READY=1")
    try:
        await _wait_for_end(supervisor, stop, is_staying=foreground)
        notify("STOPPING=1")
        await Operator(supervisor).leave()
    finally:
        paths.socket.unlink(missing_ok=True)
        await supervisor.close()
        await runner.cleanup()
    _log.info("ended")


def _reload(supervisor: Supervisor) -> None:
    try:
        changed = Operator(supervisor).reload()
    except ConfigError as error:
        _log.error("the configuration stays as it was: %s", error)
    else:
        _log.info("read the configuration again; changed: %s", ", ".join(changed) or "nothing")


async def _wait_for_end(supervisor: Supervisor, stop: asyncio.Event, *, is_staying: bool) -> None:
    while not stop.is_set():
        idle_exit = None if is_staying else supervisor.settings.idle_exit
        idle_since = supervisor.idle_since()
        remaining = None if idle_exit is None or idle_since is None else idle_since + idle_exit - supervisor.now()
        if remaining is not None and remaining <= 0:
            _log.info("nobody has needed a VM for %g s", idle_exit)
            return
        try:
            await asyncio.wait_for(stop.wait(), remaining if remaining is not None else idle_exit)
        except TimeoutError:
            continue


def run(ready_fd: int | None = None, foreground: bool = False) -> int:
    """Run the supervisor; the process's main function.

    Args:
        ready_fd: An inherited descriptor that gets ``1`` once requests are served, or one JSON line with the error.
        foreground: Log to standard error and stay when idle.

    Returns:
        The process's exit status.
    """
    paths = Paths.of_user()
    try:
        prepare_folders(paths)
        with only_one(paths):
            _configure_log(paths, foreground)
            asyncio.run(serve(paths, ready_fd, foreground))
    except AlreadyRunningError as error:
        _report(ready_fd, error)
        if foreground:
            print(error, file=sys.stderr)
        return int(foreground)
    except AgentVMError as error:
        _log.error("%s", error)
        _report(ready_fd, error)
        return 1
    except OSError as error:
        _log.exception("the host refused")
        _report(ready_fd, host_error(error))
        return 1
    return 0


def _report(ready_fd: int | None, error: AgentVMError) -> None:
    if ready_fd is not None:
        line = json.dumps({"code": error.code, "message": error.message, "hint": error.hint})
        _tell(ready_fd, line.encode() + b"\n")


def _tell(ready_fd: int, what: bytes) -> None:
    """Tell whoever started this process, if it still waits."""
    with suppress(BrokenPipeError):
        os.write(ready_fd, what)
    os.close(ready_fd)
