"""Complete memory files of snapshots that differ much from their golden one.

With a blank over such a file, going back to the snapshot or its neighbours means writing only what differs from it.
"""

from __future__ import annotations

import os
import subprocess  # nosec B404 - cp, which knows holes and reflinks
from pathlib import Path

from agentvm_kernel.errors import DiskFullError
from agentvm_kernel.vm.content import Content
from agentvm_kernel.vm.snapshot import Snapshot


def make_complete(snapshot: Snapshot, path: Path, owner: tuple[int, int] | None) -> None:
    """Write a snapshot's complete memory.

    Args:
        snapshot: The snapshot.
        path: File to create; QEMU maps it privately and nobody writes it again.
        owner: The user under which QEMU will read it, if another.

    Raises:
        DiskFullError: there is no room for it.
        SnapshotError: the snapshot is damaged.
    """
    content = Content(snapshot)
    partial = path.with_suffix(".partial")
    try:
        command = ["cp", "--reflink=auto", "--sparse=always", "--no-preserve=mode", str(snapshot.golden.memory)]
        subprocess.run([*command, str(partial)], check=True, capture_output=True, text=True)  # nosec B603
        with partial.open("r+b", buffering=0) as file:
            for place, data in content.pieces(snapshot.golden):
                _write_all(file.fileno(), data, place)
        if owner is not None and os.geteuid() == 0:
            os.chown(partial, 0, owner[1])
        partial.chmod(0o440 if owner is not None else 0o400)
        partial.rename(path)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else error.strerror
        raise DiskFullError(
            f"There is no room for a complete memory file: {reason}.", "Free some space in the cache folder."
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _write_all(descriptor: int, data: memoryview, place: int) -> None:
    while data:
        done = os.pwrite(descriptor, data, place)
        data, place = data[done:], place + done


def distance(base: Snapshot, snapshot: Snapshot) -> int:
    """Return the bytes of memory in which two snapshots of a tree differ at most."""
    mine = {older.id: older for older in snapshot.lineage[1:]}
    theirs = {older.id: older for older in base.lineage[1:]}
    between = [one for key, one in (mine | theirs).items() if key not in mine or key not in theirs]
    return sum(one.manifest.files[one.delta.name].size for one in between)
