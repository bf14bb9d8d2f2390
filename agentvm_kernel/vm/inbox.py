"""The file behind a VM's inbox: QEMU reads it, this process writes it; see `agentvm_kernel.link.inbox`."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from agentvm_kernel.errors import HostError
from agentvm_kernel.link.inbox import SIZE
from agentvm_kernel.vm.disk import give_to


def make_inbox(path: Path, owner: tuple[int, int] | None) -> None:
    """Make an empty one: a hole, which takes no room.

    Args:
        path: File to create.
        owner: The user under which QEMU runs, if another.
    """
    path.touch(mode=0o600, exist_ok=False)
    os.truncate(path, SIZE)
    give_to(path, owner)


def open_inbox(path: Path, owner: tuple[int, int] | None) -> int:
    """Open the inbox of a running VM for writing. Its QEMU can have put anything in the file's place.

    Args:
        path: The file.
        owner: As for `make_inbox`.

    Returns:
        A file descriptor, which is the caller's to close.

    Raises:
        HostError: it is not the file that was made.
        OSError: it cannot be opened.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    found = os.fstat(descriptor)
    is_ours = stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_uid == (owner or (os.geteuid(),))[0]
    if not is_ours:
        os.close(descriptor)
        raise HostError(f"{path} is not the file that was made there.", "Restart the kernel for a fresh VM.")
    return descriptor
