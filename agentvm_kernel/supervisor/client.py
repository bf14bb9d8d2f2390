"""The typed client of the supervisor's API; starts the supervisor when nobody answers."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType
from typing import Final, Self

import aiohttp
from pydantic import ValidationError

from agentvm_kernel.config import Paths
from agentvm_kernel.errors import ApiError, SupervisorError
from agentvm_kernel.supervisor.messages import (
    Ended,
    Granted,
    LeaseRequest,
    Progress,
    lease_event_adapter,
)

_MAX_LINE: Final = 64 * 1024
_MAX_STATUS: Final = 16 * 1024 * 1024
_ANSWER_TIMEOUT: Final = 30.0
_START_TIMEOUT: Final = 60.0
_BASE: Final = "http://supervisor"


class Lease:
    """A VM while it is leased: iterate over its events; leaving the iteration's context gives the VM back.

    Args:
        response: The open response; the connection is the lease.
    """

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self._lines = _lines(response)

    def __aiter__(self) -> AsyncIterator[Progress | Granted | Ended]:
        """Return the iterator over progress, the grant and, at last, the end."""
        return self

    async def __anext__(self) -> Progress | Granted | Ended:
        """Wait for the next event.

        Raises:
            SupervisorError: the supervisor went away, or sent what is no event.
        """
        try:
            line = await anext(self._lines)
            return lease_event_adapter.validate_json(line)
        except ValidationError as error:
            raise SupervisorError(f"The supervisor sent something that is no lease event: {error}") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise SupervisorError(f"The connection to the supervisor broke: {error}") from error


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Yield the lines of a response that are not blank (blank ones are keep-alives)."""
    pending = b""
    async for chunk in response.content.iter_any():
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            if line.strip():
                yield line
        if len(pending) > _MAX_LINE:
            raise ValueError("a line of the lease is too long")


class SupervisorClient:
    """Speaks to the user's supervisor over its Unix socket.

    Args:
        paths: Where the socket is.
        start: Whether to start a supervisor when none answers.
    """

    def __init__(self, paths: Paths, *, start: bool = True) -> None:
        self._paths = paths
        self._start = start
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Open the client; connects nowhere yet."""
        connector = aiohttp.UnixConnector(path=str(self._paths.socket))
        self._http = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close every connection; leases end with theirs."""
        if self._http is not None:
            await self._http.close()

    async def status(self) -> dict[str, object]:
        """Return what the supervisor tells about itself and its VMs.

        Raises:
            SupervisorError: it could not be reached, started or understood.
        """
        response = await self._request("GET", "/v1/status")
        async with response:
            body = await _read_bounded(response)
        try:
            value = json.loads(body)
        except ValueError as error:
            raise SupervisorError(f"The supervisor's answer is no JSON: {error}") from error
        if not isinstance(value, dict):
            raise SupervisorError("The supervisor's answer is no object.")
        return value

    async def shutdown(self) -> None:
        """Ask the supervisor to end its VMs and leave.

        Raises:
            SupervisorError: it could not be reached.
        """
        (await self._request("POST", "/v1/shutdown")).release()

    @asynccontextmanager
    async def lease(self, request: LeaseRequest) -> AsyncIterator[Lease]:
        """Ask for a VM and hold it within the context.

        Raises:
            SupervisorError: the supervisor could not be reached or started, or refused.
        """
        response = await self._request("POST", "/v1/leases", body=request.model_dump_json())
        try:
            yield Lease(response)
        finally:
            response.close()

    async def _request(self, method: str, path: str, body: str | None = None) -> aiohttp.ClientResponse:
        """Send a request, starting the supervisor once if nobody listens."""
        try:
            response = await self._send(method, path, body)
        except aiohttp.ClientConnectorError as error:
            if not self._start:
                raise SupervisorError(
                    "The supervisor is not running.", f"Nobody answers on {self._paths.socket}."
                ) from error
            await start_supervisor(self._paths)
            response = await self._send_again(method, path, body)
        if response.status >= 400:
            raise await _api_error(response)
        return response

    async def _send_again(self, method: str, path: str, body: str | None) -> aiohttp.ClientResponse:
        try:
            return await self._send(method, path, body)
        except aiohttp.ClientConnectorError as error:
            raise SupervisorError(
                "The supervisor was started but does not answer.", f"Its log is {self._paths.log}."
            ) from error

    async def _send(self, method: str, path: str, body: str | None) -> aiohttp.ClientResponse:
        if self._http is None:
            raise SupervisorError("The supervisor's client is not open.")
        headers = {"Content-Type": "application/json"}
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT):
                return await self._http.request(method, _BASE + path, data=body, headers=headers)
        except aiohttp.ClientConnectorError:
            raise
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise SupervisorError(
                f"The supervisor does not answer: {error or type(error).__name__}.", f"Its log is {self._paths.log}."
            ) from error


