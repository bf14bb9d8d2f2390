"""The host's end of a link, on asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from collections.abc import AsyncIterator, Callable

from agentvm_kernel.errors import HeartbeatError, LinkClosedError, LinkError, ProofError
from agentvm_kernel.link.asyncio_stream import Stream
from agentvm_kernel.link.endpoint import Endpoint, UnixEndpoint
from agentvm_kernel.link.limits import Limits
from agentvm_kernel.link.proof import HostHandshake
from agentvm_kernel.link.session import Session
from agentvm_kernel.link.stream import SessionStream
from agentvm_kernel.pace import Pace

# How long to wait for the answer to HELLO before it is repeated; each further wait is twice as long.
_FIRST_REPEAT = 0.3
_GOODBYE = 0.5
_DRAINED = 10.0


OnStream = Callable[[Stream], None]


class Link(asyncio.Protocol):
    """A proven connection to a guest agent. Made by `connect`.

    It ends with a named reason: `LinkClosedError` for an ordinary end, `ProtocolError`, `HeartbeatError`, `ProofError`.
    From then on every call raises that error.
    """

    def __init__(self, key: bytes, epoch: int, limits: Limits, on_stream: OnStream | None = None) -> None:
        loop = asyncio.get_running_loop()
        self._limits = limits
        self._on_stream = on_stream
        self._epoch = epoch
        self._handshake = HostHandshake(key, epoch, limits)
        self._session: Session | None = None
        self._transport: asyncio.Transport | None = None
        self._blocked = False
        self._streams: dict[SessionStream, Stream] = {}
        self._error: LinkError | None = None
        self._proven: asyncio.Future[None] = loop.create_future()
        self._closed: asyncio.Future[LinkError] = loop.create_future()
        self._lost: asyncio.Future[None] = loop.create_future()
        self._beat: asyncio.TimerHandle | None = None
        self._held = False
        self._ponged = asyncio.Event()
        self._ping_at = 0.0
        self._frames = Pace()

    @property
    def epoch(self) -> int:
        """The VM's epoch."""
        return self._epoch

    @property
    def dropped(self) -> int:
        """Frames of another epoch that were dropped."""
        return self._session.dropped if self._session else 0

    @property
    def buffered(self) -> int:
        """Bytes received that nobody has taken yet."""
        return sum(stream.buffered for stream in self._session.streams()) if self._session else 0

    async def open(self, service: str) -> Stream:
        """Open a stream to one of the guest's services.

        Args:
            service: ``shell``, ``control``, ``stdin``, ``iopub`` or ``agent``.

        Raises:
            LinkError: the link's error, once it ended.
        """
        self.check()
        assert self._session is not None
        stream = Stream(self, core := self._session.open(service))
        self._streams[core] = stream
        self.pump()
        return stream

    async def close(self) -> None:
        """Say goodbye and close the connection; returns when it is closed."""
        if self._error is None:
            if self._session is not None:
                self._session.bye("the host closed the link")
                self.pump()
            self._fail(LinkClosedError("The link to the VM was closed by this end."), abort=False)
        # A guest that does not read keeps the goodbye from leaving; it is not worth waiting for.
        await asyncio.wait([self._lost], timeout=_GOODBYE)
        self.abort()

    def abort(self) -> None:
        """Close the connection without a goodbye."""
        self._fail(LinkClosedError("The link to the VM was closed by this end."))
        if self._transport is not None:
            self._transport.abort()

    async def wait_closed(self) -> LinkError:
        """Return the reason once the link has ended."""
        return await asyncio.shield(self._closed)

    @contextlib.asynccontextmanager
    async def hold(self, *, drain: bool = True) -> AsyncIterator[None]:
        """Write nothing to the guest within the context; for an owner that pauses, saves or replaces the VM.

        What is sent meanwhile, pings included, leaves afterwards; the guest may be silent for as long as it takes.

        Args:
            drain: Return only when the guest has received all that was written before: what lies in a buffer of QEMU's
                would go into the memory of a VM that is being saved.

        Raises:
            LinkError: the guest does not take what was written, or the link's error, once it ended.
        """
        self.check()
        assert self._session is not None
        assert not self._held
        self._held = True
        try:
            if drain:
                await self._drain(self._session)
            yield
        finally:
            self._held = False
            self._ping_at = asyncio.get_running_loop().time()
            self._go_on()

    async def _drain(self, session: Session) -> None:
        """Wait for the answer to a ping behind everything that was written."""
        self._ponged.clear()
        self._write(session.last_ping(secrets.token_bytes(8)))
        try:
            async with asyncio.timeout(_DRAINED):
                await self._ponged.wait()
        except TimeoutError as error:
            raise HeartbeatError(f"The guest agent has not answered for {_DRAINED:.0f} s.") from error
        self.check()

    async def prove(self, timeout: float) -> None:
        """Do the handshake; called by `connect`."""
        try:
            async with asyncio.timeout(timeout):
                await self._greet()
        except TimeoutError as error:
            said = "answered but sent no proof" if self._handshake.answered else "did not answer"
            failure = ProofError(
                f"The guest agent {said} within {timeout:g} s.", "Its VM may be busy, paused or broken: restart it."
            )
            self._fail(failure)
            raise failure from error

    async def _greet(self) -> None:
        wait = _FIRST_REPEAT
        while not self._proven.done():
            self._write(self._handshake.hello())
            await asyncio.wait([self._proven], timeout=wait)
            wait *= 2
            if self._handshake.answered:
                break
        await self._proven

    # What follows is called by the transport or by streams.

    def check(self) -> None:
        """Raise the link's error if it ended; called by `Stream`."""
        if self._error is not None:
            raise self._error

    def read(self, core: SessionStream) -> list[bytes] | None:
        """Take a message from a stream; called by `Stream`."""
        try:
            message = core.receive()
        except LinkError as error:
            self._fail(error)
            raise
        if self._session is not None and self._session.granting:
            self.pump()
        return message

    def pump(self) -> None:
        """Hand what is due to the transport while it takes it; called by `Stream`."""
        session = self._session
        if session is None or self._error is not None:
            return
        while not (self._blocked or self._held) and (data := session.take()):
            self._write(data)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        assert isinstance(transport, asyncio.Transport)
        transport.set_write_buffer_limits(high=1 << 16)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Take received bytes."""
        if self._error is not None:
            return
        try:
            if self._session is None:
                proof = self._handshake.feed(data)
                if proof is not None:
                    self._begin(proof)
            else:
                self._feed(self._handshake.skip_repeats(data))
        except LinkError as error:
            self._fail(error)

    def pause_writing(self) -> None:
        """Note that the transport's buffer is full."""
        self._blocked = True

    def resume_writing(self) -> None:
        """Go on sending."""
        self._blocked = False
        self._go_on()

    def _go_on(self) -> None:
        self.pump()
        # Whoever wakes may open or forget one.
        for stream in list(self._streams.values()):
            stream.wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the connection's end."""
        reason = f": {exc}" if exc else ""
        self._fail(LinkClosedError(f"The guest's end of the link is gone{reason}."))
        self._transport = None  # one that is gone cannot be aborted
        if not self._lost.done():
            self._lost.set_result(None)

    def _begin(self, proof: bytes) -> None:
        assert self._handshake.terms is not None
        self._write(proof)
        self._session = Session(
            host=True, epoch=self._epoch, limits=self._limits, terms=self._handshake.terms,
            accept=(lambda _service: True) if self._on_stream is not None else None,
        )  # fmt: skip
        self._schedule_beat()
        if not self._proven.done():
            self._proven.set_result(None)
        self._feed(self._handshake.rest())

    def _feed(self, data: bytes) -> None:
        session = self._session
        assert session is not None
        frames = session.feed(data)
        self._slow_down(len(frames))
        touched = list(dict.fromkeys(frames))
        if not session.awaiting_pong:
            self._ponged.set()
        for core in touched:
            if core.ended:
                core.close()
        self.pump()
        for core in touched:
            if (stream := self._streams.get(core)) is not None:
                stream.wake()
            elif not core.closed:
                self._adopt(core)
            if core.ended:
                self._streams.pop(core, None)
        if session.goodbye is not None:
            self._fail(LinkClosedError(f"The guest closed the link: {session.goodbye}"))

    def _slow_down(self, frames: int) -> None:
        """Read on when so many frames may have come: a guest that sends tiny ones must not have all of this process."""
        rate = self._limits.frames_per_second
        if rate is not None and self._transport is not None and (wait := self._frames.take(frames, rate, rate)):
            self._transport.pause_reading()
            asyncio.get_running_loop().call_later(wait, self._transport.resume_reading)

    def _adopt(self, core: SessionStream) -> None:
        """Hand a stream that the guest has opened to the link's owner."""
        assert self._on_stream is not None
        stream = self._streams[core] = Stream(self, core)
        self._on_stream(stream)

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _schedule_beat(self) -> None:
        self._beat = asyncio.get_running_loop().call_later(self._limits.heartbeat, self._on_beat)

    def _on_beat(self) -> None:
        session = self._session
        if session is None or self._error is not None:
            return
        now = asyncio.get_running_loop().time()
        session.tick()
        if not self._held:
            if not session.awaiting_pong:
                self._ping_at = now
                session.ping(secrets.token_bytes(8))
                self.pump()
            elif now - self._ping_at > self._limits.silence:
                self._fail(HeartbeatError(f"The guest agent has not answered for {now - self._ping_at:.1f} s."))
                return
        self._schedule_beat()

    def _fail(self, error: LinkError, *, abort: bool = True) -> None:
        """End the link, once."""
        if self._error is not None:
            return
        self._error = error
        if self._beat is not None:
            self._beat.cancel()
        if self._transport is not None:
            if abort:
                self._transport.abort()
            else:
                self._transport.close()
        if not self._proven.done():
            self._proven.set_exception(error)
            self._proven.exception()
        self._closed.set_result(error)
        self._ponged.set()
        for stream in self._streams.values():
            stream.wake_all()


