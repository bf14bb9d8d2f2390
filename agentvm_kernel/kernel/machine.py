"""The VM under a notebook: leased, linked, watched, restarted."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

from agentvm_kernel.errors import (
    AgentVMError,
    LinkError,
    ProofError,
    ProtocolError,
    SupervisorError,
    VMEndedError,
)
from agentvm_kernel.kernel.jsoncheck import parse_object
from agentvm_kernel.link.endpoint import Endpoint
from agentvm_kernel.supervisor.client import Lease
from agentvm_kernel.supervisor.messages import Ended, Granted, LeaseRequest

log = logging.getLogger("agentvm.machine")

CHANNELS: Final = ("shell", "control", "stdin", "iopub")
_BETTER_REASON: Final = 2.0
"""Seconds to wait, after the link broke, for the supervisor to say why."""

_AGENT_ANSWER: Final = 5.0
_MAX_AGENT_MESSAGE: Final = 64 * 1024


class State(Enum):
    """How the notebook's VM is."""

    STARTING = "starting"
    READY = "ready"
    ENDED = "ended"


class Stream(Protocol):
    """One stream of a link; `agentvm_kernel.link.connection.Stream` is the real one."""

    async def send(self, parts: Sequence[bytes]) -> None:
        """Send a message; waits for credit."""

    async def receive(self) -> list[bytes]:
        """Wait for the next message."""


class Link(Protocol):
    """What a machine needs of a link; `agentvm_kernel.link.connection.Link` is the real one."""

    async def open(self, service: str) -> Stream:
        """Open a stream to a service of the guest."""

    async def close(self) -> None:
        """End the link."""

    async def wait_closed(self) -> LinkError:
        """Wait until the link ended, and say why."""


class Connect(Protocol):
    """Dials a guest."""

    async def __call__(self, endpoint: Endpoint, *, key: bytes, epoch: int) -> Link:
        """Return the established link."""


class Supervisor(Protocol):
    """What a machine needs of the supervisor; `SupervisorClient` is the real one."""

    def lease(self, request: LeaseRequest) -> AbstractAsyncContextManager[Lease]:
        """Ask for a VM and hold it within the context."""


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

    async def _request(self, op: str) -> dict[str, object]:
        self._next += 1
        number = self._next
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(_AGENT_ANSWER):
                await self._stream.send([json.dumps({"id": number, "op": op}).encode()])
                answer: dict[str, object] = await future
        except TimeoutError as error:
            raise LinkError(f"The guest agent did not answer {op!r} within {_AGENT_ANSWER:.0f} s.") from error
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


class Watcher(Protocol):
    """Hears of a machine's ups and downs; the router is the real one."""

    async def guest_ready(self, guest: Guest) -> Awaitable[AgentVMError]:
        """A new guest is up: its streams may be read. What is returned ends it."""

    async def guest_quiet(self) -> None:
        """Its kernel died but the link stands: return when what it had said has arrived."""

    async def guest_ended(self, error: AgentVMError) -> None:
        """The guest is gone, or could not be had; `error` says why."""


