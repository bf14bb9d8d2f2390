"""What the supervisor's client gets back: whole answers, refusals, and answers that stay open and tell events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Final, Generic, Self, TypeVar

import aiohttp
from pydantic import BaseModel, TypeAdapter

from agentvm_kernel.egress.record import Connection
from agentvm_kernel.errors import ApiError, SupervisorError
from agentvm_kernel.observe.chain import MAX_LINE
from agentvm_kernel.supervisor.audit_messages import AuditNews, news_adapter
from agentvm_kernel.supervisor.fork_messages import ForkEnded, ForkGranted, fork_event_adapter
from agentvm_kernel.supervisor.messages import LeaseEvent, Progress, lease_event_adapter
from agentvm_kernel.supervisor.network_messages import connection_adapter
from agentvm_kernel.supervisor.stats_messages import VMStats, stats_adapter

_MAX_LINE: Final = 64 * 1024
_MAX_BODY: Final = 16 * 1024 * 1024
_BODY_TIMEOUT: Final = 30.0

_Event = TypeVar("_Event", bound=BaseModel)


class _Events(Generic[_Event]):
    """An answer that stays open: iterate over its events.

    Args:
        response: The open response.
        adapter: Reads one event.
        longest: Bytes that one may have.
    """

    def __init__(
        self, response: aiohttp.ClientResponse, adapter: TypeAdapter[_Event], longest: int = _MAX_LINE
    ) -> None:
        self._lines = _lines(response, longest)
        self._adapter = adapter

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> _Event:
        """Wait for the next event.

        Raises:
            SupervisorError: the supervisor went away, or sent what is no event.
        """
        try:
            return self._adapter.validate_json(await anext(self._lines))
        except ValueError as error:
            raise SupervisorError(f"The supervisor sent something that is no event: {error}") from error
        except (aiohttp.ClientError, OSError) as error:  # their texts tell of protocols
            raise SupervisorError(
                "The supervisor, which kept the VM, is gone, and so is the VM.",
                "The next start brings a new supervisor; snapshots that were finished are kept.",
            ) from error


class Lease(_Events[LeaseEvent]):
    """A VM while it is leased: progress, the grant, what it was refused and, at last, the end of its current VM.

    Args:
        response: The open response; the connection is the lease.
    """

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        super().__init__(response, lease_event_adapter)


class Connections(_Events[Connection]):
    """Connections, oldest first.

    Args:
        response: The open response.
    """

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        super().__init__(response, connection_adapter)


class Stats(_Events[VMStats]):
    """What VMs use, the oldest first.

    Args:
        response: The open response.
    """

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        super().__init__(response, stats_adapter)


class AuditEvents(_Events[AuditNews]):
    """What goes into the audit log, as it happens.

    Args:
        response: The open response.
    """

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        super().__init__(response, news_adapter, MAX_LINE)


class Forks(_Events[Progress | ForkGranted | ForkEnded]):
    """Forks while they run: progress, each fork as it becomes ready, and the end of one whose VM is gone.

    Args:
        response: The open response; when it is closed, the forks that do not rest end.
    """

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        super().__init__(response, fork_event_adapter)


async def _lines(response: aiohttp.ClientResponse, longest: int) -> AsyncIterator[bytes]:
    """Yield the lines of a response that are not blank (blank ones are keep-alives)."""
    pending = b""
    async for chunk in response.content.iter_any():
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            if line.strip():
                yield line
        if len(pending) > longest:
            raise ValueError("a line of the answer is too long")


async def read_body(response: aiohttp.ClientResponse) -> bytes:
    """Return all of a response, and give its connection back.

    Raises:
        SupervisorError: it breaks off, stalls or is too long.
    """
    parts: list[bytes] = []
    size = 0
    try:
        async with response, asyncio.timeout(_BODY_TIMEOUT):
            async for chunk in response.content.iter_any():
                size += len(chunk)
                if size > _MAX_BODY:
                    raise SupervisorError("The supervisor's answer is too long.")
                parts.append(chunk)
    except (aiohttp.ClientError, OSError) as error:
        reason = str(error) or type(error).__name__
        raise SupervisorError(f"The supervisor's answer broke off: {reason}.") from error
    return b"".join(parts)


async def read_refusal(response: aiohttp.ClientResponse) -> SupervisorError:
    """Return the error that a failed response describes."""
    body = await read_body(response)
    return described_error(body) or SupervisorError(f"The supervisor answered with status {response.status}.")


def described_error(body: bytes) -> ApiError | None:
    """Return the error that the supervisor wrote as JSON; None if it is no such description."""
    try:
        value = json.loads(body)
        return ApiError(str(value["code"]), str(value["message"]), str(value.get("hint", "")))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
