"""Opens a folder so that whoever gets it can change nothing through it: the host's kernel sees to that.

It is a program of its own, with the standard library only. Its user need not be root: in a user namespace everybody may
have a mount, and it has to itself none that anybody else sees.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import sys

# <linux/mount.h>, <linux/fcntl.h>, <sched.h>; the numbers of these calls are the same everywhere
_OPEN_TREE, _MOUNT_SETATTR = 428, 442
_HERE = -100
_CLONE, _RECURSIVE, _EMPTY_PATH = 1, 0x8000, 0x1000
_READ_ONLY = 1
_NEW_MOUNTS, _NEW_USER = 0x20000, 0x10000000

_libc = ctypes.CDLL(None, use_errno=True)


def open_view(folder: bytes) -> int:
    """Open a mount of a folder, read-only, that is nowhere in the file tree and goes with its last descriptor.

    Args:
        folder: Its absolute path.

    Raises:
        OSError: there is no such folder, or this host lets nobody do that.
    """
    try:
        tree = _clone(folder)
    except PermissionError:
        _check(_libc.unshare(_NEW_USER | _NEW_MOUNTS))
        tree = _clone(folder)
    try:
        attributes = struct.pack("QQQQ", _READ_ONLY, 0, 0, 0)
        flags = _EMPTY_PATH | _RECURSIVE
        _check(_libc.syscall(_MOUNT_SETATTR, tree, b"", flags, attributes, len(attributes)))
        view = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=tree)
    finally:
        os.close(tree)
    if not os.fstatvfs(view).f_flag & os.ST_RDONLY:
        os.close(view)
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    return view


def _clone(folder: bytes) -> int:
    return _check(_libc.syscall(_OPEN_TREE, _HERE, folder, _CLONE | _RECURSIVE | os.O_CLOEXEC))


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def main() -> None:
    """Send the folder's descriptor, or a word why there is none, to the socket that is the standard input."""
    with socket.socket(fileno=0) as asked:
        try:
            view = open_view(os.fsencode(sys.argv[1]))
        except OSError as error:
            asked.sendall(str(error.strerror).encode())
        else:
            socket.send_fds(asked, [b"\n"], [view])


if __name__ == "__main__":
    main()
