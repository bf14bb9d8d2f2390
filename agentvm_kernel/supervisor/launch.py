"""Starts the user's supervisor when nobody answers."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from agentvm_kernel.config import Paths
from agentvm_kernel.errors import ApiError, SupervisorError, host_error
from agentvm_kernel.supervisor.answers import described_error

_MAX_ANSWER: Final = 64 * 1024
_START_TIMEOUT: Final = 60.0
_OF_ONE_SESSION: Final = frozenset({"AGENTVM_IMAGE", "AGENTVM_PROFILE"})
"""What a kernelspec or a script chose for itself must not become the default of all that use the supervisor."""


async def start_supervisor(paths: Paths) -> None:
    """Start a supervisor unless one answers by now, and wait until its socket accepts.

    Two callers at once are harmless: one starts it, the other finds it.

    Raises:
        SupervisorError: it does not start; the message is its own where it gave one.
        HostError: its folders cannot be used.
    """
    try:
        await _start_once(paths)
    except OSError as error:
        raise host_error(error) from error


async def _start_once(paths: Paths) -> None:
    paths.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    paths.runtime.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _start_lock(paths) as lock:
        await _take(lock)
        patience = asyncio.get_running_loop().time() + _START_TIMEOUT
        while not await _answers(paths):
            try:
                await _start(paths)
                break
            except ApiError as error:
                # Another one has the supervisors' lock and does not serve: it is on its way in, or out.
                if error.code != "already_running" or asyncio.get_running_loop().time() > patience:
                    raise


async def _start(paths: Paths) -> None:
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
    patience = asyncio.get_running_loop().time() + _START_TIMEOUT
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if asyncio.get_running_loop().time() > patience:
                raise SupervisorError("Another process has been starting the supervisor for too long.") from error
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
    command = [sys.executable, "-P", "-m", "agentvm_kernel.supervisor", "--ready-fd", str(ready)]
    environment = {name: value for name, value in os.environ.items() if name not in _OF_ONE_SESSION}
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
            env=environment | paths.environment,
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
                if len(answer) > _MAX_ANSWER or b"\n" in answer:
                    break
    except TimeoutError as error:
        raise SupervisorError(
            f"The supervisor was not ready after {_START_TIMEOUT:.0f} s.", f"Its log is {paths.log}."
        ) from error
    if described := described_error(answer):
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
