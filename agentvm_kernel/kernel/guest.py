"""The guest as the kernel process reaches it: its streams and its agent."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final, Protocol

from agentvm_kernel.errors import LinkError, ProtocolError, VMEndedError
from agentvm_kernel.kernel.jsoncheck import parse_object
from agentvm_kernel.link.endpoint import Endpoint
from agentvm_kernel.link.limits import Limits
from agentvm_kernel.observe.claims import Claims
from agentvm_kernel.observe.description import Description
from agentvm_kernel.supervisor.messages import Granted

CHANNELS: Final = ("shell", "control", "stdin", "iopub")
_AGENT_ANSWER: Final = 5.0
_DESCRIPTION_SECONDS: Final = 20.0
_MAX_AGENT_MESSAGE: Final = 64 * 1024


class Stream(Protocol):
    """One stream of a link; `agentvm_kernel.link.connection.Stream` is the real one."""

    async def send(self, parts: Sequence[bytes]) -> None:
        """Send a message; waits for credit."""

    async def receive(self) -> list[bytes]:
        """Wait for the next message."""

    def close(self) -> None:
        """Close the stream."""


class Link(Protocol):
    """What a machine needs of a link; `agentvm_kernel.link.connection.Link` is the real one."""

    async def open(self, service: str) -> Stream:
        """Open a stream to a service of the guest."""

    def hold(self, *, drain: bool = True) -> AbstractAsyncContextManager[None]:
        """Write nothing within the context; with `drain`, enter it once the guest has all that was written."""

    async def close(self) -> None:
        """End the link."""

    async def wait_closed(self) -> LinkError:
        """Wait until the link ended, and say why."""


class Connect(Protocol):
    """Dials a guest."""

    async def __call__(self, endpoint: Endpoint, *, key: bytes, epoch: int, limits: Limits | None = None) -> Link:
        """Return the established link."""


@dataclass(frozen=True)
class Guest:
    """The running guest: where to send.

    Attributes:
        granted: What was leased.
        streams: Streams by Jupyter channel.
        agent: Requests to the guest agent.
        since: The event loop's time of the moment the VM became ready.
    """

    granted: Granted
    streams: dict[str, Stream]
    agent: Agent
    since: float

    async def send(self, channel: str, parts: Sequence[bytes]) -> None:
        """Send a Jupyter message to the guest's ipykernel; waits for credit."""
        await self.streams[channel].send(parts)


class Agent:
    """Asks the guest agent over its stream, and hears of the kernel's death.

    Args:
        stream: The ``agent`` stream.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._next = 0
        self._waiting: dict[int, asyncio.Future[dict[str, object]]] = {}

    async def interrupt(self) -> None:
        """Interrupt what the guest's ipykernel runs.

        Raises:
            LinkError: the link is gone, or the agent does not answer or refuses.
        """
        await self._request("interrupt")

    async def claims(self) -> Claims:
        """Return what the guest says of itself, for which nobody vouches.

        Raises:
            LinkError: the link is gone, or the agent does not answer or refuses.
        """
        return Claims.of(await self._request("facts"))

    async def description(self) -> Description:
        """Return what QEMU's agent in the guest says of it, for which nobody vouches either.

        Raises:
            LinkError: the link is gone, the agent does not answer, or there is no agent of QEMU's in the guest.
        """
        return Description.of(await self._request("describe", _DESCRIPTION_SECONDS))

    async def _request(self, op: str, seconds: float = _AGENT_ANSWER) -> dict[str, object]:
        self._next += 1
        number = self._next
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(seconds):
                await self._stream.send([json.dumps({"id": number, "op": op}).encode()])
                answer: dict[str, object] = await future
        except TimeoutError as error:
            raise LinkError(f"The guest agent did not answer {op!r} within {seconds:.0f} s.") from error
        finally:
            del self._waiting[number]
        if answer.get("ok") is not True:
            raise LinkError(f"The guest agent refused {op!r}: {str(answer.get('error'))[:200]}")
        return answer

    async def watch(self) -> VMEndedError:
        """Take the agent's messages until it reports the death of the guest's kernel.

        Raises:
            LinkError: the link ended.
        """
        while True:
            parts = await self._stream.receive()
            if len(parts) != 1 or len(parts[0]) > _MAX_AGENT_MESSAGE:
                raise ProtocolError("The guest agent sent a message that is too long or has several parts.")
            try:
                message = parse_object(parts[0])
            except ValueError as error:
                raise ProtocolError(f"The guest agent sent what is no JSON object: {error}") from error
            if message.get("event") == "kernel_died":
                return _death(message)
            number = message.get("id")
            future = self._waiting.get(number) if isinstance(number, int) else None
            if future is not None and not future.done():
                future.set_result(message)


def _death(event: dict[str, object]) -> VMEndedError:
    """Say how the guest's Python process died."""
    code, number = event.get("exit_code"), event.get("signal")
    if event.get("oom") is True:
        return VMEndedError(
            "The Python process in the VM was killed because the VM's memory was used up.",
            "Use less memory, or a profile with more.",
        )
    if isinstance(number, int) and not isinstance(number, bool):
        try:
            name = f" ({signal.Signals(number).name})"
        except ValueError:
            name = ""
        return VMEndedError(f"The Python process in the VM was killed by signal {number}{name}.")
    if isinstance(code, int) and not isinstance(code, bool):
        return VMEndedError(f"The Python process in the VM ended with exit code {code}.")
    return VMEndedError("The Python process in the VM ended.")
