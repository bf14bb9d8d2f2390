"""What the gateway does to the exchanges of an inspected connection: secrets in, secrets out, written down."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

import h11

from agentvm_kernel.egress.cassette import LARGEST_BODY, Cassette, HeaderList, Request, Response
from agentvm_kernel.egress.channel import Channel
from agentvm_kernel.egress.redaction import Redaction
from agentvm_kernel.egress.room import Part
from agentvm_kernel.egress.secrets import Headers, HostSecrets
from agentvm_kernel.egress.tap import Tap
from agentvm_kernel.errors import CassetteError

_SWITCHING: Final = 101
_CREDENTIALS: Final = 16
"""Encoded credentials that are looked for in answers: those that the program sent last."""


class Exchange(Tap):
    """Puts secrets into requests and takes them out of answers; records both as the guest sees them.

    Args:
        root: Scheme and host of the URLs.
        secrets: The host's.
        cassette: What is recorded into; None if nothing is.
        current: Returns the lease's cassette now.
        part: Memory for what is recorded.
    """

    def __init__(
        self,
        root: str,
        secrets: HostSecrets,
        cassette: Cassette | None,
        current: Callable[[], Cassette | None],
        part: Part,
    ) -> None:
        self._root = root
        self._secrets = secrets
        self._cassette = cassette
        self._current = current
        self._part = part
        self._encoded: deque[bytes] = deque(maxlen=_CREDENTIALS)
        self._redaction = secrets.redaction()
        self._asked: h11.Request | None = None
        self._answered: h11.Response | None = None
        self._awaited: int | None = None
        self._sent = bytearray()
        self._received = bytearray()

    def request(self, request: h11.Request) -> h11.Request:
        """Return the request with its secrets."""
        check_current(self._cassette, self._current())
        self._asked, self._answered = request, None
        self._sent.clear()
        self._received.clear()
        self._part.give_back()
        lengths = [int(value) for name, value in request.headers if name == b"content-length"]
        self._awaited = lengths[0] if lengths else None
        headers, encoded = self._secrets.insert(request.headers.raw_items())
        self._encoded.extend(encoded)
        self._redaction = self._secrets.redaction(self._encoded)
        if self._secrets or self._cassette:
            headers = _readable(headers)
        return h11.Request(method=request.method, target=request.target, headers=headers)

    def request_data(self, data: bytes) -> None:
        """Note what is sent, if it is recorded."""
        if self._cassette:
            self._keep(self._sent, data, "request")

    def request_end(self) -> None:
        """Note that the request is complete."""
        self._awaited = len(self._sent)

    def informational(self, response: h11.InformationalResponse) -> h11.InformationalResponse:
        """Return what comes before the answer, without secrets."""
        if self._cassette and response.status_code == _SWITCHING:
            raise CassetteError(
                "What is no longer HTTP (WebSocket) cannot be recorded.", "End the recording for it: %net record off."
            )
        return h11.InformationalResponse(
            status_code=response.status_code,
            reason=self._redaction.whole(bytes(response.reason)),
            headers=self._clean(response.headers.raw_items()),
        )

    def response(self, response: h11.Response) -> h11.Response:
        """Return the answer's head without secrets."""
        self._answered = h11.Response(
            status_code=response.status_code,
            reason=self._redaction.whole(bytes(response.reason)),
            headers=self._clean(response.headers.raw_items()),
        )
        return self._answered

    def response_data(self, data: bytes) -> bytes:
        """Return the next piece of the answer without secrets."""
        clean = self._redaction.feed(data)
        if self._cassette:
            self._keep(self._received, clean, "answer")
        return clean

    def response_end(self) -> bytes:
        """Return the answer's last piece; the exchange is recorded then."""
        rest = self._redaction.rest()
        if self._cassette:
            self._keep(self._received, rest, "answer")
            self._record(self._cassette)
        return rest

    def _record(self, cassette: Cassette) -> None:
        asked, answered = self._asked, self._answered
        assert asked is not None
        assert answered is not None
        if self._awaited != len(self._sent):
            raise CassetteError(
                "The host answered before it had read the whole request; such an exchange cannot be recorded.",
                "End the recording for it.",
            )
        reason = bytes(answered.reason).decode("latin-1")
        headers = _texts(answered.headers.raw_items())
        response = Response(answered.status_code, reason, headers, bytes(self._received))
        cassette.add(as_request(asked, self._root, bytes(self._sent)), response)

    def _keep(self, into: bytearray, data: bytes, what: str) -> None:
        if len(into) + len(data) > LARGEST_BODY:
            raise CassetteError(
                f"A recording takes no {what} of more than {LARGEST_BODY >> 20} MiB.", "End the recording for it."
            )
        self._part.take(len(data))
        into += data

    def upgraded(self, channel: Channel) -> Channel:
        """Return a channel that takes secrets out of what the host says in whatever it speaks."""
        return RedactedChannel(channel, self._redaction) if self._secrets else channel

    def _clean(self, headers: Headers) -> list[tuple[bytes, bytes]]:
        return [(name, self._redaction.whole(value)) for name, value in headers]


class RedactedChannel:
    """A `Channel` that takes secrets out of what is sent to the guest."""

    def __init__(self, channel: Channel, redaction: Redaction) -> None:
        self._channel = channel
        self._redaction = redaction

    async def receive(self) -> bytes:
        """Return what the guest sent next; see `Channel`."""
        return await self._channel.receive()

    async def send(self, data: bytes) -> None:
        """Send to the guest; see `Channel`."""
        if clean := self._redaction.feed(data):
            await self._channel.send(clean)

    async def send_eof(self) -> None:
        """End this direction; see `Channel`."""
        if rest := self._redaction.rest():
            await self._channel.send(rest)
        await self._channel.send_eof()

    def close(self) -> None:
        """Let go of the connection."""
        self._channel.close()


def check_current(began_with: Cassette | None, now: Cassette | None) -> None:
    """Refuse a request on a connection that was made before recording or replaying began or ended.

    Raises:
        CassetteError: it is on such a connection.
    """
    if began_with is not now:
        raise CassetteError(
            "This connection was made before recording or replaying began or ended.", "Ask again, on a new connection."
        )


def as_request(request: h11.Request, root: str, body: bytes) -> Request:
    """Return a request as cassettes know it.

    Args:
        request: The request, its target a path.
        root: Scheme and host of its URL.
        body: Its body.
    """
    url = root + request.target.decode("latin-1")
    return Request(request.method.decode("latin-1"), url, _texts(request.headers.raw_items()), body)


def _readable(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Ask for an answer in which a secret can be seen: not compressed, neither as HTTP nor as WebSocket."""
    dropped = {b"accept-encoding", b"sec-websocket-extensions"}
    return [
        *((name, value) for name, value in headers if name.lower() not in dropped),
        (b"Accept-Encoding", b"identity"),
    ]


def _texts(headers: Headers) -> HeaderList:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