async def _read_bounded(response: aiohttp.ClientResponse) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for chunk in response.content.iter_any():
        size += len(chunk)
        if size > _MAX_STATUS:
            raise SupervisorError("The supervisor's answer is too long.")
        parts.append(chunk)
    return b"".join(parts)


async def _api_error(response: aiohttp.ClientResponse) -> SupervisorError:
    """Make the error that a failed answer describes."""
    async with response:
        body = await _read_bounded(response)
    return _described_error(body) or SupervisorError(f"The supervisor answered with status {response.status}.")


def _described_error(body: bytes) -> ApiError | None:
    try:
        value = json.loads(body)
        return ApiError(str(value["code"]), str(value["message"]), str(value.get("hint", "")))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


async def start_supervisor(paths: Paths) -> None:
    """Start a supervisor unless one answers by now, and wait until its socket accepts.

    Two callers at once are harmless: one starts it, the other finds it.

    Raises:
        SupervisorError: it does not start; the message is its own where it gave one.
    """
    paths.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    paths.runtime.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _start_lock(paths) as lock:
        await _take(lock)
        if await _answers(paths):
            return
        receiver, sender = os.pipe()
        try:
            try:
                await _spawn(paths, sender)
            finally:
                os.close(sender)
            await _wait_ready(receiver, paths)
        finally:
            os.close(receiver)


@contextmanager
def _start_lock(paths: Paths) -> Iterator[int]:
    descriptor = os.open(paths.runtime / "start.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


async def _take(lock: int) -> None:
    """Take a file lock; by asking again and again, since a thread that waits in flock cannot be cancelled."""
    async with asyncio.timeout(_START_TIMEOUT):
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                await asyncio.sleep(0.05)
            else:
                return


async def _answers(paths: Paths) -> bool:
    try:
        _, writer = await asyncio.open_unix_connection(str(paths.socket))
    except OSError:
        return False
    writer.close()
    return True


async def _spawn(paths: Paths, ready: int) -> None:
    """Run the supervisor in a session of its own; `setsid --fork` leaves no child of this process behind."""
    command = [sys.executable, "-m", "agentvm_kernel.supervisor", "--ready-fd", str(ready)]
    log = os.open(paths.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        process = await asyncio.create_subprocess_exec(
            "setsid",
            "--fork",
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            pass_fds=(ready,),
        )
    finally:
        os.close(log)
    await process.wait()


async def _wait_ready(ready: int, paths: Paths) -> None:
    """Wait for the byte that means "accepting", or the line that says why not."""
    loop = asyncio.get_running_loop()
    answer = b""
    try:
        async with asyncio.timeout(_START_TIMEOUT):
            while chunk := await _read(loop, ready):
                answer += chunk
                if answer[:1] == b"1":
                    return
                if len(answer) > _MAX_LINE or b"\n" in answer:
                    break
    except TimeoutError as error:
        raise SupervisorError(
            f"The supervisor was not ready after {_START_TIMEOUT:.0f} s.", f"Its log is {paths.log}."
        ) from error
    if described := _described_error(answer):
        raise described
    raise SupervisorError("The supervisor ended while it started.", f"Its log is {paths.log}.")


async def _read(loop: asyncio.AbstractEventLoop, descriptor: int) -> bytes:
    readable = asyncio.Event()
    loop.add_reader(descriptor, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(descriptor)
    return os.read(descriptor, 4096)
