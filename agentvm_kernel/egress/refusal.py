"""Tells a program that speaks HTTP why it is refused, in words."""

from __future__ import annotations

import asyncio
import contextlib
from http import HTTPStatus
from typing import Final

from agentvm_kernel.egress.channel import Channel
from agentvm_kernel.egress.relay import linger
from agentvm_kernel.errors import AgentVMError

_PATIENCE: Final = 5.0
"""Seconds for a program to send its request's head, and again to take the answer."""

_LONGEST: Final = 64 * 1024
"""Bytes in which the head's end is looked for."""


async def answer(channel: Channel, status: HTTPStatus, error: AgentVMError) -> None:
    """Answer a request and end the connection in order, if the program plays its part in time.

    Args:
        channel: The guest's connection; the request's head has been read.
        status: The status.
        error: What is said.

    Raises:
        LinkError: the guest has gone.
    """
    body = f"agentvm: {error}\n".encode()
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\n"
        "Content-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Cache-Control: no-store\r\n"
        "Connection: close\r\n\r\n"
    )
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_PATIENCE):
            await channel.send(head.encode() + body)
            await channel.send_eof()
        await linger(channel)


async def read_head(channel: Channel, data: bytes) -> None:
    """Read on until a request's head is there: many programs do not listen before they have sent it.

    Args:
        channel: The guest's connection.
        data: What has been read.

    Raises:
        LinkError: the guest has gone.
    """
    head = bytearray(data)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_PATIENCE):
            while b"\n\r\n" not in head and b"\n\n" not in head and len(head) < _LONGEST:
                more = await channel.receive()
                if not more:
                    return
                head += more
