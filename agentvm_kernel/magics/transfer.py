"""What `%push` and `%pull` have in common: how much may be copied, progress, and what is said at the end."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from agentvm_kernel.kernel.host import Host
from agentvm_kernel.magics import show
from agentvm_kernel.magics.call import UsageError
from agentvm_kernel.magics.limits import BYTES
from agentvm_kernel.run.files import Received, Sent
from agentvm_kernel.run.unpack import USUAL, Bounds, OnProgress

LIMIT: Final = "--limit"
_SIZE: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)\s?([kKMG]i?B)")
_SHOWN: Final = 12


def bounds(texts: dict[str, str]) -> Bounds:
    """Return how much may be copied.

    Args:
        texts: Options of the call; `LIMIT` may be among them.

    Raises:
        UsageError: its text is no size.
    """
    if LIMIT not in texts:
        return USUAL
    size = _SIZE.fullmatch(texts[LIMIT])
    if size is None or size[2] not in BYTES:
        raise UsageError(f"{LIMIT} takes a size such as 500MB or 10GiB, and is the last on the line.")
    return Bounds(int(float(size[1]) * BYTES[size[2]]), USUAL.count)


@contextmanager
def progress(host: Host, task: str) -> Iterator[OnProgress]:
    """Show below the cell how far a copy is.

    Args:
        host: Shows it.
        task: What is copied.
    """
    machine = host.machine
    machine.task, machine.stage, machine.done = task, "looking at what is there", None

    def tell(done: int, total: int) -> None:
        machine.task, machine.stage = task, f"{show.size(done)} of {show.size(total)}"
        machine.done = done / total if total else None

    try:
        yield tell
    finally:
        machine.task = ""


def said(copied: Sent | Received, is_folder: bool) -> str:
    """Return what there is to say of what was copied."""
    saved = f", of which {show.size(copied.saved)} were there from before" if copied.saved else ""
    digest = copied.digest[:_SHOWN]
    if is_folder:
        return f"{copied.count} files and folders, {show.size(copied.size)}{saved}, digest {digest}"
    return f"{show.size(copied.size)}{saved}, SHA-256 {digest}"


def left_out(names: list[str], count: int) -> list[str]:
    """Return lines about what was left out.

    Args:
        names: The first of it.
        count: How much it was.
    """
    lines = [f"Left out: {name}" for name in names]
    return [*lines, f"Left out: {count - len(names)} more"] if count > len(names) else lines


def title(path: Path | str) -> str:
    """Return a path as progress shows it."""
    return show.plain(Path(path).name or str(path), 40)
