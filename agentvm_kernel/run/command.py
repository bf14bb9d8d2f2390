"""``agentvm run``: a script, a program, a notebook or a folder in a fresh VM."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.status import Status
from rich.text import Text

from agentvm_kernel.config import Paths
from agentvm_kernel.errors import AgentVMError, RunError
from agentvm_kernel.run.lease import OnProgress
from agentvm_kernel.run.plan import check_out, check_results, make_plan
from agentvm_kernel.run.program import Order, Report, Streams, run_program
from agentvm_kernel.run.unpack import Bounds, Received
from agentvm_kernel.terminal import plain

OWN_FAILURE: Final = 125
_INTERRUPTED: Final = 130
_MIB: Final = 1 << 20

NotebookRunner = Callable[[Order, Streams, OnProgress], Coroutine[None, None, Report]]

_err = Console(stderr=True)


def run(
    file: Annotated[Path, typer.Argument(help="A script, an executable, a notebook or a folder.", show_default=False)],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- ARG", help="Its arguments; for a folder the command that is run in it."),
    ] = None,
    profile: Annotated[str, typer.Option(help="The VM's profile; the configured one by default.")] = "",
    image: Annotated[str, typer.Option(help="Flavour of the image; the configured one by default.")] = "",
    timeout: Annotated[float | None, typer.Option(min=0.001, help="Seconds that it may run.")] = None,
    inputs: Annotated[
        list[Path] | None, typer.Option("--in", help="A file or folder to copy into the working folder (repeatable).")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the results: what is new or changed.")] = None,
    results: Annotated[list[str] | None, typer.Option("--result", help="Copy out this path only (repeatable).")] = None,
    allow: Annotated[
        list[str] | None, typer.Option(metavar="HOST[:PORT]", help="A host that it may reach besides (repeatable).")
    ] = None,
    out_limit: Annotated[int, typer.Option(min=1, metavar="MIB", help="How much may come out, MiB.")] = 4096,
    out_files: Annotated[int, typer.Option(min=1, help="How many files may come out.")] = 100_000,
) -> None:
    """Run a script, a notebook or a folder in a fresh virtual machine.

    Its output is shown as it comes, its exit code is this command's: 128 and the signal's number if one killed it, 124
    after --timeout, 125 if it could not be run. Ctrl-C interrupts it, a second one kills it.
    """
    try:
        plan = make_plan(file, arguments or [])
        check_out(out)
        check_results(results or [])
        if results and not out:
            raise RunError("--result says what to copy out, but there is no --out that says where to.")
        order = Order(
            plan, tuple(inputs or ()), image, profile, timeout, out, tuple(results or ()),
            Bounds(out_limit * _MIB, out_files), tuple(allow or ()),
        )  # fmt: skip
        report = _run(order)
    except AgentVMError as error:
        _tell(error.message, error.hint)
        raise typer.Exit(OWN_FAILURE) from error
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise typer.Exit(_INTERRUPTED) from None
    if report.timed_out:
        _tell(f"The program was ended after {timeout:g} s, its time limit (--timeout).")
    for one in report.blocked:
        _tell(f"refused: {one.name}:{one.port}: {one.reason}")
    _tell(*dict.fromkeys(_remedy(one.hint) for one in report.blocked))
    if report.received:
        _tell_received(report.received)
    raise typer.Exit(report.status)


def _run(order: Order) -> Report:
    streams = Streams(stdin=None if os.isatty(0) else 0)
    with _progress() as on_progress:
        if order.plan.is_notebook:
            return asyncio.run(_notebook_runner()(order, streams, on_progress))
        return asyncio.run(run_program(order, Paths.of_user(), streams, on_progress))


def _notebook_runner() -> NotebookRunner:
    try:
        from agentvm_kernel.run.notebook import run_notebook  # noqa: PLC0415 - needs what is optional
    except ModuleNotFoundError as error:
        raise RunError(
            f"Notebooks need {error.name}.", "Install it: pip install 'agentvm-kernel[notebook]'."
        ) from error
    return run_notebook


def _tell(*lines: str) -> None:
    """Say something of our own: on stderr, so that the program's output stays what it is."""
    for line in filter(None, lines):
        _err.print(Text(f"agentvm run: {plain(line)}"), soft_wrap=True)


def _remedy(hint: str) -> str:
    """Return a remedy in this command's words, where it is one in a notebook's."""
    if hint.startswith("%net allow "):
        return f"--allow {hint.split()[2]} allows it."
    return "Another profile may have a network: --profile NAME." if hint.startswith("%") else hint


def _tell_received(received: Received) -> None:
    for line in received.left_out:
        _tell(f"not copied out: {line}")
    if (more := received.left_out_count - len(received.left_out)) > 0:
        _tell(f"not copied out: {more} more")


@contextmanager
def _progress() -> Iterator[OnProgress]:
    """Show on a terminal what is going on before the program begins and after its end; say nothing elsewhere."""
    with Status("", console=_err) as status:

        def show(stage: str, done: float | None) -> None:
            if not stage:
                status.stop()
                return
            share = "" if done is None else f" {done:.0%}"
            status.start()
            status.update(Text(plain(f"{stage}{share}")))

        yield show
