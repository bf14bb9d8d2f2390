"""What happens when the host's disk is full and a guest wants to write: QEMU stops it, and it waits for room."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, Protocol, cast

from qemu.qmp import EventListener

from agentvm_kernel.errors import HypervisorError

_log = logging.getLogger(__name__)

_AGAIN_SECONDS: Final = 1.0
# Less than the time after which the link takes a guest that does not answer for dead.
_PATIENCE_SECONDS: Final = 15.0

REASON: Final = "the host's disk was full, so that the VM could not write to its own"


class Monitor(Protocol):
    """What is needed of a machine."""

    paused: bool

    async def qmp(self, command: str, **arguments: object) -> object:
        """Ask QEMU's monitor."""


async def outlast_full_disk(machine: Monitor, events: EventListener, give_up: Callable[[], Awaitable[None]]) -> None:
    """Let a guest go on that QEMU stopped because a write failed, as soon as the write works.

    Args:
        machine: The machine; while it is paused on purpose, it stays so.
        events: Its ``BLOCK_IO_ERROR`` events.
        give_up: Ends it, when there has been no room for too long.
    """
    loop = asyncio.get_running_loop()
    async for event in events:
        if cast("dict[str, object]", event["data"]).get("action") != "stop":
            continue
        deadline = loop.time() + _PATIENCE_SECONDS
        _log.warning("a write of a VM's failed; trying again for %g s: %s", _PATIENCE_SECONDS, event["data"])
        try:
            while await _is_stopped(machine):
                if loop.time() > deadline:
                    await give_up()
                    return
                if not machine.paused:
                    await machine.qmp("cont")  # the write is tried again, and may fail again
                await asyncio.sleep(_AGAIN_SECONDS)
        except HypervisorError:
            return  # it has ended meanwhile
        events.clear()  # those of the attempts


async def _is_stopped(machine: Monitor) -> bool:
    return cast("dict[str, object]", await machine.qmp("query-status"))["status"] == "io-error"
