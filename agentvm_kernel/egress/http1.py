"""HTTP/1.1 between a guest and a host: each request is read, checked and written anew, so that both ends agree on it.

What h11 reads it writes in one way only: no two programs can understand its framing differently, which is what request
smuggling lives on (RFC 9112, section 11.2).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Final

import h11

from agentvm_kernel.egress.guest_tls import GuestTls
from agentvm_kernel.egress.inspector import Connect
from agentvm_kernel.egress.meter import Meter
from agentvm_kernel.egress.names import NameRefusedError, normalize, shown
from agentvm_kernel.egress.relay import CHUNK, cancel, linger, relay
from agentvm_kernel.egress.tap import Tap
from agentvm_kernel.errors import AgentVMError

_LONGEST_HEAD: Final = 64 * 1024
_ABSOLUTE: Final = re.compile(rb"(?i)http://([^/?#]*)(.*)")
_AUTHORITY: Final = re.compile(r"(.*?)(?::([0-9]{1,5}))?")
_WEBSOCKET: Final = b"websocket"
_UPGRADING: Final = frozenset({b"upgrade", b"http2-settings"})


class HttpRefusedError(AgentVMError):
    """A request is not for the decided host, or not of a kind that can be let through."""

    code = "http"


class HttpBrokenError(AgentVMError):
    """A host does not speak HTTP/1.1 as it should."""

    code = "http_broken"


def checked(request: h11.Request, name: str, port: int) -> h11.Request:
    """Return a request as it is sent to the host, which it is certainly for.

    Args:
        request: What the guest asks.
        name: The decided name.
        port: The decided port.

    Raises:
        HttpRefusedError: it is for another host, or of a kind that can carry requests for others.
    """
    if request.method.upper() == b"CONNECT":
        raise HttpRefusedError("CONNECT is not allowed: the gateway is no proxy.", "Connect to the host itself.")
    if request.http_version not in {b"1.0", b"1.1"}:
        raise HttpRefusedError("Without TLS only HTTP/1.1 is let through.", "Use HTTP/1.1 or https.")
    headers = [(raw.lower(), raw, value) for raw, value in request.headers.raw_items()]
    hosts = [value for key, _, value in headers if key == b"host"]
    if len(hosts) != 1:
        raise HttpRefusedError(f"The request has {len(hosts)} Host headers instead of one.", f"Say Host: {name}.")
    _check_authority(hosts[0], name, port, "The Host header")
    target = _origin_form(request, name, port)
    keys = {key for key, _, _ in headers}
    if b"transfer-encoding" in keys and (b"content-length" in keys or request.http_version != b"1.1"):
        raise HttpRefusedError("The request says in two ways how long it is.", "Send Content-Length only.")
    options = {
        option.strip().lower() for key, _, value in headers if key == b"connection" for option in value.split(b",")
    }
    if b"host" in options:
        raise HttpRefusedError("The request asks for its Host header to be dropped.", "Leave Host out of Connection.")
    return h11.Request(
        method=request.method, target=target, headers=[(raw, value) for raw, value in _without_upgrades(headers)]
    )


def _check_authority(raw: bytes, name: str, port: int, what: str) -> None:
    text = raw.decode("latin-1")
    match = _AUTHORITY.fullmatch(text)
    assert match is not None
    try:
        right = text.isascii() and normalize(match[1]) == name and (match[2] is None or int(match[2]) == port)
    except NameRefusedError:
        right = False
    if not right:
        raise HttpRefusedError(
            f"{what} says {shown(text)!r}, but the connection is to {name}:{port}.",
            "Each host is connected to by its own name.",
        )


def _origin_form(request: h11.Request, name: str, port: int) -> bytes:
    """Return the target without scheme and host, which servers are told by Host."""
    target = request.target
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute:
        _check_authority(absolute[1], name, port, "The request's target")
        return absolute[2] if absolute[2].startswith(b"/") else b"/" + absolute[2]
    if target.startswith(b"/") or (target == b"*" and request.method == b"OPTIONS"):
        return target
    raise HttpRefusedError(
        f"The request's target {shown(target.decode('latin-1'))!r} is not a path.", "Ask for a path."
    )


def _without_upgrades(headers: list[tuple[bytes, bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Drop offers to speak something else (HTTP/2 would carry requests for any host); WebSocket may stay."""
    upgrades = [value.strip().lower() for key, _, value in headers if key == b"upgrade"]
    if upgrades == [_WEBSOCKET]:
        return [(raw, value) for _, raw, value in headers]
    kept = []
    for key, raw, value in headers:
        if key == b"connection":
            options = [option.strip() for option in value.split(b",") if option.strip().lower() not in _UPGRADING]
            if options:
                kept.append((raw, b", ".join(options)))
        elif key not in _UPGRADING:
            kept.append((raw, value))
    return kept


