"""A folder of the host that a VM shares for a while. What is saved of a VM, and what comes of that, never has it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, Field, ValidationError

from agentvm_kernel.errors import AgentVMError, HypervisorError, LinkError, VMError
from agentvm_kernel.vm.folder_device import TAG
from agentvm_kernel.vm.hypervisor import Machine

_log = logging.getLogger(__name__)

PLACE: Final = "/workspace/shared"
"""Where the guest has it: in the folder where cells run, so that they find it as ``shared``."""

_SECONDS: Final = 40.0


@dataclass(frozen=True)
class Share:
    """What is shared.

    Attributes:
        folder: A folder of the host.
        writable: Whether the guest may change it.
    """

    folder: Path
    writable: bool = False

    def __str__(self) -> str:
        """How it is written down."""
        return f"{self.folder}, {'read and write' if self.writable else 'read-only'}"


class ShareError(VMError):
    """A folder cannot be shared, or is not let go of."""

    code = "share"


class _Answer(BaseModel):
    """What the guest agent says; hostile."""

    outcome: Literal["mounted", "unmounted", "busy", "no_9p", "occupied"]
    by: Annotated[tuple[Annotated[str, Field(max_length=60)], ...], Field(max_length=5)] = ()


class Sharing:
    """What one VM shares.

    Args:
        machine: Its QEMU.
        request: Asks its guest agent; see `VM.request`.

    Attributes:
        share: What the guest has; ``None`` for nothing.
        weakness: Why nobody but QEMU keeps the guest from changing it; empty if the host's kernel does, or if it may.
    """

    def __init__(self, machine: Machine, request: Callable[..., Awaitable[dict[str, object]]]) -> None:
        self.share: Share | None = None
        self.weakness = ""
        self._machine = machine
        self._request = request
        self._turn = asyncio.Lock()

    async def begin(self, share: Share) -> None:
        """Share a folder, in place of another one.

        Raises:
            ShareError: QEMU cannot open it, the guest cannot mount it, or does not let go of the other one.
        """
        async with self._turn:
            await self._end()
            await self._begin(share)

    async def end(self) -> None:
        """Share nothing any more.

        Raises:
            ShareError: something in the guest keeps it busy, or the guest does not let go of it.
        """
        async with self._turn:
            await self._end()

    @asynccontextmanager
    async def ended(self) -> AsyncIterator[None]:
        """Share nothing within this context: what is saved can be loaded only into a machine with the same devices.

        Raises:
            ShareError: something in the guest keeps the folder busy, or the guest does not let go of it.
        """
        async with self._turn:
            share = self.share
            await self._end()
            try:
                yield
            finally:
                if share is not None and not self._machine.ended.done():
                    await self._begin_again(share)

    async def _begin_again(self, share: Share) -> None:
        try:
            await self._begin(share)
        except AgentVMError as error:  # what was saved is good all the same
            _log.warning("%s does not share %s any more: %s", self._machine.spec.name, share.folder, error)

    async def _begin(self, share: Share) -> None:
        machine = self._machine
        try:
            self.weakness = await machine.plug_folder(share.folder, writable=share.writable)
        except VMError as error:
            raise ShareError(f"QEMU cannot share {share.folder}: {error.message}") from error
        self.share = share
        try:
            answer = await self._ask("mount", tag=TAG, writable=share.writable)
            if answer.outcome != "mounted":
                raise _not_mounted(answer)
        except VMError:
            await machine.unplug_folder()
            self.share = None
            raise

    async def _end(self) -> None:
        if self.share is None:
            return
        answer = await self._ask("unmount")
        if answer.outcome != "unmounted":
            users = ", ".join(map(_plain, answer.by)) or "something"
            raise ShareError(
                f"The shared folder is in use in the VM: by {users}, as the VM says.",
                f"Close what is open there and leave it (os.chdir); %workspace shows what {PLACE} is.",
            )
        try:
            await self._machine.unplug_folder()
        except HypervisorError as error:
            raise ShareError(error.message, error.hint) from error
        self.share = None

    async def _ask(self, op: str, **fields: object) -> _Answer:
        try:
            return _Answer.model_validate(await self._request(op, _SECONDS, **fields))
        except LinkError as error:
            raise ShareError(f"The VM did not {op} the shared folder: {error.message}") from error
        except ValidationError as error:
            raise ShareError(f"The VM answered nothing sensible when it was to {op} the shared folder.") from error


def _not_mounted(answer: _Answer) -> ShareError:
    if answer.outcome == "no_9p":
        return ShareError(
            "The VM's kernel has no 9p file system, by which folders are shared.",
            'Use an image whose kernel has it: image = "standard" in the configuration; or copy with %push and %pull.',
        )
    return ShareError(f"Something is in {PLACE} of the VM already.", "Move it elsewhere.")


def _plain(text: str) -> str:
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)
