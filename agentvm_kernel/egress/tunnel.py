"""The host's end of what a VM sends out: a link to its forwarder, on which the guest opens a stream per connection.

The guest is hostile: its root can speak the link protocol by hand. What it can make this end hold and do follows from
`BOUNDS` and `LIMITS` alone, and going beyond them ends this tunnel, which is that VM's network and nobody else's.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agentvm_kernel.egress.channel import PIECE, Channel, Opening
from agentvm_kernel.egress.inbox import Inbox, Share
from agentvm_kernel.errors import LinkError, ProofError, ProtocolError
from agentvm_kernel.link.asyncio_stream import Stream
from agentvm_kernel.link.connection import Link, connect
from agentvm_kernel.link.endpoint import Endpoint
from agentvm_kernel.link.inbox import SERVICE as INBOX
from agentvm_kernel.link.limits import Limits
from agentvm_kernel.link.proof import printable

CONNECTION: Final = "tcp"
SETTINGS: Final = "network"
LIMITS: Final = Limits(
    window=64 << 10, max_message=(64 << 10) + 8, max_parts=1, max_streams=1024, idle_frames=200_000,
    frames_per_second=20_000, sent_parts=2,
)  # fmt: skip

_SETTINGS_SECONDS = 30.0
_END_SECONDS = 2.0
_AGAIN_SECONDS = 0.1
_MAX_OPENING = 4096


@dataclass(frozen=True)
class Bounds:
    """What a guest may do besides what the link's limits say.

    Attributes:
        openings_per_second: Connections that it may open per second, on the average.
        burst: How many of them at once.
        opening_seconds: How long it may take to say where a connection leads.
        served: Most connections that are being served; one that the guest has reset counts until that is noticed.
    """

    openings_per_second: float = 1000.0
    burst: int = 2000
    opening_seconds: float = 10.0
    served: int = 2048


BOUNDS: Final = Bounds()


@dataclass(frozen=True)
class NetworkSettings:
    """What the guest is told about its network.

    Attributes:
        authority: Certificates, PEM, that its programs are to trust besides their own; None for no others.
        environment: Variables for the user's programs.
    """

    authority: str | None = None
    environment: dict[str, str] = field(default_factory=dict)


class _OpeningMessage(BaseModel):
    """The first message of a connection's stream."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: Annotated[str, Field(max_length=1024)] | None
    address: Annotated[str, Field(max_length=64)]
    port: Annotated[int, Field(ge=0, le=65535)]


OnConnection = Callable[[Opening, Channel], Coroutine[Any, Any, None]]


class StreamChannel:
    """A guest's connection over its stream; see `Channel`."""

    def __init__(self, stream: Stream, inbox: Inbox | None) -> None:
        self._stream = stream
        self._share = Share(inbox, stream)
        self._ended = False

    async def receive(self) -> bytes:
        """Return what the guest sent next, as much as is there; empty when it has ended its direction.

        Raises:
            LinkError: the guest has reset the connection, or the link has ended.
        """
        if self._ended:
            return b""
        pieces, size = await self._stream.receive(), 0
        while pieces[-1]:
            size += len(pieces[-1])
            # A guest that sends bytes one by one costs its gateway one turn for all of them.
            more = self._stream.poll() if size < LIMITS.window else None
            if more is None:
                return b"".join(pieces)
            pieces += more
        self._ended = True
        return b"".join(pieces)

    async def send(self, data: bytes) -> None:
        """Send to the guest; returns once there is room for more.

        Raises:
            LinkError: the guest has reset the connection, or the link has ended.
        """
        for start in range(0, len(data), PIECE):
            await self._share.send(data[start : start + PIECE])

    async def send_eof(self) -> None:
        """End this direction.

        Raises:
            LinkError: as ``send``.
        """
        await self._share.finish()

    def close(self) -> None:
        """Let go of the connection."""
        self._share.close()
        self._stream.close()


