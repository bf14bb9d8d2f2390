"""Which files of the host a notebook's magics may use: what lies below its own folder, and what the configuration adds.

Cells may be a stranger's. Without this, one line of them would copy a key of the user's into the VM, or a file of the
VM's over the user's ``~/.bashrc``.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from agentvm_kernel.config import Paths, load_settings
from agentvm_kernel.errors import AgentVMError
from agentvm_kernel.terminal import plain


class PlaceError(AgentVMError):
    """A notebook's magics may not use this file or folder."""

    code: ClassVar[str] = "place"


def permitted(path: str | Path) -> Path:
    """Return a file or folder that a magic may use, or make, with all links followed.

    Args:
        path: As it stands in the cell; a relative path begins where the notebook lies.

    Raises:
        PlaceError: it lies elsewhere, or is hidden.
        ConfigError: the configuration is not valid.
    """
    paths = Paths.of_user()
    wanted, own = _followed(path), _followed(Path.cwd())
    added = [_followed(one) for one in load_settings(paths).files.folders]
    if wanted in added or _is_granted(wanted, paths) or any(_is_open(wanted, root) for root in _roots(own, added)):
        return wanted
    where = plain(str(wanted))[:300]
    if any(wanted.is_relative_to(root) and wanted != root for root in _roots(own, added)):
        raise PlaceError(
            f"{where} is hidden, and cells use nothing of this computer whose name begins with a dot.",
            f"Copy it under another name, or add it to folders in [files] of {paths.config}.",
        )
    raise PlaceError(
        f"{where} is not below the notebook's folder, and cells use nothing else of this computer.",
        f"Copy it there, or add it, or its folder, to folders in [files] of {paths.config}.",
    )


@contextmanager
def granted(path: str | Path) -> Iterator[None]:
    """Let notebooks' magics use a file or folder within this context: a command of the user's types one.

    No cell can do that: it takes a file in a folder of this package's own, which this process has locked.

    Args:
        path: It.
    """
    folder, name = _grants(_followed(path), Paths.of_user())
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    grant = folder / f"{name}-{secrets.token_hex(8)}"
    with grant.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            grant.unlink(missing_ok=True)


def _grants(wanted: Path, paths: Paths) -> tuple[Path, str]:
    """Return the folder of grants, and how those for a path begin."""
    return paths.runtime / "granted", hashlib.sha256(os.fsencode(wanted)).hexdigest()


def _is_granted(wanted: Path, paths: Paths) -> bool:
    """Whether a process that still lives grants it."""
    folder, name = _grants(wanted, paths)
    return any(map(_is_held, folder.glob(f"{name}-*")))


def _is_held(grant: Path) -> bool:
    try:
        with grant.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:  # it has just ended
        return False
    return False


def _followed(path: str | Path) -> Path:
    return Path(os.path.realpath(Path(path).expanduser()))


def _roots(own: Path, added: Iterable[Path]) -> list[Path]:
    """Return the folders below which everything may be used; a kernel that was started in / has none of its own."""
    return [*([own] if own != own.parent else []), *added]


def _is_open(wanted: Path, root: Path) -> bool:
    """Whether a path is below a folder and not hidden in it."""
    if not wanted.is_relative_to(root) or wanted == root:
        return False
    return not any(part.startswith(".") for part in wanted.relative_to(root).parts)
