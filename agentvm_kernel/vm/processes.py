"""QEMU processes, found by what is in their command lines."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from agentvm_kernel.errors import HypervisorError

_NAME: Final = re.compile(rb"\0-name\0guest=([^,\0]+)")
_QEMU: Final = re.compile(rb"[^\0]*qemu-system-[^/\0]*\0")
_GONE_SECONDS: Final = 10.0


def pid_of(name: str) -> int:
    """Return the process of a domain, which libvirt's API does not tell.

    Raises:
        HypervisorError: there is none.
    """
    for pid, line in _qemus():
        if _domain(line) == name:
            return pid
    raise HypervisorError(f"The QEMU process of {name} is gone.", "See `agentvm doctor` and QEMU's log.")


def clear_root(root: Path) -> list[str]:
    """End what the last owner of an embedded driver's folder has left, before libvirt opens it, and wait for that.

    The driver adopts what it finds: it asks each QEMU how it is. Of one whose owner was killed while it started, it
    waits for an answer that never comes, and so would each next owner. And it does not know of the QEMUs that it once
    asked what they can do.

    Args:
        root: The folder; nobody has it open.

    Returns:
        The names of the domains.
    """
    left = dict(_qemus(os.fsencode(root) + b"/"))
    for pid in left:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + _GONE_SECONDS
    while any(Path(f"/proc/{pid}").exists() for pid in left) and time.monotonic() < deadline:
        time.sleep(0.01)  # whoever inherited it reaps it
    state = root / "run" / "qemu"
    names = {_domain(line) for line in left.values()} | {path.stem for path in state.glob("*.xml")}
    for folder in (state, *(root / "lib" / "qemu").glob("domain-*"), *(root / "lib" / "qemu").glob("qmp-*")):
        shutil.rmtree(folder, ignore_errors=True)
    return sorted(names - {""})


def _domain(line: bytes) -> str:
    """Return the domain's name in a command line; empty if there is none."""
    found = _NAME.search(line)
    return os.fsdecode(found[1]) if found else ""


def _qemus(mentioned: bytes = b"") -> Iterator[tuple[int, bytes]]:
    """Yield pid and command line of all QEMUs that can be seen.

    Args:
        mentioned: What has to be in the command line.
    """
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if _QEMU.match(line) and mentioned in line:
            yield int(entry.name), line
