"""One connection from its opening to its end: decided, checked against its own first words, reached, relayed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from agentvm_kernel.egress.access import Access, BudgetError
from agentvm_kernel.egress.addresses import Forbidden, ForbiddenAddressError
from agentvm_kernel.egress.channel import Channel, Opening
from agentvm_kernel.egress.firstwords import Protocol, SpeechError, check_git, recognize
from agentvm_kernel.egress.http1 import HttpBrokenError, HttpRelay
from agentvm_kernel.egress.inspector import HostTlsError, Inspector
from agentvm_kernel.egress.log import ConnectionLog
from agentvm_kernel.egress.meter import Meter
from agentvm_kernel.egress.names import normalize, shown
from agentvm_kernel.egress.policy import Decision
from agentvm_kernel.egress.record import Connection
from agentvm_kernel.egress.refusal import answer, read_head
from agentvm_kernel.egress.relay import CHUNK, cancel, downstream, relay, upstream
from agentvm_kernel.egress.resolver import Resolver, UnreachableError, connect
from agentvm_kernel.egress.tls import ClientHelloReader, ServerHelloReader, TlsError
from agentvm_kernel.errors import AgentVMError, LinkError

_WEB: Final = frozenset({80, 443})
_CLIENT_SPEAKS_FIRST: Final = _WEB | {9418}
_SPEECH: Final = {22: Protocol.SSH, 9418: Protocol.GIT}
"""What alone may be spoken on these ports, besides TLS and HTTP for the decided name."""

_NO_WORDS: Final = frozenset({22, 443, 9418})
"""Ports where nobody would read a refusal in HTTP."""

_PEEK_SECONDS: Final = 2.0
"""How long a refused program may take to show that it speaks HTTP."""

_FLUSH_SECONDS: Final = 5.0
"""How long what was written to a host may take to leave once all is said."""


class PolicyError(AgentVMError):
    """The policy refuses a connection."""

    code = "network_policy"


@dataclass(frozen=True)
class Means:
    """What a conversation works with; see `Gateway` and `GatewayLimits`."""

    log: ConnectionLog
    resolver: Resolver
    forbidden: Forbidden
    first_words: float
    connect: float
    answer: float


class Conversation:
    """One connection. Made by the gateway.

    Args:
        means: What to work with.
        access: The lease that the VM belongs to.
        opening: What the guest says about it.
        channel: The connection.
        inspector: Who looks into the TLS of some hosts; None if nobody does.
    """

    def __init__(
        self, means: Means, access: Access, opening: Opening, channel: Channel, inspector: Inspector | None
    ) -> None:
        self._means = means
        self._access = access
        self._opening = opening
        self._plain = channel
        self._inspector = inspector
        self._channel = Meter(channel, access)
        self._started = time.monotonic()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._http: HttpRelay | None = None
        self._finished = False
        self._decision = Decision(None, opening.port, False, None, "")
        self._connection = Connection(
            id=means.log.next_id(),
            time=time.time(),
            session=access.session,
            vm=access.vm,
            cell=access.cell,
            name=shown(opening.name or ""),
            address=shown(opening.address),
            port=opening.port,
            verdict="refused",
            rule="",
            reason="",
        )

    async def run(self) -> None:
        """Serve it to its end."""
        orderly = False
        try:
            await self._run()
            orderly = True
        except LinkError:
            pass  # the guest has gone, as programs do
        except OSError:
            pass  # the host has; the guest hears of it by a reset
        finally:
            self._finish()
            if self._streams is not None:
                await _release(self._streams[1], orderly)

    async def _run(self) -> None:
        try:
            self._decide()
            await self._serve()
        except LinkError:
            raise
        except (UnreachableError, HttpBrokenError) as error:
            self._finish(error, "failed" if self._streams is None else "allowed")
            await self._explain(HTTPStatus.BAD_GATEWAY, error)
        except HostTlsError as error:
            # The program has been told so in TLS.
            self._finish(error, "failed")
        except BudgetError as error:
            self._finish(error, "refused" if self._streams is None else "allowed")
            await self._explain(HTTPStatus.FORBIDDEN, error)
        except AgentVMError as error:
            if isinstance(error, ForbiddenAddressError):
                self._note(address=error.address)
            self._finish(error, "refused")
            await self._explain(HTTPStatus.FORBIDDEN, error)

    def _note(self, **facts: str | int | float) -> None:
        self._connection = self._connection.model_copy(update=facts)

    def _decide(self) -> None:
        name = None if self._opening.name is None else normalize(self._opening.name)
        decision = self._access.policy.decide(name, self._opening.port)
        rule = str(decision.rule) if decision.rule else ""
        self._note(name=name or "", rule=rule, reason=decision.reason, hint=decision.hint)
        if not decision.allowed:
            raise PolicyError(decision.reason, decision.hint)
        self._access.check(decision.rule, 1)
        self._decision = decision
        self._channel.rule = decision.rule
        self._note(verdict="allowed")

    def _finish(self, error: AgentVMError | None = None, verdict: str = "") -> None:
        """Write the end down, once: what it came to before the program has heard of it."""
        if self._finished:
            return
        self._finished = True
        if error is not None:
            self._note(verdict=verdict, reason=error.message, hint=error.hint)
        if self._streams is not None:
            self._note(bytes_sent=self._channel.sent, bytes_received=self._channel.received)
            # An inspected connection's has begun by now.
            if (tls := self._streams[1].get_extra_info("ssl_object")) is not None and (version := tls.version()):
                self._note(tls_version=version.removeprefix("TLSv"))
        self._note(duration=round(time.monotonic() - self._started, 3))
        if self._connection.verdict != "allowed":
            self._access.count(self._connection.verdict)
        self._means.log.put(self._connection)

    async def _explain(self, status: HTTPStatus, error: AgentVMError) -> None:
        if await self._is_http():
            await answer(self._plain, status, error)

    async def _is_http(self) -> bool:
        """Return whether the program waits for an answer in HTTP."""
        if self._http is not None:
            return not self._http.answering
        if self._connection.protocol or self._opening.port in _NO_WORDS:
            return False
        words, protocol = b"", None
        try:
            async with asyncio.timeout(_PEEK_SECONDS):
                while protocol is None and (more := await self._plain.receive()):
                    words += more
                    protocol = recognize(words)
        except TimeoutError:
            return False
        if protocol is Protocol.HTTP:
            await read_head(self._plain, words)
        return protocol is Protocol.HTTP

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Reach the host; the first call does."""
        if self._streams is None:
            name, port, means = self._name, self._opening.port, self._means
            try:
                async with asyncio.timeout(means.connect):
                    async with self._access.lookups:
                        found = await means.resolver.resolve(name, port)
                    self._streams = await connect(name, found, means.forbidden)
            except TimeoutError as error:
                raise UnreachableError(f"{name} did not answer within {means.connect:g} s.") from error
            peer = self._streams[1].get_extra_info("peername")
            self._note(address=peer[0] if peer else "")
            self._channel.host = name
            self._access.touch(name)
            self._access.count("allowed")
            means.log.put(self._connection)
        return self._streams

    @property
    def _name(self) -> str:
        assert self._decision.name is not None
        return self._decision.name

    @property
    def _strict(self) -> bool:
        return self._decision.rule is None or self._decision.rule.tls_name_required

    async def _serve(self) -> None:
        if self._opening.port in _CLIENT_SPEAKS_FIRST:
            async with self._in_time():
                words = await self._channel.receive()
                if not words:
                    return
                protocol, words = await self._recognize(words)
        else:
            reader, writer = await self._connect()
            words, heard = await _first_of(self._channel, reader)
            if heard is not None or not words:
                self._channel.unread(words)
                await self._serve_listener(heard or b"", reader, writer)
                return
            async with self._in_time():
                protocol, words = await self._recognize(words)
        self._note(protocol=str(protocol))
        self._check_speech(protocol)
        if protocol is Protocol.TLS:
            await self._serve_tls(words)
            return
        self._channel.unread(words)
        inspector = self._inspector
        if protocol is Protocol.HTTP and inspector is not None and self._access.cassette is not None:
            await inspector.serve_plain(self._access, self._decision, self._channel, self._connect)
        elif protocol is Protocol.HTTP:
            self._http = HttpRelay(
                self._name, self._opening.port, self._channel, self._connect, self._means.first_words
            )
            await self._http.run()
        else:
            await relay(self._channel, *await self._connect())

    async def _serve_listener(self, heard: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Relay a connection on which the host has spoken first."""
        self._note(protocol=str(_SPEECH.get(self._opening.port, Protocol.TCP)))
        if heard:
            await self._channel.send(heard)
        down = asyncio.ensure_future(downstream(self._channel, reader))
        up = asyncio.ensure_future(self._speak_second(writer))
        try:
            await asyncio.gather(up, down)
        finally:
            await cancel(up, down)

    async def _speak_second(self, writer: asyncio.StreamWriter) -> None:
        if self._opening.port in _SPEECH and (words := await self._channel.receive()):
            async with self._in_time():
                protocol, words = await self._recognize(words)
            if protocol is not _SPEECH[self._opening.port]:
                raise self._wrong_speech(protocol)
            self._channel.unread(words)
        await upstream(self._channel, writer)

    def _in_time(self) -> AbstractAsyncContextManager[None]:
        return _deadline(self._means.first_words)

    async def _recognize(self, words: bytes) -> tuple[Protocol, bytes]:
        """Return what the program speaks, and all that was read to tell."""
        while (protocol := recognize(words)) is None:
            words += await self._more()
        while protocol is Protocol.GIT and not check_git(words, self._name):
            words += await self._more()
        return protocol, words

    async def _more(self) -> bytes:
        if more := await self._channel.receive():
            return more
        raise SpeechError("The program ended before it had said what it wants.")

    def _check_speech(self, protocol: Protocol) -> None:
        port = self._opening.port
        if protocol in {Protocol.TLS, Protocol.HTTP} or (protocol is _SPEECH.get(port, protocol) and port not in _WEB):
            return
        if self._strict or port not in _WEB:
            raise self._wrong_speech(protocol)

    def _wrong_speech(self, protocol: Protocol) -> SpeechError:
        wanted = _SPEECH.get(self._opening.port, "http or tls")
        return SpeechError(f"On port {self._opening.port} only {wanted} is let through, and this is {protocol}.")

    async def _serve_tls(self, words: bytes) -> None:
        first = await self._hear_hello(ClientHelloReader(), words)
        inspector = self._inspector
        if inspector is not None and inspector.wants(self._access, self._decision):
            self._channel.unread(first)
            await inspector.serve(self._access, self._decision, self._channel, self._connect)
            return
        reader, writer = await self._connect()
        writer.write(first)
        await writer.drain()
        if await self._watch_answer(reader):
            writer.write(await self._hear_hello(ClientHelloReader(again=True), b""))
        await relay(self._channel, reader, writer)

    async def _hear_hello(self, reader: ClientHelloReader, words: bytes) -> bytes:
        """Read a ClientHello and check it; return all that was read."""
        async with self._in_time():
            hello = reader.feed(words)
            while hello is None:
                hello = reader.feed(await self._more())
        name = hello.server_name
        if name is None:
            if self._strict:
                raise TlsError("The TLS greeting names no host.", f"Connect to {self._name} by name (SNI).")
        elif normalize(name) != self._name:
            raise TlsError(f"The TLS greeting names {shown(name)!r}, but the connection is to {self._name}.")
        if hello.hidden and self._strict:
            raise TlsError("The TLS greeting hides a name (Encrypted ClientHello).", "Turn ECH off in the program.")
        return bytes(reader.wire)

    async def _watch_answer(self, reader: asyncio.StreamReader) -> bool:
        """Carry the host's greeting to the guest; return whether it asks for another ClientHello, to be checked too."""
        greeting = ServerHelloReader()
        try:
            async with asyncio.timeout(self._means.answer):
                while not greeting.done and (data := await reader.read(CHUNK)):
                    greeting.feed(data)
                    await self._channel.send(data)
        except TimeoutError as error:
            raise UnreachableError(f"{self._name} did not answer the TLS greeting in time.") from error
        if greeting.hello is None:
            return False
        self._note(tls_version=greeting.hello.version)
        return greeting.hello.retry


@asynccontextmanager
async def _deadline(seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise SpeechError(f"The program did not say within {seconds:g} s what it wants.") from error


async def _first_of(channel: Meter, reader: asyncio.StreamReader) -> tuple[bytes, bytes | None]:
    """Return what the guest says first; if the host speaks (or ends) before it, that, too.

    Returns:
        The guest's words, empty if it has ended or not spoken; the host's, None if it has not spoken.
    """
    guest = asyncio.ensure_future(channel.receive())
    host = asyncio.ensure_future(reader.read(CHUNK))
    try:
        await asyncio.wait({guest, host}, return_when=asyncio.FIRST_COMPLETED)
        return (guest.result() if guest.done() else b""), (host.result() if host.done() else None)
    finally:
        await cancel(guest, host)


async def _release(writer: asyncio.StreamWriter, orderly: bool) -> None:
    """Close the connection to a host: what was written still leaves if it does so in time; a reset goes on as one."""
    if not orderly:
        writer.transport.abort()
    writer.close()
    try:
        async with asyncio.timeout(_FLUSH_SECONDS):
            await writer.wait_closed()
    except OSError:  # it takes too long, or is broken already
        writer.transport.abort()
