"""Carries bytes both ways between a guest's connection and a host's."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final

from agentvm_kernel.egress.channel import PIECE, Channel

CHUNK: Final = PIECE
"""Bytes read at once."""

_PATIENCE: Final = 5.0
"""Seconds for a guest to end its direction once it was told that all is said."""

_LONGEST: Final = 1 << 20
"""Bytes that are read and thrown away meanwhile."""


async def cancel(*tasks: asyncio.Future[Any]) -> None:
    """End tasks that are no longer of interest, whatever has become of them, and wait until they are gone."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def linger(channel: Channel) -> None:
    """Throw away what the guest still sends: closing earlier is a reset, which loses what it was told.

    Args:
        channel: The guest's connection, whose direction to the guest has ended.

    Raises:
        LinkError: the guest has gone.
    """
    size = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_PATIENCE):
            while size < _LONGEST and (data := await channel.receive()):
                size += len(data)


async def upstream(channel: Channel, writer: asyncio.StreamWriter) -> None:
    """Carry what the guest sends to the host, up to its end."""
    while data := await channel.receive():
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():  # TLS has no end of one direction alone
        writer.write_eof()


async def downstream(channel: Channel, reader: asyncio.StreamReader) -> None:
    """Carry what the host sends to the guest, up to its end."""
    while data := await reader.read(CHUNK):
        await channel.send(data)
    await channel.send_eof()


async def relay(channel: Channel, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry bytes both ways until both ends have ended.

    Args:
        channel: The guest's connection.
        reader: From the host.
        writer: To the host.

    Raises:
        LinkError: the guest has gone.
        OSError: the connection to the host broke.
        AgentVMError: a budget is spent.
    """
    up = asyncio.ensure_future(upstream(channel, writer))
    down = asyncio.ensure_future(downstream(channel, reader))
    try:
        await asyncio.gather(up, down)
    finally:
        await cancel(up, down)
