"""The device by which a VM shares a folder of the host: plugged in through QEMU's monitor, and taken out again.

QEMU learns on its command line that there may be a folder, and gets it, open, when the device is plugged in: until then
there is neither a folder nor a device.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Protocol, cast

from qemu.qmp import EventListener, QMPClient, QMPError

from agentvm_kernel.errors import HypervisorError
from agentvm_kernel.vm.domain import share_id
from agentvm_kernel.vm.folder_view import open_folder
from agentvm_kernel.vm.spec import DomainSpec

TAG: Final = "agentvmshared"
"""The name under which the guest finds it."""

_DEVICE: Final = "agentvm.shared"
_SLOT: Final = "1e"
"""Far from those that libvirt gives to devices of its own."""

_UNPLUG_SECONDS: Final = 20.0


class Monitored(Protocol):
    """What is needed of a machine."""

    spec: DomainSpec
    ended: asyncio.Future[str]

    async def execute(self, command: str, arguments: dict[str, object]) -> object:
        """Ask QEMU's monitor."""


class FolderDevice:
    """One machine's device.

    Args:
        machine: The machine.
        monitor: Tells what happens in it.
    """

    def __init__(self, machine: Monitored, monitor: QMPClient) -> None:
        self._machine = machine
        self._monitor = monitor

    async def plug(self, folder: Path, *, writable: bool) -> str:
        """Plug it in; QEMU has the folder open until the device is gone.

        Returns:
            Why nobody but QEMU keeps the guest from changing the folder; empty if the host's kernel does, or if it may.

        Raises:
            HypervisorError: it cannot be opened, or QEMU does not take it.
        """
        view = await asyncio.to_thread(open_folder, folder, writable=writable)
        try:
            async with self._given(view.descriptor):
                device = {"id": _DEVICE, "fsdev": share_id(writable=writable), "mount_tag": TAG, "addr": _SLOT}
                await self._machine.execute("device_add", {"driver": "virtio-9p-pci", **device})
        finally:
            os.close(view.descriptor)
        return view.weakness

    @asynccontextmanager
    async def _given(self, descriptor: int) -> AsyncIterator[None]:
        """Let QEMU find an open folder in the place of which its command line tells."""
        try:
            self._monitor.send_fd_scm(descriptor)
        except (OSError, QMPError) as error:
            raise HypervisorError(f"QEMU does not take the folder: {error}") from error
        its = cast("dict[str, int]", await self._machine.execute("add-fd", {}))
        link = self._machine.spec.shared
        link.unlink(missing_ok=True)
        link.symlink_to(f"/proc/self/fd/{its['fd']}")  # QEMU itself is it that follows this
        try:
            yield
        finally:
            link.unlink(missing_ok=True)
            await self._machine.execute("remove-fd", {"fdset-id": its["fdset-id"]})

    async def unplug(self) -> None:
        """Ask the guest for it, and wait until it is gone; nothing happens if it is.

        Raises:
            HypervisorError: the guest does not let go of it.
        """
        with self._monitor.listener("DEVICE_DELETED") as events:
            try:
                await self._machine.execute("device_del", {"id": _DEVICE})
            except HypervisorError as error:
                if _is_gone(error):
                    return
                if "already in the process of unplug" not in error.message:
                    raise
            await self._gone(events)

    async def _gone(self, events: EventListener) -> None:
        gone = asyncio.ensure_future(_deleted(events))
        try:
            waiting: list[asyncio.Future[Any]] = [gone, self._machine.ended]
            await asyncio.wait(waiting, timeout=_UNPLUG_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if not gone.done() and not self._machine.ended.done():
                raise HypervisorError(
                    "The guest does not let go of the shared folder, and still has it.",
                    "%vm restart brings a fresh VM, without it.",
                )
        finally:
            gone.cancel()


async def _deleted(events: EventListener) -> None:
    async for event in events:
        if isinstance(data := event["data"], dict) and data.get("device") == _DEVICE:
            return


def _is_gone(error: HypervisorError) -> bool:
    return f"'{_DEVICE}' not found" in error.message
