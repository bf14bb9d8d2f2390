"""Runs a program in a fresh VM: copies it in, passes its streams and signals on, copies its results out."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from agentvm_kernel.config import Paths
from agentvm_kernel.kernel.executions import copied
from agentvm_kernel.link.connection import Link
from agentvm_kernel.run.exec import Execution, execute, within, working
from agentvm_kernel.run.files import Bounds, Received, get_changed, get_named, mark, put
from agentvm_kernel.run.lease import Leased, OnProgress, leased
from agentvm_kernel.run.outlet import Outlet
from agentvm_kernel.run.plan import Plan
from agentvm_kernel.run.reported import program_reported
from agentvm_kernel.run.unpack import USUAL
from agentvm_kernel.supervisor.messages import Blocked, LeaseRequest
from agentvm_kernel.validation import checked

TIMED_OUT: Final = 124
WORK: Final = "work"
BROKEN_PIPE: Final = 128 + signal.SIGPIPE
_READ: Final = 64 << 10
# Output is to be seen as it comes, and no byte code is to be found among the results.
_ENVIRONMENT: Final = {"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}


@dataclass(frozen=True)
class Order:
    """What is to be run, and what with.

    Attributes:
        plan: The program.
        inputs: Files and folders that are copied into the working folder besides.
        image: Flavour of the image; empty for the configured default.
        profile: Name of the profile; empty for the configured default.
        timeout: Seconds that it may run; None for no limit.
        out: The folder that the results become; None for no results.
        results: What the results are, as paths in the working folder; all that is new or changed if there are none.
        bounds: How much may come out.
        allow: Hosts that may be reached besides those that are configured.
    """

    plan: Plan
    inputs: tuple[Path, ...] = ()
    image: str = ""
    profile: str = ""
    timeout: float | None = None
    out: Path | None = None
    results: tuple[str, ...] = ()
    bounds: Bounds = USUAL
    allow: tuple[str, ...] = ()


@dataclass
class Report:
    """What became of a program.

    Attributes:
        status: The exit code to end with.
        timed_out: It was ended because its time was up.
        received: What was copied out.
        blocked: Connections that were refused.
    """

    status: int = 0
    timed_out: bool = False
    received: Received | None = None
    blocked: list[Blocked] = field(default_factory=list)


@dataclass(frozen=True)
class Streams:
    """Where a program's streams lead to: descriptors of this process.

    Attributes:
        stdin: None for one that is at its end from the start.
        stdout: Where its output goes.
        stderr: Where its errors go.
    """

    stdin: int | None = 0
    stdout: int = 1
    stderr: int = 2


async def run_program(order: Order, paths: Paths, streams: Streams, on_progress: OnProgress) -> Report:
    """Run a program in a fresh VM to its end.

    Args:
        order: What is to be run.
        paths: The user's folders.
        streams: Where its streams lead to.
        on_progress: Called with what is going on before it begins; with an empty text when it does.

    Raises:
        AgentVMError: it could not be run, or its results could not be copied out.
    """
    owner = f"run {order.plan.source.name}"[:200]
    request = checked(LeaseRequest, image=order.image, profile=order.profile, owner=owner, allow=order.allow)
    blocked: list[Blocked] = []
    async with leased(paths, request, on_progress, blocked.append) as vm:
        link = vm.link
        on_progress("copying files into the virtual machine", None)
        await _copy_in(vm, order, on_progress)
        since = await mark(link) if order.out and not order.results else ""
        on_progress("", None)
        with program_reported(vm.network.report, vm.granted, order.plan.argv, order.plan.source) as done:
            report = await _run(link, order, streams)
            done(report.status, report.timed_out)
        report.blocked = blocked
        if order.out:
            report.received = received = await _copy_out(link, order, since, on_progress)
            vm.network.report(copied("pull", WORK, received.digest, received.size))
            on_progress("", None)
    return report


async def _copy_in(vm: Leased, order: Order, on_progress: OnProgress) -> None:
    source = order.plan.source
    tell = _shares("copying files into the virtual machine", on_progress)
    remote = WORK if order.plan.is_folder else f"{WORK}/{source.name}"
    for path, place in ((source, remote), *((path, f"{WORK}/") for path in order.inputs)):
        sent = await put(vm.link, path, place, on_progress=tell)
        vm.network.report(copied("push", str(path), sent.digest, sent.size))


async def _copy_out(link: Link, order: Order, since: str, on_progress: OnProgress) -> Received:
    assert order.out is not None
    tell = _shares("copying results out of the virtual machine", on_progress)
    if order.results:
        return await get_named(link, WORK, order.results, order.out, order.bounds, tell)
    return await get_changed(link, WORK, since, order.out, order.bounds, tell)


def _shares(stage: str, on_progress: OnProgress) -> Callable[[int, int], None]:
    return lambda done, total: on_progress(stage, done / total if total else None)


async def _run(link: Link, order: Order, streams: Streams) -> Report:
    report = Report()
    async with execute(link, order.plan.argv, cwd=WORK, env=_ENVIRONMENT) as execution:
        with _signals_passed_on(execution):
            async with working(_feed(execution, streams.stdin)), working(_show(execution, streams)) as showing:
                report.timed_out = not await within(execution, showing, order.timeout)
                report.status = TIMED_OUT if report.timed_out else showing.result()
    return report


async def _show(execution: Execution, streams: Streams) -> int:
    """Write what the program writes; returns its exit code."""
    outlets = {"stdout": Outlet(streams.stdout), "stderr": Outlet(streams.stderr)}
    try:
        async for name, data in execution:
            # Whoever reads may take their time; the link must be kept alive meanwhile.
            await asyncio.to_thread(outlets[name].write, data)
        for outlet in outlets.values():
            await asyncio.to_thread(outlet.end)
    except BrokenPipeError:
        return BROKEN_PIPE
    assert execution.exit is not None
    return execution.exit.status


async def _feed(execution: Execution, fd: int | None) -> None:
    """Pass our standard input on."""
    # One that is closed, or that a process in the background may not read, is at its end.
    with suppress(OSError):
        while fd is not None:
            await _readable(fd)
            data = os.read(fd, _READ)
            if not data:
                break
            await execution.write(data)
    await execution.close_stdin()


async def _readable(fd: int) -> None:
    """Wait until a descriptor can be read; files and the null device always can."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    try:
        loop.add_reader(fd, ready.set)
    except PermissionError:
        return
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)


@contextmanager
def _signals_passed_on(execution: Execution) -> Iterator[None]:
    """Within the context, send the first Ctrl-C or SIGTERM on to the program; any other kills it."""
    loop = asyncio.get_running_loop()
    sending: list[asyncio.Task[None]] = []

    def pass_on(number: signal.Signals) -> None:
        sending.append(asyncio.create_task(execution.signal(signal.SIGKILL if sending else number)))

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        loop.add_signal_handler(number, pass_on, number)
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
