"""The owner's channel to a guest agent: JSON lines over a virtio-serial port that only the VM's owner can open."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable
from pathlib import Path

from agentvm_kernel.errors import LinkClosedError, LinkError, ProtocolError
from agentvm_kernel.link.proof import printable
from agentvm_kernel.pace import Pace

MAX_LINE = 64 << 10
# Remains of an earlier connection that may precede the first valid line.
_MAX_GARBAGE = 1 << 20
_MAX_PENDING = 64
# Lines, and KiB, that are read per second: more than an honest agent ever has to say.
_PER_SECOND = 1000


class ControlChannel(asyncio.Protocol):
    """One connection to the control port. Made by `connect`."""

    def __init__(self, on_event: Callable[[dict[str, object]], None]) -> None:
        self._on_event = on_event
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._garbage = 0
        self._pace = Pace()
        self._in_step = False
        # Answers to an earlier connection's requests may still come: numbers must not meet.
        self._number = secrets.randbelow(1 << 31)
        self._pending: dict[int, asyncio.Future[dict[str, object]]] = {}
        self._error: LinkError | None = None
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @classmethod
    async def connect(cls, path: Path, on_event: Callable[[dict[str, object]], None]) -> ControlChannel:
        """Connect to the chardev's socket.

        Args:
            path: The socket.
            on_event: Called with each event of the guest (``{"event": "kernel_died", ...}``); the guest's claims.

        Raises:
            LinkError: the socket cannot be connected.
        """
        loop = asyncio.get_running_loop()
        try:
            _, channel = await loop.create_unix_connection(lambda: cls(on_event), str(path))
        except OSError as error:
            raise LinkError(f"The guest's control port cannot be opened: {error} ({path}).") from error
        # Ends a line that an earlier connection may have left half sent.
        channel._write(b"\n")
        return channel

    async def request(self, op: str, *, timeout: float, **fields: object) -> dict[str, object]:
        """Ask the guest agent.

        Args:
            op: The operation.
            timeout: Seconds until the answer must be there.
            **fields: What the operation takes.

        Returns:
            The answer, without ``id`` and ``ok``.

        Raises:
            LinkError: the agent refused, did not answer in time, or the channel ended.
        """
        if self._error is not None:
            raise self._error
        if len(self._pending) >= _MAX_PENDING:
            raise LinkError(f"{_MAX_PENDING} requests to the guest agent are unanswered.")
        self._number += 1
        number = self._number
        line = json.dumps({"id": number, "op": op, **fields}).encode() + b"\n"
        if len(line) > MAX_LINE:
            raise ProtocolError(f"A control line of {len(line)} bytes is over {MAX_LINE}.")
        answer: asyncio.Future[dict[str, object]] = asyncio.get_running_loop().create_future()
        self._pending[number] = answer
        try:
            self._write(line)
            async with asyncio.timeout(timeout):
                reply = await answer
        except TimeoutError as error:
            raise LinkError(f"The guest agent did not answer {op!r} within {timeout:g} s.") from error
        finally:
            self._pending.pop(number, None)
        if reply.pop("ok", None) is not True:
            reason = printable(str(reply.get("error", "no reason given")).encode())
            raise LinkError(f"The guest agent refused {op!r}: {reason}")
        reply.pop("id", None)
        return reply

    async def close(self) -> None:
        """Close the connection."""
        self._fail(LinkClosedError("The control channel was closed by this end."))
        await self._lost

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Take received bytes."""
        try:
            *lines, rest = data.split(b"\n")
            for line in lines:
                self._buffer += line
                self._check_length()
                whole = bytes(self._buffer)
                self._buffer.clear()
                self._handle(whole)
            self._buffer += rest
            self._check_length()
        except LinkError as error:
            self._fail(error)
        else:
            self._slow_down(len(lines) + (len(data) >> 10))

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the connection's end."""
        self._fail(LinkClosedError("The guest's control port is gone."))
        if not self._lost.done():
            self._lost.set_result(None)

    def _slow_down(self, amount: int) -> None:
        """Read on when so much may have come: the process at this end serves other VMs, too."""
        wait = self._pace.take(amount, _PER_SECOND, _PER_SECOND)
        if wait and self._transport is not None:
            self._transport.pause_reading()
            asyncio.get_running_loop().call_later(wait, self._transport.resume_reading)

    def _check_length(self) -> None:
        if len(self._buffer) <= MAX_LINE:
            return
        if self._in_step:
            raise ProtocolError(f"Control line length is over {MAX_LINE} bytes.")
        self._skip(len(self._buffer))
        self._buffer.clear()

    def _skip(self, length: int) -> None:
        self._garbage += length
        if self._garbage > _MAX_GARBAGE:
            raise ProtocolError(f"No control line within {_MAX_GARBAGE} bytes is valid.")

    def _handle(self, line: bytes) -> None:
        if self._error is not None or not line:
            return
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as error:
            if self._in_step:
                raise ProtocolError("Control line is not JSON.") from error
            self._skip(len(line))
            return
        if not isinstance(message, dict):
            raise ProtocolError("Control line is not a JSON object.")
        self._in_step = True
        number = message.get("id")
        if "event" in message:
            self._on_event(message)
        elif isinstance(number, int) and (answer := self._pending.get(number)) is not None and not answer.done():
            answer.set_result(message)

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _fail(self, error: LinkError) -> None:
        if self._error is None:
            self._error = error
            for answer in self._pending.values():
                if not answer.done():
                    answer.set_exception(error)
        if self._transport is not None:
            self._transport.abort()
