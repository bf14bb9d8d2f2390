"""Runs a process in a VM and collects what it writes, for those who want it whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from agentvm_kernel.run.exec import Execution, Exit, Opener, Output, execute, within, working

OnOutput = Callable[[Output], None]

KEPT: Final = 16 << 20


@dataclass(frozen=True)
class ExecResult:
    """What came of a process; all of it is the guest's claim, and may hold escape sequences.

    Attributes:
        code: Its exit code; 128 and the signal's number if one killed it.
        stdout: What it wrote, up to a limit.
        stderr: The same for its errors.
        dropped: Bytes beyond the limit.
        timed_out: It was ended because its time was up.
    """

    code: int
    stdout: bytes = b""
    stderr: bytes = b""
    dropped: int = 0
    timed_out: bool = False


async def collect(
    link: Opener,
    argv: Sequence[str],
    *,
    cwd: str = "",
    env: Mapping[str, str] | None = None,
    stdin: bytes = b"",
    timeout: float | None = None,
    kept: int = KEPT,
    on_output: OnOutput = lambda _: None,
) -> ExecResult:
    """Run a process to its end.

    Args:
        link: To the guest.
        argv: The program and its arguments.
        cwd: Where it runs; a relative path begins at the user's home.
        env: What is added to the environment of a login.
        stdin: Its standard input.
        timeout: Seconds until it is ended; None for no limit.
        kept: Bytes that are kept of stdout and of stderr, each.
        on_output: Called with output as it comes, kept or not.

    Raises:
        RunError: it could not be started.
        LinkError: the link ended, or the guest does not keep to the protocol.
    """
    said = {"stdout": bytearray(), "stderr": bytearray()}
    sizes = {"stdout": 0, "stderr": 0}

    async def take(execution: Execution) -> None:
        async for output in execution:
            on_output(output)
            sizes[output.name] += len(output.data)
            said[output.name] += output.data[: kept - len(said[output.name])]

    async with (
        execute(link, argv, cwd=cwd, env=env) as execution,
        working(_feed(execution, stdin)),
        working(take(execution)) as taking,
    ):
        in_time = await within(execution, taking, timeout)
        if taking.done():
            taking.result()
    ended = execution.exit or Exit(signal=9)
    return ExecResult(
        ended.status, bytes(said["stdout"]), bytes(said["stderr"]),
        sum(sizes.values()) - sum(map(len, said.values())), timed_out=not in_time,
    )  # fmt: skip


async def _feed(execution: Execution, data: bytes) -> None:
    await execution.write(data)
    await execution.close_stdin()
