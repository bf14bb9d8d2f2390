"""A folder of the host, opened for QEMU: what it can do with it is decided here and not by QEMU."""

from __future__ import annotations

import os
import socket
import subprocess  # nosec B404 - Python itself
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agentvm_kernel.errors import HypervisorError
from agentvm_kernel.vm import readonly_view

_SECONDS: Final = 30
_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class FolderView:
    """An open folder.

    Attributes:
        descriptor: Its descriptor, which the caller closes.
        weakness: Why nobody but QEMU keeps the guest from changing it; empty if the host's kernel does, or if it may.
    """

    descriptor: int
    weakness: str = ""


def open_folder(folder: Path, *, writable: bool) -> FolderView:
    """Open a folder; blocks, as its file system may be slow.

    Args:
        folder: A path without links.
        writable: Whether something may be changed through it.

    Raises:
        HypervisorError: it cannot be opened, or is not what it was when its links were resolved.
    """
    try:
        descriptor = os.open(folder, _FLAGS)
    except OSError as error:
        raise HypervisorError(f"{error.strerror}.") from error
    try:
        if Path(f"/proc/self/fd/{descriptor}").readlink() != folder:
            raise HypervisorError("it is somewhere else now.")
        if writable:
            return FolderView(os.dup(descriptor))
        view, weakness = _read_only(folder)
        if view is None:
            return FolderView(os.dup(descriptor), weakness)
        if not os.path.samestat(os.fstat(view), os.fstat(descriptor)):
            os.close(view)
            raise HypervisorError("it has just been replaced.")
        return FolderView(view)
    finally:
        os.close(descriptor)


def _read_only(folder: Path) -> tuple[int | None, str]:
    """Return the read-only folder, or why there is none."""
    command = [sys.executable, "-I", "-S", readonly_view.__file__, str(folder)]
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            try:
                done = subprocess.run(  # nosec B603
                    command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/",
                    timeout=_SECONDS, check=False,
                )  # fmt: skip
            except (OSError, subprocess.TimeoutExpired) as error:
                return None, str(error)
        said, descriptors, _, _ = socket.recv_fds(ours, 200, 1)
    if descriptors:
        return descriptors[0], ""
    return None, said.decode(errors="replace") or f"status {done.returncode}"
