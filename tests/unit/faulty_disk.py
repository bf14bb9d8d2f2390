"""Disks that fail at a chosen step, and what a power cut leaves of a folder."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentvm_kernel.durable import Disk

STEPS = ("sync", "write", "make", "make_folder", "protect", "rename", "link", "unlink", "rmdir")


class Killed(BaseException):
    """The process is dead: nothing catches this, and no step is taken after it."""


class FaultyDisk(Disk):
    """Counts its steps, and fails at one of them.

    Args:
        at: Number of the step, from 1; 0 for none.
        fault: ``kill`` (before the step), ``torn`` (after it; a file that it writes is cut in half), or the name of an
            errno, which that one step fails with.
        on_sync: Called after each sync with the path.
    """

    def __init__(self, at: int = 0, fault: str = "kill", on_sync: Callable[[Path], None] | None = None) -> None:
        self.at = at
        self.fault = fault
        self.steps: list[str] = []
        self.is_dead = False
        self._on_sync = on_sync

    def take_step(self, name: str, *arguments: Any) -> None:
        if self.is_dead:
            raise Killed
        path = arguments[1] if name in {"rename", "link"} else arguments[0]
        self.steps.append(f"{name} {path.name}")
        step = getattr(super(), name)
        if len(self.steps) != self.at:
            step(*arguments)
        elif self.fault in {"kill", "torn"}:
            self.is_dead = True
            if self.fault == "torn":
                step(*arguments)
                if name in {"write", "make"}:
                    os.truncate(path, path.stat().st_size // 2)
            raise Killed
        else:
            number = getattr(errno, self.fault)
            raise OSError(number, os.strerror(number), str(path))
        if name == "sync" and self._on_sync is not None:
            self._on_sync(path)


def _make_step(name: str) -> Callable[..., None]:
    def step(self: FaultyDisk, *arguments: Any) -> None:
        self.take_step(name, *arguments)

    return step


for _name in STEPS:
    setattr(FaultyDisk, _name, _make_step(_name))


class PowerCut:
    """Knows what of a folder is durable: file contents and names in folders, each as of its last sync.

    Args:
        root: The folder; all that is in it now counts as durable.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._files: dict[int, bytes] = {}
        self._folders: dict[int, list[tuple[str, int, bool]]] = {}
        self._open: list[int] = []  # so that no inode number is used twice
        for path in (root, *root.rglob("*")):
            self.on_sync(path)

    def on_sync(self, path: Path) -> None:
        self._open.append(os.open(path, os.O_RDONLY))
        number = path.stat().st_ino
        if path.is_dir():
            self._folders[number] = [(entry.name, entry.inode(), entry.is_dir()) for entry in os.scandir(path)]
        else:
            self._files[number] = path.read_bytes()

    def close(self) -> None:
        for descriptor in self._open:
            os.close(descriptor)

    def strict(self, target: Path) -> None:
        """Write what is left if everything is lost that was not synced."""
        self._restore(self._root.stat().st_ino, target)

    def _restore(self, number: int, target: Path) -> None:
        target.mkdir()
        for name, inode, is_folder in self._folders.get(number, []):
            if is_folder:
                self._restore(inode, target / name)
            else:
                (target / name).write_bytes(self._files.get(inode, b""))

    def names_only(self, target: Path) -> None:
        """Write what is left if all names made it to the disk, but of the contents only what was synced."""
        for path in (self._root, *sorted(self._root.rglob("*"))):
            copy = target / path.relative_to(self._root)
            if path.is_dir():
                copy.mkdir()
            else:
                copy.write_bytes(self._files.get(path.stat().st_ino, b""))