class Tunnel:
    """A VM's way out. Made by `Tunnel.open`.

    Attributes:
        lost: Done when it has ended; the result says why.
    """

    def __init__(self, on_connection: OnConnection, bounds: Bounds, inbox: int | None) -> None:
        loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[str] = loop.create_future()
        self._on_connection = on_connection
        self._bounds = bounds
        self._link: Link | None = None
        self._settings: Stream | None = None
        self._descriptor = inbox
        self._inbox: Inbox | None = None
        self._configuring = asyncio.Lock()
        self._serving: set[asyncio.Task[None]] = set()
        self._watch: asyncio.Task[None] | None = None
        self._allowance = float(bounds.burst)
        self._counted_at = loop.time()

    @classmethod
    async def open(
        cls,
        endpoint: Endpoint,
        key: bytes,
        epoch: int,
        on_connection: OnConnection,
        settings: NetworkSettings,
        *,
        inbox: int | None = None,
        bounds: Bounds = BOUNDS,
        timeout: float = 10.0,
    ) -> Tunnel:
        """Dial a VM's forwarder.

        Args:
            endpoint: Where it is; only the VM's owner can dial it, so that whoever answers is this VM.
            key: The VM's key, 32 bytes.
            epoch: The VM's epoch.
            on_connection: Serves a connection that a program in the guest has made, in a task of its own; cancelled
                when the tunnel is closed and it does not end by itself.
            settings: What the guest is told.
            inbox: The file behind the VM's inbox, open for writing; the tunnel closes it, whatever happens. Without it
                all goes over the link.
            bounds: What the guest may do.
            timeout: Seconds for dialling and for the proofs.

        Raises:
            LinkError: the forwarder cannot be dialled, or does not take the settings.
        """
        self = cls(on_connection, bounds, inbox)
        try:
            self._link = await self._dial(endpoint, key, epoch, timeout)
            self._watch = asyncio.create_task(self._watch_link(self._link))
            if self.lost.done():
                raise ProtocolError(self.lost.result())
            if inbox is not None:
                self._inbox = Inbox(inbox, await self._link.open(INBOX))
            self._settings = await self._link.open(SETTINGS)
            await self.configure(settings)
        except BaseException:
            await self.close()
            raise
        return self

    async def configure(self, settings: NetworkSettings) -> None:
        """Tell the guest other settings, and wait until they hold there; one that does not answer loses its network.

        Args:
            settings: What holds from now on.

        Raises:
            LinkError: the guest refused or did not answer in time, or the tunnel has ended.
        """
        assert self._settings is not None
        text = json.dumps({"authority": settings.authority, "environment": settings.environment})
        try:
            async with asyncio.timeout(_SETTINGS_SECONDS), self._configuring:
                await self._settings.send([text.encode()])
                (answer,) = await self._settings.receive()
        except TimeoutError as error:
            reason = f"The guest did not take its network's settings within {_SETTINGS_SECONDS:.0f} s."
            self._end(reason)
            raise LinkError(reason, "Its VM may be busy, paused or broken: restart it.") from error
        if answer != b'{"ok": true}':
            raise LinkError(f"The guest refused its network's settings: {printable(answer)}")

    async def close(self) -> None:
        """Close the link; connections end, and this returns when they have."""
        if self._link is not None:
            await self._link.close()
        if self._serving:
            _, stubborn = await asyncio.wait(self._serving, timeout=_END_SECONDS)
            for task in stubborn:
                task.cancel()
            await asyncio.gather(*stubborn, return_exceptions=True)
        if self._inbox is not None:
            await self._inbox.close()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        if self._watch is not None:
            await self._watch

    async def _dial(self, endpoint: Endpoint, key: bytes, epoch: int, timeout: float) -> Link:
        """Dial until the forwarder knows the VM's identity: it has it from the agent, a moment after the owner's."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while True:
            left = deadline - loop.time()
            try:
                return await connect(
                    endpoint, key=key, epoch=epoch, limits=LIMITS, timeout=left, on_stream=self._on_stream
                )
            except ProofError:
                if loop.time() + _AGAIN_SECONDS >= deadline:
                    raise
            await asyncio.sleep(_AGAIN_SECONDS)

    async def _watch_link(self, link: Link) -> None:
        error = await link.wait_closed()
        self._end(error.message)

    def _end(self, reason: str) -> None:
        if not self.lost.done():
            self.lost.set_result(reason)
        if self._link is not None:
            self._link.abort()

    def _on_stream(self, stream: Stream) -> None:
        """Take a stream that the guest has opened."""
        if stream.service != CONNECTION:
            self._end(f"The guest opened a stream for {stream.service!r}.")
        elif not self._is_in_time():
            self._end(f"The guest opened more than {self._bounds.openings_per_second:.0f} connections per second.")
        elif len(self._serving) >= self._bounds.served:
            stream.close()
        else:
            task = asyncio.create_task(self._serve(stream))
            self._serving.add(task)
            task.add_done_callback(self._forget)

    def _is_in_time(self) -> bool:
        """Count an opening; false when it is one too many."""
        now = asyncio.get_running_loop().time()
        earned = (now - self._counted_at) * self._bounds.openings_per_second
        self._allowance = min(float(self._bounds.burst), self._allowance + earned) - 1
        self._counted_at = now
        return self._allowance >= 0

    async def _serve(self, stream: Stream) -> None:
        channel = StreamChannel(stream, self._inbox)
        try:
            async with asyncio.timeout(self._bounds.opening_seconds):
                opening = read_opening(await stream.receive())
        except ProtocolError as error:
            self._end(error.message)
        except (LinkError, TimeoutError):
            channel.close()
        else:
            try:
                await self._on_connection(opening, channel)
            finally:
                channel.close()

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._serving.discard(task)
        error = None if task.cancelled() else task.exception()
        # That a connection or the link ended is no news; anything else is an error of ours.
        if error is not None and not isinstance(error, LinkError):
            context = {"message": "a guest's connection was not served", "exception": error, "task": task}
            asyncio.get_running_loop().call_exception_handler(context)


def read_opening(message: list[bytes]) -> Opening:
    """Return what the first message of a connection's stream says.

    Args:
        message: The message's parts.

    Raises:
        ProtocolError: it is none.
    """
    if len(message) != 1 or len(message[0]) > _MAX_OPENING:
        raise ProtocolError(f"A connection's first message is longer than {_MAX_OPENING} bytes.")
    try:
        said = _OpeningMessage.model_validate_json(message[0])
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]["msg"]
        raise ProtocolError(f"A connection's first message is not valid: {printable(fault.encode())}") from error
    return Opening(said.name, said.address, said.port)
