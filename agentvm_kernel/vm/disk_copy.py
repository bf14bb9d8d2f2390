"""A copy of a running VM's disk, as one file that needs nothing below it.

QEMU copies, in its sandbox, what the disk held when it began, and the guest writes on meanwhile. So its file systems
need to stand still only for a moment; without that the copy is what a power cut would leave.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import stat
from contextlib import AsyncExitStack
from pathlib import Path
from typing import BinaryIO, Final

from agentvm_kernel.errors import LinkError, RequestError, VMError, host_error
from agentvm_kernel.vm.clone import VM
from agentvm_kernel.vm.disk import create_overlay

_log = logging.getLogger(__name__)

_SECONDS: Final = 25.0


async def copy_disk(vm: VM, target: Path, owner: tuple[int, int] | None) -> str:
    """Copy a running VM's disk; the caller sees to it that nobody saves it meanwhile.

    Args:
        vm: The VM.
        target: A qcow2 file to create.
        owner: The user under which QEMU runs, if another.

    Returns:
        Why the file systems were not frozen; empty if they were, as far as the guest tells.

    Raises:
        RequestError: the file is there already.
        HostError: it cannot be created.
        VMError: QEMU could not copy.
    """
    await vm.settle()
    copy = vm.folder / "copy.qcow2"
    try:
        await create_overlay(copy, vm.snapshot.hardware.disk_gb, owner=owner)
        async with AsyncExitStack() as frozen:
            frozen.push_async_callback(_thaw, vm)
            reason = await _freeze(vm)
            await vm.machine.copy_disk(copy, frozen.aclose)
        await asyncio.to_thread(_hand_over, copy, target)
    finally:
        copy.unlink(missing_ok=True)
    return reason


async def _freeze(vm: VM) -> str:
    try:
        await vm.request("freeze", _SECONDS)
    except LinkError as error:
        return error.message
    return ""


async def _thaw(vm: VM) -> None:
    """Thaw them, whether or not the guest has said that they are frozen; it does so by itself a little later."""
    if vm.ended.done():
        return
    try:
        await vm.request("thaw", _SECONDS)
    except LinkError as error:
        _log.info("%s does not say that its file systems are thawed: %s", vm.id, error.message)


def _hand_over(copy: Path, target: Path) -> None:
    """Copy the file to where it is wanted, if nothing is there; it belongs to this user then."""
    try:
        with _open_regular(copy) as source, _create_private(target) as out:
            try:
                shutil.copyfileobj(source, out, 1 << 20)
            except OSError:
                target.unlink()
                raise
    except FileExistsError as error:
        raise RequestError(f"{target} is there already.", "Name a file that is not.") from error
    except OSError as error:
        raise host_error(error) from error


def _create_private(path: Path) -> BinaryIO:
    """Create a file that was never open to others: whoever has it open already could read what is written later."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")


def _open_regular(path: Path) -> BinaryIO:
    """Open what QEMU has written; the folder is its user's, who might have put something else there.

    Raises:
        VMError: it is no ordinary file of its own.
        OSError: it is a link, or cannot be opened.
    """
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        file.close()
        raise VMError(f"What QEMU has written to {path} is no ordinary file.", "%vm restart brings a fresh VM.")
    return file