class HttpRelay:
    """Serves one guest's HTTP connection to its end.

    Args:
        name: The decided name.
        port: The decided port.
        channel: The guest's connection, from its first byte on.
        connect: Reaches the host; called once, after the first request was found good.
        patience: Seconds for the first request's head.
        tap: What is done to requests and answers on their way; nothing by default.
    """

    def __init__(
        self,
        name: str,
        port: int,
        channel: Meter | GuestTls,
        connect: Connect,
        patience: float,
        tap: Tap | None = None,
    ) -> None:
        self._tap = tap or Tap()
        self._name = name
        self._port = port
        self._channel = channel
        self._connect = connect
        self._patience = patience
        self._guest = h11.Connection(h11.SERVER, _LONGEST_HEAD)
        self._host = h11.Connection(h11.CLIENT, _LONGEST_HEAD)
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self.answering = False
        """A response has been begun: a refusal can no more be put in words."""

    async def run(self) -> None:
        """Relay requests and responses until one end is done.

        Raises:
            HttpRefusedError: a request is refused; all before it were served.
            HttpBrokenError: the host's response is not HTTP.
            LinkError: the guest has gone.
            OSError: the connection to the host broke.
            AgentVMError: the host could not be reached.
        """
        try:
            async with asyncio.timeout(self._patience):
                request = await self._next_request()
        except TimeoutError as error:
            raise HttpRefusedError("The request's head did not come in time.") from error
        while request is not None:
            good = self._tap.request(checked(request, self._name, self._port))
            if self._writer is None:
                self._reader, self._writer = await self._connect()
            more = await self._exchange(good)
            request = await self._next_request() if more else None
        if not self.answering:
            await self._channel.send_eof()
            await linger(self._channel)

    async def _next_request(self) -> h11.Request | None:
        """Return the next request; None when the guest has ended, or the host has while the guest was silent."""
        event = await self._guest_event(self._receive_or_end)
        if isinstance(event, h11.Request):
            return event
        return None

    async def _guest_event(self, receive: Callable[[], Awaitable[bytes | None]]) -> h11.Event | None:
        try:
            while (event := self._guest.next_event()) is h11.NEED_DATA:
                data = await receive()
                if data is None:
                    return None
                self._guest.receive_data(data)
        except h11.RemoteProtocolError as error:
            raise HttpRefusedError(f"The request is not valid HTTP/1.1: {shown(str(error))}.") from error
        assert event is not h11.PAUSED
        return event  # type: ignore[return-value]

    async def _receive_or_end(self) -> bytes | None:
        """Return what the guest sends next; None once the host has ended the connection, as idle ones are."""
        if self._reader is None:
            return await self._channel.receive()
        guest = asyncio.ensure_future(self._channel.receive())
        host = asyncio.ensure_future(self._reader.read(1))
        try:
            await asyncio.wait({guest, host}, return_when=asyncio.FIRST_COMPLETED)
            return None if host.done() else guest.result()
        finally:
            await cancel(guest, host)

    async def _exchange(self, request: h11.Request) -> bool:
        """Relay one request and its response; return whether another may follow."""
        assert self._reader is not None
        assert self._writer is not None
        up = asyncio.ensure_future(self._relay_request(request, self._writer))
        down = asyncio.ensure_future(self._relay_response(self._reader))
        try:
            done, _ = await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
            if up in done:
                up.result()
            switched = await down
        finally:
            await cancel(up, down)
        if switched:
            self._channel.unread(self._guest.trailing_data[0])
            channel = self._tap.upgraded(self._channel)
            if early := self._host.trailing_data[0]:
                await channel.send(early)
            await relay(channel, self._reader, self._writer)
            return False
        self.answering = False
        states = (self._guest.our_state, self._guest.their_state, self._host.our_state, self._host.their_state)
        if any(state is not h11.DONE for state in states):
            return False
        self._guest.start_next_cycle()
        self._host.start_next_cycle()
        return True

    async def _relay_request(self, request: h11.Request, writer: asyncio.StreamWriter) -> None:
        """Send a request to the host, then listen whether the guest is still there."""
        try:
            event: h11.Event | None = request
            while True:
                # What a guest puts behind a body (trailers) is nothing that was checked.
                event = h11.EndOfMessage() if isinstance(event, h11.EndOfMessage) else event
                if isinstance(event, h11.Data):
                    self._tap.request_data(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    self._tap.request_end()
                writer.write(self._host.send(event) or b"")  # type: ignore[arg-type]
                await writer.drain()
                if isinstance(event, h11.EndOfMessage):
                    break
                event = await self._guest_event(self._channel.receive)
        except OSError:
            return  # a host may answer and close before it has read all; what it said is still there to be read
        self._guest.receive_data(await self._channel.receive())

    async def _relay_response(self, reader: asyncio.StreamReader) -> bool:
        """Send the host's response to the guest; return whether they speak something else from now on."""
        while True:
            event = await self._host_event(reader)
            if isinstance(event, h11.Response):
                self.answering = True
            for sent in self._tapped(event):
                if data := self._guest.send(sent):
                    await self._channel.send(data)
            if isinstance(event, h11.EndOfMessage):
                return False
            if isinstance(event, h11.InformationalResponse) and event.status_code == HTTPStatus.SWITCHING_PROTOCOLS:
                self.answering = True
                return True

    def _tapped(self, event: h11.Event) -> list[h11.Event]:
        """Return what the guest is sent of what the host has sent."""
        tap = self._tap
        if isinstance(event, h11.InformationalResponse):
            return [tap.informational(event)]
        if isinstance(event, h11.Response):
            response = h11.Response(
                status_code=event.status_code, reason=event.reason, headers=event.headers.raw_items()
            )
            return [tap.response(response)]
        if isinstance(event, h11.Data):
            piece = tap.response_data(event.data)
            return [h11.Data(data=piece)] if piece else []
        # What a host puts behind a body (trailers) is nothing that programs look at.
        rest = tap.response_end()
        return [h11.Data(data=rest), h11.EndOfMessage()] if rest else [h11.EndOfMessage()]

    async def _host_event(self, reader: asyncio.StreamReader) -> h11.Event:
        try:
            while (event := self._host.next_event()) is h11.NEED_DATA:
                self._host.receive_data(await reader.read(CHUNK))
        except h11.RemoteProtocolError as error:
            raise HttpBrokenError(f"{self._name} did not answer in HTTP/1.1: {shown(str(error))}.") from error
        if isinstance(event, h11.ConnectionClosed) or not isinstance(event, h11.Event):
            raise HttpBrokenError(f"{self._name} closed the connection instead of an answer.")
        return event
