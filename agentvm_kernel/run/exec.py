"""A process in a VM, over the link's service ``exec``; `agentvm_guest.processes` is the other end and says how.

What the guest sends is checked message by message: what the service does not allow ends the process's stream with a
`ProtocolError`. Memory is bounded by the link's limits: output that nobody takes stays in the guest.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, Protocol, Self, TypeVar

from agentvm_kernel.errors import LinkClosedError, ProtocolError, RunError
from agentvm_kernel.kernel.guest import Stream
from agentvm_kernel.terminal import plain

_T = TypeVar("_T")

SERVICE: Final = "exec"
_STDIN_WINDOW: Final = 256 << 10
_PIECE: Final = 65_000  # with its head it goes into one frame of the link
_MAX_NUMBER: Final = 20
_MAX_TEXT: Final = 1000
_MAX_EXIT: Final = 200
_MAX_CODE: Final = 255
_MAX_SIGNAL: Final = 64
_GRACE: Final = 2.0
"""Seconds for a process that was asked to end to do so, and for what it said then to arrive."""


class Opener(Protocol):
    """Opens streams: a link, or what keeps one."""

    async def open(self, service: str) -> Stream:
        """Open a stream to a service of the guest."""


class Output(NamedTuple):
    """Something that the process has written.

    Attributes:
        name: Where to.
        data: What; may be anything, escape sequences included.
    """

    name: Literal["stdout", "stderr"]
    data: bytes


@dataclass(frozen=True)
class Exit:
    """How a process ended, as the guest claims.

    Attributes:
        code: Its exit code, if it exited.
        signal: The signal that killed it, if one did.
    """

    code: int | None = None
    signal: int | None = None

    @property
    def status(self) -> int:
        """The exit code, or 128 and the signal's number, as shells have it."""
        return self.code if self.code is not None else 128 + (self.signal or 0)


class Execution:
    """A process in the VM. Made by `execute`. Its output has to be taken for it to go on: iterate, or `wait`.

    Attributes:
        pid: Its process id in the VM, as the guest claims.
        exit: How it ended; None before that.
    """

    def __init__(self, stream: Stream, pid: int) -> None:
        self.pid = pid
        self.exit: Exit | None = None
        self._stream = stream
        self._room = _STDIN_WINDOW
        self._roomier = asyncio.Event()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Output:
        """Wait for the next output.

        Raises:
            LinkError: the link ended, or the guest does not keep to the protocol.
        """
        while self.exit is None:
            match await self._stream.receive():
                case [b"stdout", data]:
                    return Output("stdout", data)
                case [b"stderr", data]:
                    return Output("stderr", data)
                case [b"taken", number]:
                    self._take(_number(number))
                case [b"exit", text]:
                    self.exit = _exit(text)
                    self._roomier.set()
                case parts:
                    raise _unexpected(parts)
        raise StopAsyncIteration

    async def wait(self) -> Exit:
        """Wait for the end; output is thrown away.

        Raises:
            LinkError: as iterating.
        """
        async for _ in self:
            pass
        assert self.exit is not None
        return self.exit

    async def write(self, data: bytes | memoryview) -> None:
        """Write to standard input; waits until the process has taken enough of it. What it does not read is lost.

        Somebody has to take the process's output meanwhile.

        Raises:
            LinkError: the link failed.
        """
        view = memoryview(data)
        while view and self.exit is None:
            if not self._room:
                self._roomier.clear()
                await self._roomier.wait()
                continue
            piece = view[: min(self._room, _PIECE)]
            view = view[len(piece) :]
            self._room -= len(piece)
            await self._tell(b"stdin", bytes(piece))

    async def close_stdin(self) -> None:
        """Let the process see the end of its standard input."""
        await self._tell(b"eof")

    async def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process's group; nothing happens if it has ended."""
        await self._tell(b"signal", number.name.removeprefix("SIG").encode())

    async def _tell(self, *parts: bytes) -> None:
        # It may have ended without that being read yet; if the link has, whoever reads hears of it.
        with suppress(LinkClosedError):
            if self.exit is None:
                await self._stream.send(parts)

    def _take(self, count: int) -> None:
        self._room += count
        if not 0 < count <= self._room <= _STDIN_WINDOW:
            raise ProtocolError("The guest claims to have taken more standard input than was sent.")
        self._roomier.set()


async def within(execution: Execution, work: asyncio.Task[Any], seconds: float | None) -> bool:
    """Give a process some time; if it is up, end it, by a signal that it can handle first.

    Args:
        execution: The process.
        work: Takes its output, and ends with it.
        seconds: How long it may take; None for no limit.

    Returns:
        Whether it ended by itself.
    """
    await asyncio.wait([work], timeout=seconds)
    if work.done():
        return True
    for number in (signal.SIGTERM, signal.SIGKILL):
        await execution.signal(number)
        await asyncio.wait([work], timeout=_GRACE)
        if work.done():
            break
    return False


@asynccontextmanager
async def working(work: Coroutine[None, None, _T]) -> AsyncIterator[asyncio.Task[_T]]:
    """Let something go on within the context."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def execute(
    link: Opener, argv: Sequence[str], *, cwd: str = "", env: Mapping[str, str] | None = None
) -> AsyncIterator[Execution]:
    """Start a process as the cells' user; within the context it runs, on leaving it is killed.

    Args:
        link: To the guest.
        argv: The program and its arguments. One that cannot be found exits with 127, one that is no program with 126.
        cwd: Where it runs; a relative path begins at the user's home.
        env: What is added to the environment of a login.

    Raises:
        RunError: the guest could not start it.
        LinkError: the link ended, or the guest does not keep to the protocol.
    """
    stream = await link.open(SERVICE)
    try:
        await stream.send([json.dumps({"argv": list(argv), "cwd": cwd, "env": dict(env or {})}).encode()])
        match await stream.receive():
            case [b"started", number]:
                yield Execution(stream, _number(number))
            case parts:
                raise _unexpected(parts)
    finally:
        stream.close()


def _unexpected(parts: list[bytes]) -> RunError | ProtocolError:
    match parts:
        case [b"error", text]:
            return RunError(f"The VM could not run it: {plain(text[:_MAX_TEXT].decode(errors='replace'))}")
    return ProtocolError(f"The guest sent something that exec does not allow: {parts[0][:40]!a} of {len(parts)} parts.")


def _number(text: bytes) -> int:
    if not (text.isdigit() and len(text) <= _MAX_NUMBER):
        raise ProtocolError(f"The guest sent {text[:40]!a} where exec has a number.")
    return int(text)


def _exit(text: bytes) -> Exit:
    try:
        value = json.loads(text) if len(text) <= _MAX_EXIT else None
    except ValueError:
        value = None
    match value:
        case {"code": int(code)} if 0 <= code <= _MAX_CODE and not isinstance(code, bool):
            return Exit(code=code)
        case {"signal": int(number)} if 0 < number <= _MAX_SIGNAL and not isinstance(number, bool):
            return Exit(signal=number)
    raise ProtocolError(f"The guest sent {text[:40]!a} where exec says how the process ended.")
