"""The server's end of TLS towards a guest's program, inside of its connection."""

from __future__ import annotations

import asyncio
import ssl
from typing import Final

from agentvm_kernel.egress.channel import Channel
from agentvm_kernel.errors import AgentVMError, LinkClosedError

_PIECE: Final = 64 * 1024


class GuestTlsError(AgentVMError):
    """A guest's program and the gateway cannot agree on TLS."""

    code = "guest_tls"


class GuestTls:
    """A `Channel` in the clear, made of one in TLS.

    Args:
        channel: The guest's connection from its ClientHello on.
        context: The server's side of TLS.
        name: The name that the certificate is for.
    """

    def __init__(self, channel: Channel, context: ssl.SSLContext, name: str) -> None:
        self._channel = channel
        self._name = name
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._flushing = asyncio.Lock()
        self._ahead = b""

    async def shake_hands(self, patience: float) -> None:
        """Agree on keys; the first thing to do.

        Args:
            patience: Seconds for it.

        Raises:
            GuestTlsError: the program does not trust the gateway, wants another TLS, or is too slow.
            LinkError: the guest has gone.
        """
        try:
            async with asyncio.timeout(patience):
                while not await self._step():
                    pass
        except TimeoutError as error:
            raise GuestTlsError(f"The program did not finish its TLS greeting to {self._name} in time.") from error
        except ssl.SSLError as error:
            await self._flush()
            raise GuestTlsError(
                f"The program and the gateway, which inspects {self._name}, do not agree on TLS ({error.reason}).",
                "The program must trust the certificates in SSL_CERT_FILE; or let the host be without inspection.",
            ) from error

    async def _step(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            await self._flush()
            self._feed(await self._channel.receive())
            return False
        await self._flush()
        return True

    def unread(self, data: bytes) -> None:
        """Let the next ``receive`` return this first.

        Args:
            data: What was received and is to be read again.
        """
        self._ahead = data + self._ahead

    async def receive(self) -> bytes:
        """Return what the guest sent next; empty when it has ended its direction. Cancelling it loses nothing.

        Raises:
            LinkError: the guest has reset the connection, or the link has ended.
            GuestTlsError: what it sent is no TLS.
        """
        if self._ahead:
            data, self._ahead = self._ahead, b""
            return data
        while True:
            try:
                return self._tls.read(_PIECE)
            except ssl.SSLWantReadError:
                await self._flush()
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                # Many programs end without saying so in TLS; HTTP tells whether something is missing.
                return b""
            except ssl.SSLError as error:
                raise GuestTlsError(f"What the program sent is no TLS ({error.reason}).") from error
            self._feed(await self._channel.receive())

    async def send(self, data: bytes) -> None:
        """Send to the guest.

        Raises:
            LinkError: the guest has gone.
        """
        try:
            self._tls.write(data)
        except ssl.SSLError as error:
            raise LinkClosedError("The guest has ended its TLS.") from error
        await self._flush()

    async def send_eof(self) -> None:
        """End this direction, in TLS and below it.

        Raises:
            LinkError: the guest has gone.
        """
        try:
            self._tls.unwrap()
        except ssl.SSLError:
            # It waits for the guest's end, which `receive` sees; ours is written.
            await self._flush()
        else:
            await self._flush()
        await self._channel.send_eof()

    def close(self) -> None:
        """Let go of the connection."""
        self._channel.close()

    def _feed(self, data: bytes) -> None:
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    async def _flush(self) -> None:
        # Both directions write records; they must leave in the order in which they were made.
        async with self._flushing:
            while data := self._outgoing.read(_PIECE):
                await self._channel.send(data)
