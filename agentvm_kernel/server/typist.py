"""Types magics into kernels, as a user would, and returns what they said."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

from jupyter_client.asynchronous.client import AsyncKernelClient
from nbformat.v4 import output_from_msg

from agentvm_kernel.kernel.answers import OF_HOST
from agentvm_kernel.server.errors import BusyError
from agentvm_kernel.server.kernels import Kernel, talking, unless_it_ends
from agentvm_kernel.server.views import MOST_TEXT, Done, Failure

_LONGEST: Final = 3600.0
"""Seconds for a magic, with what it waits for: the cells before it."""

_MOST_WAITING: Final = 16
_ROOM: Final = 4 << 20
"""Bytes of outputs that are passed on, as JSON."""

_LAST_WORDS: Final = 5.0
"""Seconds from a reply to the `idle` that belongs to it, which a flooded kernel may lose."""


class Typist:
    """Types into kernels, one thing after the other for each."""

    def __init__(self) -> None:
        self._turns: dict[str, _Turn] = {}

    async def type(self, kernel: Kernel, code: str) -> Done:
        """Type a magic.

        Args:
            kernel: Into which kernel.
            code: The magic.

        Returns:
            What came of it; that it failed is a result.

        Raises:
            BusyError: too many wait for the kernel already.
            KernelGoneError: the kernel ended in the middle.
            SlowError: it has not answered for an hour.
        """
        async with self._turn(kernel.id):
            return await unless_it_ends(kernel, _type(kernel, code), _LONGEST)

    @asynccontextmanager
    async def _turn(self, kernel: str) -> AsyncIterator[None]:
        turn = self._turns.setdefault(kernel, _Turn())
        if turn.waiting >= _MOST_WAITING:
            raise BusyError(f"{_MOST_WAITING} things wait for this kernel already.", "Wait until they are done.")
        turn.waiting += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.waiting -= 1
            if not turn.waiting:
                del self._turns[kernel]


@dataclass
class _Turn:
    """Who types into one kernel: how many wait or type, and the right to."""

    waiting: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


async def _type(kernel: Kernel, code: str) -> Done:
    async with talking(kernel) as client:
        while True:
            reply, heard = await _converse(client, code)
            # A cell before it failed, which has nothing to do with it.
            if reply["content"]["status"] != "aborted":
                return _done(reply, heard)


async def _converse(client: AsyncKernelClient, code: str) -> tuple[dict[str, Any], _Heard]:
    asked = client.execute(code, store_history=False, allow_stdin=False, stop_on_error=False)
    heard = _Heard()
    listening = asyncio.create_task(_listen(client, asked, heard))
    try:
        reply = await _reply(client, asked)
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS):
                await asyncio.shield(listening)
    finally:
        listening.cancel()
        await asyncio.wait([listening])
    return reply, heard


async def _reply(client: AsyncKernelClient, asked: str) -> dict[str, Any]:
    while True:
        message: dict[str, Any] = await client.get_shell_msg(timeout=None)
        if message["parent_header"].get("msg_id") == asked:
            return message


async def _listen(client: AsyncKernelClient, asked: str, heard: _Heard) -> None:
    while True:
        message = await client.get_iopub_msg(timeout=None)
        if message["parent_header"].get("msg_id") != asked:
            continue
        if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
            return
        heard.take(message)


class _Heard:
    """What a magic shows, as a notebook would keep it, within bounds.

    What the guest shows meanwhile is left out, for it would pass for the host's.
    """

    def __init__(self) -> None:
        self.outputs: list[dict[str, Any]] = []
        self._room = _ROOM

    def take(self, message: dict[str, Any]) -> None:
        """Take a message."""
        if message["msg_type"] == "display_data" and message["metadata"].get("agentvm") == OF_HOST["agentvm"]:
            self._room -= len(json.dumps(message["content"]))
            if self._room >= 0:
                self.outputs.append(dict(output_from_msg(message)))  # type: ignore[no-untyped-call]

    @property
    def text(self) -> str:
        """The plain text of it all."""
        texts = [str(one["data"].get("text/plain", "")) for one in self.outputs]
        return "\n".join(text.rstrip("\n") for text in texts if text)[:MOST_TEXT]


def _done(reply: Mapping[str, Any], heard: _Heard) -> Done:
    told = reply["metadata"].get("agentvm", {})
    content = reply["content"]
    error = None
    if content["status"] != "ok":
        said = told.get("error") or {"code": "failed", "message": content.get("evalue") or "It was not carried out."}
        error = Failure(**{name: str(text)[:MOST_TEXT] for name, text in said.items()})
    return Done(
        status="error" if error else "ok", text=heard.text, error=error, snapshot=str(told.get("snapshot", ""))[:64],
        outputs=tuple(heard.outputs),
    )  # fmt: skip
