"""Control groups of our own, where libvirt makes none: a part of the cgroup v2 tree that this process may use.

A process may limit others by cgroup as root, or where a part of the tree is delegated to it (systemd: ``Delegate=yes``;
a user's own service will do). Below the group that this process is in there is a folder, ``agentvm``, with a group for
each VM. The kernel allows no processes in a group whose controllers are given on, so this process moves into a leaf.
Standard library only: the tests run it in a guest, whose kernel has the controllers that this host's may lack.

Source: the kernel's Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_CONTROLLERS: Final = ("cpu", "memory")
_FOLDER: Final = "agentvm"
_LEAF: Final = "supervisor"  # also what the systemd unit may name as its DelegateSubgroup
CPU_PERIOD: Final = 100_000
"""Microseconds over which a CPU quota is counted."""
WEIGHT: Final = 100
"""A group's share of a CPU that others want, too, unless it is set."""


class NoCgroupError(OSError):
    """This process may make no control groups; the text says why."""


@dataclass(frozen=True)
class Subtree:
    """The part of the tree that is this process's own.

    Attributes:
        base: The group below which our folder is.
    """

    base: Path

    @property
    def folder(self) -> Path:
        """Our folder."""
        return self.base / _FOLDER

    def check(self) -> None:
        """Look whether it can be used, and change nothing.

        Raises:
            NoCgroupError: it cannot.
        """
        offered = (self.base / "cgroup.controllers").read_text().split()
        missing = [name for name in _CONTROLLERS if name not in offered]
        if missing:
            raise NoCgroupError(f"{self.base} has no controller for {' and '.join(missing)}")
        if not all(os.access(path, os.W_OK) for path in (self.base, self.base / "cgroup.subtree_control")):
            raise NoCgroupError(f"{self.base} is not writable")
        if self._is_inner() and (others := self._processes() - {os.getpid()}):
            raise NoCgroupError(f"{self.base} is shared with {len(others)} other processes")

    def prepare(self) -> None:
        """Make our folder, and give the controllers on to the groups in it.

        Raises:
            NoCgroupError: that is not possible here.
        """
        self.check()
        try:
            if self._is_inner() and self._processes():
                leaf = self.base / _LEAF
                leaf.mkdir(exist_ok=True)
                _write(leaf / "cgroup.procs", str(os.getpid()))
            self.folder.mkdir(exist_ok=True)
            for group in (self.base, self.folder):
                _write(group / "cgroup.subtree_control", " ".join(f"+{name}" for name in _CONTROLLERS))
        except OSError as error:
            raise NoCgroupError(f"{self.base}: {error.strerror}") from error

    def place(self, name: str, pid: int) -> Path:
        """Put a process into a group of its own, and return the group.

        Raises:
            OSError: the kernel refused.
        """
        group = self.folder / name
        group.mkdir(exist_ok=True)
        _write(group / "cgroup.procs", str(pid))
        return group

    def remove(self, name: str) -> bool:
        """Remove a group, if there is one and no process is left in it, and say whether it was so."""
        try:
            (self.folder / name).rmdir()
        except OSError:
            return False
        return True

    def sweep(self, prefix: str) -> list[str]:
        """Remove the groups whose names have a prefix and in which nothing runs, and return their names."""
        if not self.folder.is_dir():
            return []
        return [
            path.name for path in sorted(self.folder.glob(f"{prefix}*")) if path.is_dir() and self.remove(path.name)
        ]

    def _is_inner(self) -> bool:
        """Whether the rule against processes in inner groups holds here: everywhere but in the tree's root."""
        return (self.base / "cgroup.type").exists()

    def _processes(self) -> set[int]:
        return {int(line) for line in (self.base / "cgroup.procs").read_text().split()}


def limit(group: Path, *, cores: float | None, memory: int) -> None:
    """Set a group's limits.

    Args:
        group: The group.
        cores: CPU seconds a second; ``None`` for no limit.
        memory: Bytes.

    Raises:
        OSError: the kernel refused.
    """
    _write(group / "cpu.max", f"{'max' if cores is None else int(cores * CPU_PERIOD)} {CPU_PERIOD}")
    _write(group / "memory.max", str(memory))


def set_weight(group: Path, weight: int) -> None:
    """Set a group's share of a CPU that others want, too; a new group has ``WEIGHT``.

    Raises:
        OSError: the kernel refused.
    """
    _write(group / "cpu.weight", str(weight))


def find_subtree(proc: Path = Path("/proc/self")) -> Subtree:
    """Return the part of the tree in which this process is.

    Raises:
        NoCgroupError: there is no cgroup v2 here.
    """
    mounts = re.search(r"^\S+ (\S+) cgroup2 ", (proc / "mounts").read_text(), re.MULTILINE)
    own = re.search(r"^0::(/.*)$", (proc / "cgroup").read_text(), re.MULTILINE)
    if mounts is None or own is None:
        raise NoCgroupError("no cgroup v2 is mounted")
    group = Path(mounts[1] + own[1])
    if not group.is_dir():
        raise NoCgroupError(f"{group} is not visible here")
    return Subtree(group.parent if group.name == _LEAF else group)


def remove_tree(group: Path) -> None:
    """Remove a group with the groups in it, as far as nothing runs there: only empty ones can be removed."""
    for folder, _, _ in os.walk(group, topdown=False):
        with suppress(OSError):
            Path(folder).rmdir()


def _write(file: Path, text: str) -> None:
    file.write_text(text)