async def connect(
    endpoint: Endpoint,
    *,
    key: bytes,
    epoch: int,
    limits: Limits | None = None,
    timeout: float = 5.0,
    on_stream: OnStream | None = None,
) -> Link:
    """Dial a guest agent and prove, each to the other, that both know the VM's key.

    Args:
        endpoint: Where the agent is.
        key: The VM's key, 32 bytes.
        epoch: The VM's epoch.
        limits: This end's bounds.
        timeout: Seconds for dialling and for the proofs.
        on_stream: Called with each stream that the guest opens; without it a guest that opens one ends the link.

    Raises:
        ProofError: the guest's proof is wrong or did not come in time.
        LinkError: the endpoint cannot be dialled.
    """
    loop = asyncio.get_running_loop()
    link = Link(key, epoch, limits or Limits(), on_stream)
    try:
        async with asyncio.timeout(timeout):
            if isinstance(endpoint, UnixEndpoint):
                await loop.create_unix_connection(lambda: link, endpoint.path)
            else:
                await _dial_vsock(link, endpoint.cid, endpoint.port)
    except (OSError, TimeoutError) as error:
        raise LinkError(f"The guest agent cannot be dialled: {error or 'no answer'} ({endpoint}).") from error
    try:
        await link.prove(timeout)
    except BaseException:
        link.abort()
        raise
    return link


async def _dial_vsock(link: Link, cid: int, port: int) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        stack.callback(sock.close)
        sock.setblocking(False)
        await loop.sock_connect(sock, (cid, port))
        await loop.create_connection(lambda: link, sock=sock)
        stack.pop_all()
