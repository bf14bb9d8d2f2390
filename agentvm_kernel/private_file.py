"""Reads files that hold secrets: only while nobody but their user can read or change them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from agentvm_kernel.errors import HostError, host_error


def read_private(path: Path, largest: int) -> bytes | None:
    """Return a file's content, or None if there is none.

    Args:
        path: The file.
        largest: The most that it may hold, bytes.

    Raises:
        HostError: it cannot be read, is no regular file, is longer, or others may read or change it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise host_error(error) from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > largest:
            raise HostError(f"{path} is no file of ours.", "Remove it.")
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise HostError(
                f"{path} is open to others than its user.",
                f"Take what is in it for known to others; then make it private again: chmod 600 {path}.",
            )
        return file.read(largest)
