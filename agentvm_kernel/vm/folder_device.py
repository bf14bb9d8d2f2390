"""The device by which a VM shares a folder of the host: plugged in through QEMU's monitor, and taken out again.

QEMU learns on its command line that there may be a folder, and opens it when the device is plugged in: until then there
is neither a folder nor a device.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Final, Protocol

from qemu.qmp import EventListener, QMPClient

from agentvm_kernel.errors import HypervisorError
from agentvm_kernel.vm.domain import share_id
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

    async def plug(self, folder: Path, *, writable: bool) -> None:
        """Plug it in; QEMU opens the folder, and has it open until the device is gone.

        Raises:
            HypervisorError: QEMU cannot open it.
        """
        link = self._machine.spec.shared
        link.unlink(missing_ok=True)
        link.symlink_to(folder)
        backend = share_id(writable=writable)
        try:
            device = {"id": _DEVICE, "fsdev": backend, "mount_tag": TAG, "addr": _SLOT}
            await self._machine.execute("device_add", {"driver": "virtio-9p-pci", **device})
        finally:
            link.unlink(missing_ok=True)

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
