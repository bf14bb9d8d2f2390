"""Runs a notebook in the AgentVM kernel, prints what its cells put out and keeps the executed copy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbformat import NotebookNode, read, write
from rich.console import Console
from rich.panel import Panel
from rich.syntax import Syntax

from agentvm_kernel.config import Paths
from agentvm_kernel.errors import RequestError, VMError
from agentvm_kernel.supervisor.client import SupervisorClient
from agentvm_kernel.supervisor.messages import Ended, Granted, LeaseRequest, Progress

KERNEL = "agentvm"
_CELL_SECONDS = 600
_STARTUP_SECONDS = 120
_MAX_TEXT = 4000


async def prepare(paths: Paths, show: Callable[[str, float | None], None]) -> None:
    """Lease a VM once, so that whatever has to be built first is built now and seen.

    Args:
        paths: The user's folders.
        show: Called with each stage and, where it is known, the share of it that is done.

    Raises:
        AgentVMError: no VM can be had.
    """
    async with SupervisorClient(paths) as client, client.lease(LeaseRequest(owner="quickstart")) as lease:
        async for event in lease:
            match event:
                case Progress():
                    show(event.stage, event.done)
                case Granted():
                    return
                case Ended():
                    raise VMError(event.reason, event.hint)


def run_notebook(notebook: Path, results: Path, console: Console) -> int:
    """Run a notebook and print its outputs as they come.

    Args:
        notebook: The notebook to run; it is not changed.
        results: Folder for the executed copy.
        console: Where to print.

    Returns:
        0 if every cell ran (an error in a cell tagged ``raises-exception`` is expected), else 1.

    Raises:
        RequestError: the notebook cannot be read.
    """
    if not notebook.is_file():
        raise RequestError(f"There is no notebook {notebook}.", "Name one: `agentvm quickstart FILE.ipynb`.")
    node = read(notebook, as_version=4)  # type: ignore[no-untyped-call]
    results.mkdir(parents=True, exist_ok=True)
    executed = results / notebook.name

    def show(cell: NotebookNode, cell_index: int, **_: Any) -> None:
        if cell.cell_type == "code":
            _print_cell(cell, console)

    client = NotebookClient(
        node, kernel_name=KERNEL, timeout=_CELL_SECONDS, startup_timeout=_STARTUP_SECONDS, on_cell_executed=show,
        resources={"metadata": {"path": str(notebook.parent)}},
    )  # fmt: skip
    console.print(f"Running {notebook} in a virtual machine …", highlight=False)
    try:
        client.execute()
    except (CellExecutionError, DeadKernelError) as error:
        console.print(f"[red]The notebook stopped:[/] {error}", markup=True, highlight=False)
        return 1
    finally:
        write(node, executed)  # type: ignore[no-untyped-call]
        console.print(f"Executed notebook: {executed}", soft_wrap=True, highlight=False)
    return 0


def _print_cell(cell: NotebookNode, console: Console) -> None:
    console.print(Panel(Syntax(cell.source, "python", background_color="default"), title=f"[{cell.execution_count}]"))
    for text in _texts(cell):
        console.print(text[:_MAX_TEXT], markup=False, highlight=False)


def _texts(cell: NotebookNode) -> Iterator[str]:
    for output in cell.outputs:
        if output.output_type == "stream":
            yield output.text.rstrip("\n")
        elif output.output_type == "error":
            yield f"{output.ename}: {output.evalue}"
        else:
            yield describe(output.data)


def describe(data: dict[str, Any]) -> str:
    """Return an output as text; pictures and widgets by name, because a terminal cannot show them."""
    rich = sorted(kind for kind in data if kind not in {"text/plain", "text/html"})
    text = str(data.get("text/plain", "")).rstrip("\n")
    return f"{text}  <{', '.join(rich)}: see the executed notebook>" if rich else text
