"""The folder of the host that the VM shares for a while: mounts it, and lets go of it.

The host plugs a device in before and takes it away afterwards. All of this may block: the host's file system may be
slow, and the kernel has to load its drivers first.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import socket
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agentvm_guest.identity import RequestError

# <linux/netlink.h>, <linux/virtio_ids.h>, <sys/mount.h>
_UEVENTS = 15
_VIRTIO_9P = 9
_READ_ONLY, _NO_SETUID, _NO_DEVICES = 1, 2, 4
_NO_FOLLOW = 8

_OPTIONS = "trans=virtio,version=9p2000.L,msize=262144,cache=mmap"

_DEVICES = Path("/sys/bus/virtio/devices")
_WORDS = 60
_MOST_NAMED = 5


@dataclass(frozen=True)
class Wanted:
    """What the owner says of the folder.

    Attributes:
        tag: The name under which the device offers it.
        writable: Whether the host lets it be changed.
    """

    tag: str
    writable: bool


def parse_wanted(request: dict[str, object]) -> Wanted:
    """Read a ``mount`` request.

    Raises:
        RequestError: naming the field that is not valid.
    """
    tag, writable = request.get("tag"), request.get("writable")
    if not isinstance(tag, str) or not tag.isascii() or not tag.isalnum() or len(tag) > 31:
        raise RequestError("tag is not valid")
    if not isinstance(writable, bool):
        raise RequestError("writable is not valid")
    return Wanted(tag, writable)


class Share:
    """The place where the folder is mounted.

    Args:
        place: Where.
        owner: User and group of the folder there while nothing is mounted.
    """

    def __init__(self, place: Path, owner: tuple[int, int]) -> None:
        self._place = place
        self._owner = owner

    def mount(self, wanted: Wanted, seconds: float) -> dict[str, object]:
        """Wait for the device, and mount it.

        Args:
            wanted: What the owner says of it.
            seconds: How long to wait.

        Returns:
            The outcome: ``mounted``; ``no_9p`` where the kernel has no such file system; ``occupied`` where something
            else is in the place.

        Raises:
            OSError: the device did not come, or the kernel refused.
        """
        if not self._is_free():
            return {"outcome": "occupied"}
        try:
            self._mount(wanted, time.monotonic() + seconds)
        except OSError as error:
            self._leave()
            if error.errno == errno.ENODEV:
                return {"outcome": "no_9p"}
            raise
        return {"outcome": "mounted"}

    def _mount(self, wanted: Wanted, deadline: float) -> None:
        """Mount it as soon as the device has come and its driver, which the first attempt loads, has taken it."""
        flags = _NO_SETUID | _NO_DEVICES | (0 if wanted.writable else _READ_ONLY)
        with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _UEVENTS) as changes:
            changes.bind((0, 1))
            while True:
                if _is_plugged():
                    with contextlib.suppress(FileNotFoundError):  # its driver is about to take it
                        return _mount(wanted.tag, str(self._place), "9p", flags, _OPTIONS)
                _await_change(changes, deadline)

    def unmount(self) -> dict[str, object]:
        """Unmount it; nothing happens if it is not mounted any more.

        Returns:
            The outcome: ``unmounted``; ``busy``, with some of those who use it.

        Raises:
            OSError: the kernel refused.
        """
        try:
            _unmount(str(self._place))
        except OSError as error:
            if error.errno == errno.EBUSY:
                return {"outcome": "busy", "by": _users_of(self._place)}
            if error.errno not in {errno.EINVAL, errno.ENOENT}:
                raise
        self._leave()
        return {"outcome": "unmounted"}

    def _is_free(self) -> bool:
        """Make the place; whether nothing is there."""
        with contextlib.suppress(FileExistsError):
            self._place.mkdir()
            os.chown(self._place, *self._owner)
        status = self._place.lstat()
        is_mounted = status.st_dev != self._place.parent.stat().st_dev
        return stat.S_ISDIR(status.st_mode) and not is_mounted and not any(self._place.iterdir())

    def _leave(self) -> None:
        with contextlib.suppress(OSError):  # somebody has put something there
            self._place.rmdir()


def _is_plugged() -> bool:
    return any(_number(device / "device") == _VIRTIO_9P for device in _DEVICES.iterdir())


def _await_change(changes: socket.socket, deadline: float) -> None:
    """Wait until the kernel says that something has changed, whatever it is."""
    poll = select.poll()
    poll.register(changes, select.POLLIN)
    left = deadline - time.monotonic()
    if left <= 0 or not poll.poll(1000 * left):
        raise OSError(errno.ETIMEDOUT, "the shared folder's device did not come")
    with contextlib.suppress(OSError):  # some was lost
        changes.recv(65536)


def _number(path: Path) -> int:
    try:
        return int(path.read_text(), 0)
    except (OSError, ValueError):  # it is just going
        return -1


def _users_of(place: Path, proc: Path = Path("/proc")) -> list[str]:
    """Return names and ids of some of the processes that use a mounted file system."""
    device = place.stat().st_dev
    found: list[str] = []
    for process in proc.iterdir():
        if process.name.isdecimal() and any(_is_on(link, device) for link in _links(process)):
            name = (process / "comm").read_text(errors="replace").strip()
            found.append(f"{name} ({process.name})"[:_WORDS])
        if len(found) == _MOST_NAMED:
            break
    return found


def _links(process: Path) -> Iterator[Path]:
    yield from (process / "cwd", process / "root", process / "exe")
    for folder in ("fd", "map_files"):
        with contextlib.suppress(OSError):  # it has ended
            yield from (process / folder).iterdir()


def _is_on(link: Path, device: int) -> bool:
    try:
        return link.stat().st_dev == device
    except OSError:
        return False


def _mount(source: str, target: str, kind: str, flags: int, options: str) -> None:
    _check(_libc.mount(source.encode(), target.encode(), kind.encode(), flags, options.encode()), target)


def _unmount(target: str) -> None:
    _check(_libc.umount2(target.encode(), _NO_FOLLOW), target)


_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, target: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)
