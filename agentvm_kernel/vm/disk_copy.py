"""A copy of a running VM's disk, as one file that needs nothing below it.

QEMU copies, in its sandbox, what the disk held when it began, and the guest writes on meanwhile. So its file systems
need to stand still only for a moment; without that the copy is what a power cut would leave.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from agentvm_kernel.errors import LinkError, RequestError, host_error
from agentvm_kernel.vm.clone import VM
from agentvm_kernel.vm.disk import create_overlay, give_to

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
        await create_overlay(copy, vm.snapshot.hardware.disk_gb)
        give_to(copy, owner)
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
    """Move the file to where it is wanted, if nothing is there; it belongs to this user then."""
    os.chown(copy, os.geteuid(), os.getegid())
    copy.chmod(0o600)
    try:
        with target.open("xb") as out, copy.open("rb") as source:
            target.chmod(0o600)
            try:
                shutil.copyfileobj(source, out, 1 << 20)
            except OSError:
                target.unlink()
                raise
    except FileExistsError as error:
        raise RequestError(f"{target} is there already.", "Name a file that is not.") from error
    except OSError as error:
        raise host_error(error) from error
