"""Changes to files that survive a power cut: each method is one step, so that tests can fail every step in turn."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

# Whoever may write into a folder could have put something else there: no links are followed, no FIFO is waited for.
_CAREFUL = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def sync(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are safe on disk."""
    descriptor = os.open(path, _CAREFUL)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Disk:
    """The steps that change a disk."""

    def sync(self, path: Path) -> None:
        """Wait until a file's content, or the names in a folder, are safe on disk."""
        sync(path)

    def write(self, path: Path, content: bytes) -> None:
        """Create a file that only its user may read."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)

    def make(self, path: Path, write: Callable[[Path], None]) -> None:
        """Create a large file.

        Args:
            path: The file.
            write: Creates it and fills it.
        """
        write(path)

    def make_folder(self, path: Path) -> None:
        """Create a folder that only its user may enter."""
        path.mkdir(mode=0o700)

    def protect(self, path: Path, mode: int, owner: int, group: int) -> None:
        """Give a regular file or a folder its owner, group and mode.

        Raises:
            OSError: it is something else.
        """
        descriptor = os.open(path, _CAREFUL)
        try:
            kind = os.fstat(descriptor).st_mode
            if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
                raise OSError(errno.EINVAL, "Neither a regular file nor a folder", str(path))
            os.fchown(descriptor, owner, group)
            os.fchmod(descriptor, mode)
        finally:
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """Give a file or folder another name; a file of that name is replaced."""
        source.rename(target)

    def link(self, source: Path, target: Path) -> None:
        """Give a file one more name."""
        os.link(source, target, follow_symlinks=False)

    def unlink(self, path: Path) -> None:
        """Remove a file."""
        path.unlink()

    def rmdir(self, path: Path) -> None:
        """Remove an empty folder."""
        path.rmdir()

    def replace(self, path: Path, content: bytes) -> None:
        """Write a small file so that either its old or its new content is there, whatever happens."""
        new = path.with_name(f".{path.name}.new")
        if new.exists():
            self.unlink(new)
        try:
            self.write(new, content)
            self.sync(new)
            self.rename(new, path)
        except OSError:
            if new.exists():
                self.unlink(new)
            raise
        self.sync(path.parent)

    def remove_tree(self, folder: Path) -> None:
        """Remove a folder and what is in it."""
        for path in sorted(folder.iterdir()):
            if path.is_dir() and not path.is_symlink():
                self.remove_tree(path)
            else:
                self.unlink(path)
        self.rmdir(folder)