class Machine:
    """Keeps one VM leased and linked.

    Args:
        request: What to lease.
        supervisor: Opens a client of the supervisor.
        connect: Dials a guest.
    """

    def __init__(
        self,
        request: LeaseRequest,
        supervisor: Callable[[], AbstractAsyncContextManager[Supervisor]],
        connect: Connect,
    ) -> None:
        self.state = State.STARTING
        self.stage = "asking for a virtual machine"
        self.done: float | None = None
        self.error: AgentVMError | None = None
        self.guest: Guest | None = None
        self.watcher: Watcher | None = None
        self._request = request
        self._supervisor = supervisor
        self._connect = connect
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    def start(self) -> None:
        """Begin to acquire a VM; `settled` tells when that is over."""
        self.state, self.error, self.stage, self.done = State.STARTING, None, "asking for a virtual machine", None
        self._changed = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name="machine")
        self._task.add_done_callback(self._crashed)

    async def settled(self) -> None:
        """Wait until the machine is not starting any more."""
        while self.state is State.STARTING:
            await self._changed.wait()

    async def restart(self) -> None:
        """Give the VM back and begin to acquire another."""
        await self.close(VMEndedError("The VM was restarted.", "What it had in memory and on disk is gone."))
        self.start()

    async def close(self, reason: AgentVMError) -> None:
        """Give the VM back; what waits for it is told the reason."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.wait([task])
        if self.state is not State.ENDED:
            await self._end(reason)

    async def _run(self) -> None:
        try:
            await self._live()
        except AgentVMError as error:
            await self._end(error)
        except OSError as error:
            await self._end(SupervisorError(f"The VM could not be had: {error}"))

    def _crashed(self, task: asyncio.Task[None]) -> None:
        """Let nobody wait for a machine whose task failed on something that was not foreseen."""
        failure = None if task.cancelled() else task.exception()
        if failure is not None:
            log.error("the VM's keeper failed", exc_info=failure)
            error = VMEndedError(f"The kernel process could not keep its VM ({type(failure).__name__}: {failure}).")
            self._task = asyncio.create_task(self._end(error), name="machine")

    async def _live(self) -> None:
        async with self._supervisor() as supervisor, supervisor.lease(self._request) as lease:
            granted = await self._acquire(lease)
            self.stage, self.done = "connecting to the virtual machine", None
            link = await self._connect(granted.link, key=bytes.fromhex(granted.key), epoch=granted.epoch)
            try:
                await self._serve(lease, link, granted)
            finally:
                await link.close()

    async def _acquire(self, lease: Lease) -> Granted:
        async for event in lease:
            if isinstance(event, Granted):
                return event
            if isinstance(event, Ended):
                raise _ended(event)
            self.stage, self.done = event.stage[:200], event.done
        raise SupervisorError("The supervisor went away before there was a VM.")

    async def _serve(self, lease: Lease, link: Link, granted: Granted) -> None:
        streams = {name: await link.open(name) for name in CHANNELS}
        agent = Agent(await link.open("agent"))
        guest = Guest(granted, streams, agent, asyncio.get_running_loop().time())
        self.guest, self.state = guest, State.READY
        broken = await self.watcher.guest_ready(guest) if self.watcher else _never()
        watched = (_lease_end(lease), agent.watch(), link.wait_closed(), broken)
        async with _tasks(*watched) as (lost, died, closed, failed):
            self._changed.set()
            await asyncio.wait((lost, died, closed, failed), return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                raise failed.result()
            if self.watcher and not closed.done():
                await self.watcher.guest_quiet()
            raise await _reason(lost, died, closed)

    async def _end(self, error: AgentVMError) -> None:
        """Note the end and tell the watcher."""
        self.state, self.error, self.guest = State.ENDED, error, None
        log.info("the VM is gone: %s", error.message)
        if self.watcher:
            await self.watcher.guest_ended(error)
        self._changed.set()


@asynccontextmanager
async def _tasks(*awaitables: Awaitable[AgentVMError]) -> AsyncIterator[list[asyncio.Task[AgentVMError]]]:
    """Run what watches for the end; whatever they say counts as a result, not as a failure."""
    tasks = [asyncio.create_task(_reported(awaitable)) for awaitable in awaitables]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _never() -> AgentVMError:
    never: asyncio.Future[AgentVMError] = asyncio.get_running_loop().create_future()
    return await never


async def _reported(awaitable: Awaitable[AgentVMError]) -> AgentVMError:
    try:
        return await awaitable
    except AgentVMError as error:
        return error


async def _lease_end(lease: Lease) -> AgentVMError:
    async for event in lease:
        if isinstance(event, Ended):
            return _ended(event)
    return SupervisorError(
        "The supervisor, which kept the VM, is gone, and so the VM is.", "The next start brings a new supervisor."
    )


def _ended(event: Ended) -> AgentVMError:
    """Make the error that a lease ended with."""
    error = VMEndedError(event.reason[:2000], event.hint[:2000])
    error.code = event.code[:64]  # type: ignore[misc]
    return error


async def _reason(
    lost: asyncio.Task[AgentVMError], died: asyncio.Task[AgentVMError], closed: asyncio.Task[AgentVMError]
) -> AgentVMError:
    """Choose the best of up to three reasons.

    That the kernel died, or the protocol was violated, says more than anything else. A link that merely broke is
    usually the first sign of a VM that ended: then the supervisor knows why, a moment later.
    """
    for task in (died, closed):
        if task.done() and isinstance(task.result(), (VMEndedError, ProtocolError, ProofError)):
            return task.result()
    if not lost.done():
        await asyncio.wait([lost], timeout=_BETTER_REASON)
    if lost.done():
        return lost.result()
    return _broken(closed.result() if closed.done() else died.result())


def _broken(error: AgentVMError) -> AgentVMError:
    return VMEndedError(f"The connection to the VM broke: {error.message}", error.hint)
