"""Ends the TLS of hosts that have a secret or are to be inspected, and begins it anew towards the host.

mitmproxy was weighed for this. It brings 33 packages and holds h11, cryptography and tornado at old versions, which
Jupyter would have to share; it wants its own sockets and its own loop over them, where here each connection is a
`Channel` whose VM, budget and decision are known already. What is needed of it is in this file and `GuestTls`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable
from functools import partial
from http import HTTPStatus
from typing import Final

from agentvm_kernel.egress.access import Access
from agentvm_kernel.egress.authority import Authority
from agentvm_kernel.egress.cassette import Cassette
from agentvm_kernel.egress.channel import Channel
from agentvm_kernel.egress.exchange import Exchange
from agentvm_kernel.egress.guest_tls import GuestTls
from agentvm_kernel.egress.http1 import HttpRefusedError, HttpRelay
from agentvm_kernel.egress.inspector import Connect, HostTlsError
from agentvm_kernel.egress.meter import Meter
from agentvm_kernel.egress.policy import Decision
from agentvm_kernel.egress.refusal import answer
from agentvm_kernel.egress.replay import Replay, root_of
from agentvm_kernel.egress.secrets import HostSecrets, SecretStore
from agentvm_kernel.errors import AgentVMError, LinkError, SecretError

_PATIENCE: Final = 10.0
"""Seconds for each end's greeting, and for the keyring."""


class HostBrokenError(AgentVMError):
    """The connection to a host broke."""

    code = "host_broken"


class Inspection:
    """Looks into the connections to some hosts; see `Inspector`. One for all VMs.

    Args:
        authority: Signs for these hosts towards guests.
        secrets: The user's secrets.
        trust: What hosts must prove; by default what the host's trust store says (``SSL_CERT_FILE`` counts).
    """

    def __init__(self, authority: Authority, secrets: SecretStore, trust: ssl.SSLContext | None = None) -> None:
        self._authority = authority
        self._secrets = secrets
        self._trust = trust or ssl.create_default_context()
        self._trust.set_alpn_protocols(["http/1.1"])

    def wants(self, access: Access, decision: Decision) -> bool:
        """Return whether a connection is inspected: its host has a secret, or its rule says so.

        Args:
            access: The lease.
            decision: What was decided.

        Raises:
            HostError: the list of secrets cannot be trusted.
        """
        if decision.name is None:
            return False
        inspected = decision.rule is not None and decision.rule.inspect
        return inspected or self._secrets.has(decision.name, decision.port)

    async def serve(self, access: Access, decision: Decision, channel: Channel, connect: Connect) -> None:
        """Serve one connection to its end.

        Args:
            access: The lease.
            decision: What was decided.
            channel: The guest's connection from its ClientHello on.
            connect: Reaches the host.

        Raises:
            LinkError: the guest has gone.
            OSError: the connection to the host broke.
            AgentVMError: what was asked for is refused.
        """
        assert decision.name is not None
        guest = GuestTls(channel, self._authority.context(decision.name), decision.name)
        await guest.shake_hands(_PATIENCE)
        unlock = partial(self._unlock, decision.name, decision.port, access.notebook)
        await _carry(
            _Conversation("https", access, decision, guest), unlock, partial(self._reach, decision.name, connect)
        )

    async def serve_plain(self, access: Access, decision: Decision, channel: Meter, connect: Connect) -> None:
        """Serve one connection without TLS to its end: nothing but record or replay it.

        Args:
            access: The lease, which has a cassette.
            decision: What was decided.
            channel: The guest's connection from its first byte on.
            connect: Reaches the host.

        Raises:
            LinkError: the guest has gone.
            OSError: the connection to the host broke.
            AgentVMError: what was asked for is refused.
        """
        await _carry(_Conversation("http", access, decision, channel), _no_secrets, connect)

    async def _unlock(self, name: str, port: int, notebook: str) -> HostSecrets:
        try:
            async with asyncio.timeout(_PATIENCE):
                return await asyncio.to_thread(self._secrets.of_host, name, port, notebook)
        except TimeoutError as error:
            raise SecretError("The host's keyring does not answer.", "Unlock it on the host.") from error

    async def _reach(self, name: str, connect: Connect) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await connect()
        try:
            await writer.start_tls(self._trust, server_hostname=name, ssl_handshake_timeout=_PATIENCE)
        except ssl.SSLCertVerificationError as error:
            raise HostTlsError(
                f"The host that answers as {name} cannot prove that it is: {error.verify_message}.",
                "If it is right, its certificate authority must be in the host's trust store.",
            ) from error
        except ssl.SSLError as error:
            raise HostTlsError(f"{name} and the gateway do not agree on TLS ({error.reason}).") from error
        return reader, writer


async def _no_secrets() -> HostSecrets:
    return HostSecrets(())


async def _carry(conversation: _Conversation, unlock: Callable[[], Awaitable[HostSecrets]], connect: Connect) -> None:
    """Serve a connection, and tell the program what went wrong, if something does."""
    try:
        if conversation.is_replayed:
            await conversation.replay()
        else:
            await conversation.relay(await unlock(), connect)
    except LinkError:
        raise
    except AgentVMError as error:
        await conversation.refuse(error)
        raise
    except OSError as error:
        await conversation.refuse(HostBrokenError(f"The connection to the host broke: {error.strerror or 'ended'}."))
        raise


class _Conversation:
    """One inspected connection, once it is in the clear."""

    def __init__(self, scheme: str, access: Access, decision: Decision, guest: GuestTls | Meter) -> None:
        assert decision.name is not None
        self._scheme = scheme
        self._access = access
        self._name = decision.name
        self._port = decision.port
        self._guest = guest
        self._relay: HttpRelay | None = None

    @property
    def is_replayed(self) -> bool:
        """Whether no host is asked."""
        return self._access.cassette is not None and not self._access.cassette.recording

    async def relay(self, secrets: HostSecrets, connect: Connect) -> None:
        """Carry requests to the host and answers back."""
        root = root_of(self._scheme, self._name, self._port)
        with self._access.room.part() as part:
            exchange = Exchange(root, secrets, self._access.cassette, self._cassette, part)
            self._relay = HttpRelay(self._name, self._port, self._guest, connect, _PATIENCE, exchange)
            await self._relay.run()

    async def replay(self) -> None:
        """Answer requests from the lease's cassette."""
        cassette = self._access.cassette
        assert cassette is not None
        with self._access.room.part() as part:
            replay = Replay(self._scheme, self._name, self._port, self._guest, cassette, self._cassette, part)
            await replay.run(_PATIENCE)

    def _cassette(self) -> Cassette | None:
        return self._access.cassette

    async def refuse(self, error: AgentVMError) -> None:
        """Tell the program why, unless an answer has been begun."""
        if self._relay is None or not self._relay.answering:
            status = HTTPStatus.FORBIDDEN if isinstance(error, HttpRefusedError) else HTTPStatus.BAD_GATEWAY
            with contextlib.suppress(LinkError):
                await answer(self._guest, status, error)
