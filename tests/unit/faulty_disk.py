"""Disks that fail at a chosen step, and what a power cut leaves of a folder."""

from __future__ import annotations

import errno
import os
import random
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
    """Knows what of a folder is durable: contents of files, and names in folders, each as of its last sync.

    Args:
        root: The folder; all that is in it now counts as durable.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._contents: dict[int, bytes] = {}
        self._names: dict[int, dict[str, tuple[int, bool]]] = {}
        self._open: list[int] = []  # so that no inode number is used twice
        for path in (root, *root.rglob("*")):
            self.on_sync(path)

    def on_sync(self, path: Path) -> None:
        self._open.append(os.open(path, os.O_RDONLY))
        number = path.stat().st_ino
        if path.is_dir():
            self._names[number] = _names_in(path)
        else:
            self._contents[number] = path.read_bytes()

    def cut(self, target: Path, what: str, seed: int = 0) -> None:
        """Write what is left after a power cut. Of contents that is what was synced; of names it depends.

        Args:
            target: Folder to create.
            what: ``strict``: only names that were synced; ``names``: all names; ``some``: by chance either, for each.
            seed: For ``some``.
        """
        chance = random.Random(seed)
        choose = {"strict": lambda: False, "names": lambda: True, "some": lambda: chance.random() < 0.5}[what]
        now = {path.stat().st_ino: _names_in(path) for path in (self._root, *self._root.rglob("*")) if path.is_dir()}
        self._restore(self._root.stat().st_ino, target, now, choose)
        for descriptor in self._open:
            os.close(descriptor)

    def _restore(
        self, number: int, target: Path, now: dict[int, dict[str, tuple[int, bool]]], choose: Callable[[], bool]
    ) -> None:
        target.mkdir()
        durable, current = self._names.get(number, {}), now.get(number, {})
        for name in sorted(durable | current):
            entry = (current if choose() else durable).get(name)
            if entry is None:
                continue
            inode, is_folder = entry
            if is_folder:
                self._restore(inode, target / name, now, choose)
            else:
                (target / name).write_bytes(self._contents.get(inode, b""))


def _names_in(folder: Path) -> dict[str, tuple[int, bool]]:
    return {entry.name: (entry.inode(), entry.is_dir()) for entry in os.scandir(folder)}
