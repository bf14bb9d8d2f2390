"""Runs a notebook in a fresh VM by the AgentVM kernel, and shows what its cells put out as it comes."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

from jupyter_client.asynchronous.client import AsyncKernelClient
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbformat import NotebookNode, read, write
from nbformat.reader import NotJSONError
from nbformat.validator import NotebookValidationError

from agentvm_kernel.config import Paths
from agentvm_kernel.errors import RunError, SupervisorError, TransferError, VMEndedError
from agentvm_kernel.quickstart import describe
from agentvm_kernel.run import provenance
from agentvm_kernel.run.files import placed
from agentvm_kernel.run.lease import OnProgress
from agentvm_kernel.run.outlet import Outlet
from agentvm_kernel.run.own_kernel import OwnKernel
from agentvm_kernel.run.places import granted
from agentvm_kernel.run.program import BROKEN_PIPE, TIMED_OUT, Order, Report, Streams
from agentvm_kernel.supervisor.client import SupervisorClient

_STARTUP_SECONDS: Final = 120
_GRACE: Final = 10.0
"""Seconds for an interrupted cell to end."""

_FAILED: Final = 1
_INTERRUPTED: Final = 130


async def run_notebook(order: Order, streams: Streams, on_progress: OnProgress) -> Report:
    """Run a notebook in a fresh VM, cell by cell until one fails.

    Args:
        order: What is to be run; the results are the executed notebook, and the paths that are named.
        streams: Where its output goes.
        on_progress: Called with what is going on before it begins; with an empty text when it does.

    Returns:
        What became of it; the status is 1 if a cell failed.

    Raises:
        AgentVMError: it could not be run, or its results could not be copied out.
    """
    source = order.plan.source
    node = _read(source)
    options = [f"--{name}={value}" for name, value in (("profile", order.profile), ("image", order.image)) if value]
    options += [f"--allow={host}" for host in order.allow]
    client = _Client(node, streams, ["--quiet", *options])
    on_progress("preparing the virtual machine", None)
    ended: VMEndedError | None = None
    with _results(order.out) as place:
        async with _started(client, source.resolve().parent), client.interruptible():
            await client.ask("pass")
            for path in order.inputs:
                with granted(path):
                    await client.ask(f"%push {_quoted(path.resolve())}")
            on_progress("", None)
            report = Report()
            try:
                await _run_cells(client, order.timeout, report)
            except VMEndedError as error:
                ended = error
            if place:
                node.metadata[provenance.KEY] = await _described(client)
                write(node, place / source.name)  # type: ignore[no-untyped-call]
                for name in () if ended else order.results:
                    with granted(place / name):
                        await client.ask(f"%pull {_quoted(Path(name))} {_quoted(place / name)}")
    if ended:
        raise ended
    return report


async def _described(client: _Client) -> dict[str, Any]:
    """Return what the notebook keeps of the machine that its cells ran in."""
    try:
        async with SupervisorClient(Paths.of_user(), start=False) as supervisor:
            status = await supervisor.status()
    except SupervisorError:  # it is gone, and nobody else knows; what was run is kept all the same
        return {}
    leases = [one for one in status.leases if one.owner == client.owner]
    return await asyncio.to_thread(provenance.of_notebook, status, leases[-1]) if leases else {}


def _read(source: Path) -> NotebookNode:
    try:
        return read(source, as_version=4)  # type: ignore[no-untyped-call,no-any-return]
    except (NotJSONError, NotebookValidationError, UnicodeDecodeError, AttributeError, KeyError) as error:
        raise RunError(f"{source} is no notebook that can be read: {str(error).splitlines()[0]}") from error


@asynccontextmanager
async def _started(client: _Client, folder: Path) -> AsyncIterator[None]:
    """Have the kernel run within the context."""
    async with AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(client.async_setup_kernel(cleanup_kc=True, cwd=str(folder)))
        except RuntimeError as error:
            raise RunError(f"The kernel could not be started: {error}") from error
        yield


@contextmanager
def _results(out: Path | None) -> Iterator[Path | None]:
    if out is None:
        yield None
        return
    try:
        with placed(out) as place:
            place.mkdir()
            yield place
    except OSError as error:
        raise TransferError(f"The results cannot be written to {out}: {error.strerror or error}.") from error


def _quoted(path: Path) -> str:
    """Return a path as a magic's word."""
    text = str(path)
    quote = "'" if "'" not in text else '"'
    if quote in text or not text.isprintable():
        raise RunError(f"{text!r} cannot be copied: its name has both kinds of quotes, or what cannot be shown.")
    return f"{quote}{text}{quote}"


