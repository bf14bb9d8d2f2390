"""What the gateway asks of whoever looks into the TLS of some hosts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from agentvm_kernel.egress.access import Access
from agentvm_kernel.egress.channel import Channel
from agentvm_kernel.egress.meter import Meter
from agentvm_kernel.egress.policy import Decision
from agentvm_kernel.errors import AgentVMError

Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]
"""Resolves the decided name, checks its addresses and connects by TCP; at most once for a connection.

Raises `AgentVMError` if the name's addresses are forbidden or none of them answers.
"""


class HostTlsError(AgentVMError):
    """A host cannot prove who it is, or does not speak TLS as it should."""

    code = "host_tls"


class Inspector(Protocol):
    """Ends a guest's TLS itself. One for all VMs."""

    def wants(self, access: Access, decision: Decision) -> bool:
        """Return whether the gateway hands such connections over. Asked once the ClientHello has named the host.

        Args:
            access: The lease.
            decision: What was decided, with name and port.
        """

    async def serve_plain(self, access: Access, decision: Decision, channel: Meter, connect: Connect) -> None:
        """Serve one connection of HTTP without TLS to its end, of a lease that has a cassette; else as ``serve``.

        Args:
            access: The lease.
            decision: What was decided.
            channel: The guest's connection from its first byte on.
            connect: Reaches the host.

        Raises:
            LinkError: the guest has gone.
            OSError: the connection to the host broke.
            AgentVMError: what was asked for is refused; the message is written down.
        """

    async def serve(self, access: Access, decision: Decision, channel: Channel, connect: Connect) -> None:
        """Serve one TLS connection to its end; the gateway closes the channel and the connection afterwards.

        Args:
            access: The lease.
            decision: What was decided.
            channel: The guest's connection from its ClientHello on; it counts bytes and keeps budgets.
            connect: Reaches the host.

        Raises:
            LinkError: the guest has gone.
            OSError: the connection to the host broke.
            AgentVMError: what was asked for is refused; the message is written down.
        """
