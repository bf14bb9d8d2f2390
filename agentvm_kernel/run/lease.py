"""A VM for one program: leased, linked, and given back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from agentvm_kernel.config import Paths
from agentvm_kernel.errors import AgentVMError, LinkError, ProofError, ProtocolError, SupervisorError, VMEndedError
from agentvm_kernel.kernel.endings import ended_error, lease_end, watched
from agentvm_kernel.kernel.execution import LINK_LIMITS
from agentvm_kernel.kernel.network import NotebookNetwork
from agentvm_kernel.kernel.roles import Tenure
from agentvm_kernel.link.connection import Link, connect
from agentvm_kernel.supervisor.client import Lease, SupervisorClient
from agentvm_kernel.supervisor.messages import Blocked, Ended, Granted, LeaseRequest, Progress

OnProgress = Callable[[str, float | None], None]

_BETTER_REASON: Final = 2.0


@dataclass(frozen=True)
class Leased:
    """A VM for one program.

    Attributes:
        link: To its guest.
        granted: What it is.
        network: Tells the supervisor what runs in it.
    """

    link: Link
    granted: Granted
    network: NotebookNetwork


@asynccontextmanager
async def leased(
    paths: Paths,
    request: LeaseRequest,
    on_progress: OnProgress,
    on_blocked: Callable[[Blocked], None] = lambda _: None,
) -> AsyncIterator[Leased]:
    """Lease a VM and dial it; it is given back on leaving the context.

    Args:
        paths: The user's folders.
        request: What to lease.
        on_progress: Called with each stage of the way there and, where it is known, the share of it that is done.
        on_blocked: Called with each connection that was refused.

    Raises:
        AgentVMError: it cannot be had; or it ended within the context, with the best reason there is.
    """
    async with SupervisorClient(paths) as client, client.lease(request) as lease:
        granted = await grant_of(lease, on_progress)
        async with watched(lease_end(lease, on_blocked=on_blocked)) as (lost,):
            try:
                link = await connect(
                    granted.link, key=bytes.fromhex(granted.key), epoch=granted.epoch, limits=LINK_LIMITS
                )
                tenure = Tenure(client, granted.lease, link)
                network = NotebookNetwork(lambda: tenure)
                try:
                    yield Leased(link, granted, network)
                finally:
                    await network.told()
                    await link.close()
            except (ProtocolError, ProofError):
                raise
            except LinkError as error:
                # That it broke is usually the first sign of a VM that ended; the supervisor soon says why.
                await asyncio.wait([lost], timeout=_BETTER_REASON)
                raise _reason(error, lost) from error


async def grant_of(lease: Lease, on_progress: OnProgress) -> Granted:
    """Wait for a lease's VM.

    Args:
        lease: The lease.
        on_progress: Called with each stage of the way there and, where it is known, the share of it that is done.

    Raises:
        AgentVMError: it cannot be had.
    """
    async for event in lease:
        match event:
            case Granted():
                return event
            case Ended():
                raise ended_error(event)
            case Progress():
                on_progress(event.stage[:200], event.done)
    raise SupervisorError("The supervisor went away before there was a VM.")


def _reason(error: LinkError, lost: asyncio.Task[AgentVMError]) -> AgentVMError:
    return (
        lost.result() if lost.done() else VMEndedError(f"The connection to the VM broke: {error.message}", error.hint)
    )