class _Client(NotebookClient):
    """Runs cells and shows their output."""

    def __init__(self, node: NotebookNode, streams: Streams, arguments: list[str]) -> None:
        kernel = OwnKernel(kernel_name="agentvm")
        super().__init__(
            node, km=kernel, extra_arguments=arguments, timeout=None, startup_timeout=_STARTUP_SECONDS,
            on_cell_executed=self._keep_record,
        )  # fmt: skip
        self.running = self.stopping = False
        self._kernel = kernel
        self._outlets = {"stdout": Outlet(streams.stdout), "stderr": Outlet(streams.stderr)}

    @property
    def owner(self) -> str:
        """What the kernel's lease is for."""
        return Path(self._kernel.connection_file).stem

    def _keep_record(self, cell: NotebookNode, execute_reply: dict[str, Any], **_: object) -> None:
        record = provenance.of_cell(execute_reply, str(self._kernel.kernel_id))
        if record is not None:
            cell.metadata[provenance.KEY] = record

    async def ask(self, code: str) -> None:
        """Run code that is no part of the notebook.

        Raises:
            RunError: it failed.
        """
        assert isinstance(self.kc, AsyncKernelClient)
        reply = await self.kc.execute_interactive(
            code, store_history=False, allow_stdin=False, output_hook=lambda _: None
        )
        if reply["content"]["status"] != "ok":
            raise RunError(str(reply["content"].get("evalue") or "The virtual machine did not answer."))

    async def stop(self, *, kill: bool) -> None:
        """Interrupt the cell that runs, or end its VM."""
        self.stopping = True
        if kill:
            await self._kernel.shutdown_kernel(now=True)
        else:
            await self._kernel.interrupt_kernel()

    @asynccontextmanager
    async def interruptible(self) -> AsyncIterator[None]:
        """Within the context, the first Ctrl-C or SIGTERM interrupts the cell that runs, any other ends its VM.

        Where no cell of the notebook runs, it cancels this task.
        """
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        stops: list[asyncio.Task[None]] = []

        def press() -> None:
            if self.running:
                stops.append(asyncio.create_task(self.stop(kill=bool(stops))))
            else:
                task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, press)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    def output(
        self, outs: list[NotebookNode], msg: dict[str, Any], display_id: str | None, cell_index: int
    ) -> NotebookNode | None:
        """Take an output, and show it."""
        out: NotebookNode | None = super().output(outs, msg, display_id, cell_index)
        if out is not None:
            name, text = _text(out)
            self._outlets[name].write(text.encode(errors="replace"))
        return out

    def end(self) -> None:
        """Leave terminals as they were."""
        for outlet in self._outlets.values():
            outlet.end()


def _text(out: NotebookNode) -> tuple[str, str]:
    if out.output_type == "stream":
        return out.name if out.name == "stderr" else "stdout", out.text
    if out.output_type == "error":
        return "stderr", "\n".join(out.traceback) + "\n"
    return "stdout", describe(out.data) + "\n"


async def _run_cells(client: _Client, timeout: float | None, report: Report) -> None:
    running = asyncio.create_task(_cells(client))
    client.running = True
    try:
        await asyncio.wait([running], timeout=timeout)
        for kill in (False, True):
            if not running.done():
                report.timed_out = True
                await client.stop(kill=kill)
                await asyncio.wait([running], timeout=_GRACE)
    finally:
        client.running = False
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        client.end()
    if report.timed_out:
        report.status = TIMED_OUT
    else:
        report.status = _INTERRUPTED if client.stopping else running.result()


async def _cells(client: _Client) -> int:
    for index, cell in enumerate(client.nb.cells):
        try:
            await client.async_execute_cell(cell, index)
        except CellExecutionError as error:
            if error.ename == VMEndedError.__name__:
                raise VMEndedError(error.evalue) from error
            return _FAILED
        except DeadKernelError as error:
            raise VMEndedError("The kernel process, which had the VM, has ended.") from error
        except BrokenPipeError:
            return BROKEN_PIPE
        if client.stopping:
            return _FAILED
    return 0
