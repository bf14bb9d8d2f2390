"""Answers a guest's requests from a cassette; no host is reached."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import h11

from agentvm_kernel.egress.cassette import LARGEST_BODY, Cassette, Response
from agentvm_kernel.egress.channel import Channel
from agentvm_kernel.egress.exchange import as_request, check_current
from agentvm_kernel.egress.http1 import HttpRefusedError, checked
from agentvm_kernel.egress.names import shown
from agentvm_kernel.egress.room import Part
from agentvm_kernel.errors import CassetteError

_LONGEST_HEAD: Final = 64 * 1024


class Replay:
    """Serves one guest's HTTP connection to its end.

    Args:
        scheme: ``http`` or ``https``.
        name: The decided name.
        port: The decided port.
        channel: The guest's connection, in the clear.
        cassette: Where the answers are.
        current: Returns the lease's cassette now.
        part: Memory for what is asked and answered.
    """

    def __init__(
        self,
        scheme: str,
        name: str,
        port: int,
        channel: Channel,
        cassette: Cassette,
        current: Callable[[], Cassette | None],
        part: Part,
    ) -> None:
        self._root = root_of(scheme, name, port)
        self._name = name
        self._port = port
        self._channel = channel
        self._cassette = cassette
        self._current = current
        self._part = part
        self._guest = h11.Connection(h11.SERVER, _LONGEST_HEAD)

    async def run(self, patience: float) -> None:
        """Answer requests until the guest ends.

        Args:
            patience: Seconds for the first request's head.

        Raises:
            CassetteError: a request was not recorded.
            HttpRefusedError: a request is refused.
            LinkError: the guest has gone.
        """
        try:
            async with asyncio.timeout(patience):
                event = await self._next_event()
        except TimeoutError as error:
            raise HttpRefusedError("The request's head did not come in time.") from error
        while isinstance(event, h11.Request):
            request = checked(event, self._name, self._port)
            body = await self._read_body()
            check_current(self._cassette, self._current())
            answer = self._cassette.answer(as_request(request, self._root, body))
            self._part.take(len(answer.body))
            await self._answer(answer)
            self._part.give_back()
            if self._guest.our_state is not h11.DONE or self._guest.their_state is not h11.DONE:
                break
            self._guest.start_next_cycle()
            event = await self._next_event()
        await self._channel.send_eof()

    async def _next_event(self) -> h11.Event:
        try:
            while (event := self._guest.next_event()) is h11.NEED_DATA:
                if self._guest.they_are_waiting_for_100_continue:
                    go_on = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
                    await self._channel.send(self._guest.send(go_on) or b"")
                self._guest.receive_data(await self._channel.receive())
        except h11.RemoteProtocolError as error:
            raise HttpRefusedError(f"The request is not valid HTTP/1.1: {shown(str(error))}.") from error
        assert isinstance(event, h11.Event)
        return event

    async def _read_body(self) -> bytes:
        body = bytearray()
        while isinstance(event := await self._next_event(), h11.Data):
            self._part.take(len(event.data))
            body += event.data
            if len(body) > LARGEST_BODY:
                raise CassetteError(f"No request of more than {LARGEST_BODY >> 20} MiB is recorded.", "Record anew.")
        return bytes(body)

    async def _answer(self, answer: Response) -> None:
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers]
        if not any(name.lower() == b"content-length" for name, _ in headers):
            headers.append((b"Content-Length", b"%d" % len(answer.body)))
        try:
            head = self._guest.send(
                h11.Response(status_code=answer.status, reason=answer.reason.encode("latin-1"), headers=headers)
            )
            body = self._guest.send(h11.Data(data=answer.body)) if answer.body else b""
            end = self._guest.send(h11.EndOfMessage())
        except h11.LocalProtocolError as error:
            raise CassetteError(
                "An answer in the recording is no valid answer to its request.", "Record anew."
            ) from error
        await self._channel.send((head or b"") + (body or b"") + (end or b""))


def root_of(scheme: str, name: str, port: int) -> str:
    """Return scheme and host of a host's URLs, without a port where it is the scheme's own."""
    usual = {"http": 80, "https": 443}[scheme]
    return f"{scheme}://{name}" if port == usual else f"{scheme}://{name}:{port}"
