"""Disk overlays: empty qcow2 layers over a read-only chain."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from agentvm_kernel.errors import HostError, SnapshotError, VMError, host_error


async def create_overlay(
    overlay: Path, size_gb: int, base: Path | None = None, owner: tuple[int, int] | None = None
) -> None:
    """Create an empty overlay.

    The folder may be that of a running QEMU, and belong to its user, who might have put a link in the file's place.

    Args:
        overlay: File to create.
        size_gb: Virtual size, GB (10^9 bytes).
        base: Raw image below it; ``None`` where QEMU is told at run time what lies below.
        owner: The user under which QEMU runs, if another.

    Raises:
        HostError: qemu-img is not installed, or something is there.
        VMError: it failed; most often the disk is full.
    """
    try:
        descriptor = os.open(overlay, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise host_error(error) from error
    try:
        await _write_empty(descriptor, overlay, size_gb, base)
        if owner is not None and owner[0] != os.geteuid():
            os.fchown(descriptor, *owner)
    finally:
        os.close(descriptor)


async def _write_empty(descriptor: int, overlay: Path, size_gb: int, base: Path | None) -> None:
    # lazy_refcounts would only help a host that crashes; 64 KiB clusters are QEMU's default.
    below = [] if base is None else ["-F", "raw", "-b", str(base)]
    arguments = ["create", "-q", "-f", "qcow2", *below, f"/proc/self/fd/{descriptor}", str(virtual_size(size_gb))]
    try:
        process = await asyncio.create_subprocess_exec(
            "qemu-img", *arguments, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT, pass_fds=(descriptor,),
        )  # fmt: skip
    except FileNotFoundError as error:
        raise HostError("qemu-img is not installed.", "Run `agentvm setup`.") from error
    output, _ = await process.communicate()
    if process.returncode:
        text = output.decode(errors="replace").strip()
        raise VMError(f"The disk overlay {overlay} could not be created: {text}", "Is the disk full?")


def is_written(overlay: Path, empty: Path) -> bool:
    """Return whether anything was written to an overlay: its file has grown by the first cluster at the latest now.

    Asking QEMU instead takes longer the longer the chain is, as its statistics come for all layers.

    Args:
        overlay: Of a paused VM: then QEMU has written everything to its file.
        empty: An overlay as it was created.

    Raises:
        SnapshotError: it was removed.
    """
    try:
        return overlay.lstat().st_size != empty.lstat().st_size
    except OSError as error:
        raise SnapshotError(f"The VM's disk is damaged: {error}.", "Restart the kernel for a fresh VM.") from error


def virtual_size(size_gb: int) -> int:
    """Return the size in bytes that the guest sees of a disk of some GB: whole sectors."""
    return size_gb * 10**9 // 4096 * 4096


def give_to(path: Path, owner: tuple[int, int] | None) -> None:
    """Make QEMU's user the owner of a file or folder, where QEMU runs under another user than this process."""
    if owner is not None and owner[0] != os.geteuid():
        os.chown(path, *owner, follow_symlinks=False)
