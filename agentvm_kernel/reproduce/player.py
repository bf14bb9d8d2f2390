"""Goes the recorded path: a fresh VM for each leg of it, and one step after the other."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, cast

from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_core.paths import jupyter_runtime_dir
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook

from agentvm_kernel.errors import VMEndedError
from agentvm_kernel.firewall.text import sound
from agentvm_kernel.reproduce.error import ReproduceError
from agentvm_kernel.reproduce.path import Leg, Step, with_labels
from agentvm_kernel.reproduce.permits import VARIABLE, Permits, RefusedError
from agentvm_kernel.run.own_kernel import OwnKernel
from agentvm_kernel.run.provenance import KEY

_KERNEL: Final = "agentvm_kernel.reproduce.kernel"
_STARTUP_SECONDS: Final = 120
_MOST: Final = 512 << 20
"""Bytes of outputs that are kept of a leg."""

_LOST: Final = frozenset({VMEndedError.__name__, "CellDeadlineError", "LinkClosedError", "SupervisorError"})

OnStep = Callable[[int, int], None]


@dataclass(frozen=True)
class Shown:
    """What a step has shown.

    Attributes:
        step: Which.
        outputs: As notebooks have them.
        lost: Why it could not be run to its end; empty if it was.
        refused: Why it was not carried out; empty if it was.
        reply: What the host says of it.
        count: The execution count.
    """

    step: Step
    outputs: tuple[dict[str, Any], ...]
    lost: str = ""
    refused: str = ""
    reply: dict[str, Any] = field(default_factory=dict)
    count: int | None = None


@dataclass(frozen=True)
class Stage:
    """In what a leg is run.

    Attributes:
        image: Flavour or digest of the image.
        profile: Name of the profile; empty for the configured one.
        asked: What is asked for before anything runs: magics that lower limits and close the network.
        permits: What the notebook may do.
        folder: Where the kernel process runs; cassettes are in it.
        owner: What its lease is for, and its snapshots belong to.
        timeout: Seconds for all of it; None for no limit.
    """

    image: str
    profile: str
    asked: tuple[str, ...]
    permits: Permits
    folder: Path
    owner: str
    timeout: float | None = None


async def play(leg: Leg, stage: Stage, on_step: OnStep) -> list[Shown]:
    """Go a leg, and return what its steps have shown, in order; those that are missing could not be run.

    Args:
        leg: It.
        stage: In what.
        on_step: Called before each step with its number and how many there are.

    Raises:
        ReproduceError: the machine cannot be had as it is wanted.
    """
    steps = with_labels(leg).steps
    shown: list[Shown] = []
    room = _MOST
    async with _started(stage) as client:
        try:
            async with asyncio.timeout(stage.timeout):
                for number, step in enumerate(steps):
                    on_step(number, len(steps))
                    shown.append(await client.show(step))
                    room -= len(json.dumps(shown[-1].outputs))
                    if room < 0:
                        shown[-1] = replace(shown[-1], outputs=(), lost=f"all showed more than {_MOST >> 20} MiB")
                    if shown[-1].lost:
                        break
        except TimeoutError:
            late = f"it was not done within {stage.timeout:g} s, the time limit (--timeout)"
            shown.append(Shown(steps[len(shown)], (), lost=late))
    return shown


@asynccontextmanager
async def _started(stage: Stage) -> AsyncIterator[_Client]:
    arguments = ["--quiet", f"--image={stage.image}"]
    arguments += [f"--profile={stage.profile}"] if stage.profile else []
    arguments += [f"--allow={host}" for host in stage.permits.allow]
    environment = {**os.environ, VARIABLE: stage.permits.model_dump_json()}
    environment.pop("JPY_SESSION_NAME", None)  # its snapshots are none of the notebook's own
    client = _Client(stage.owner, arguments)
    try:
        context = client.async_setup_kernel(cleanup_kc=True, cwd=str(stage.folder), env=environment)
        async with context:
            await client.ask("pass")
            for request in stage.asked:
                await client.ask(request)
            yield client
    except RuntimeError as error:
        raise ReproduceError(f"The kernel could not be started: {error}") from error


class _Client(NotebookClient):
    """Runs steps."""

    def __init__(self, owner: str, arguments: list[str]) -> None:
        file = Path(jupyter_runtime_dir()) / f"{owner}.json"
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._kernel = OwnKernel(module=_KERNEL, kernel_name="agentvm", connection_file=str(file))
        self._reply: dict[str, Any] = {}
        super().__init__(
            new_notebook(),  # type: ignore[no-untyped-call]
            km=self._kernel, extra_arguments=arguments, timeout=None, startup_timeout=_STARTUP_SECONDS,
            allow_errors=True, on_cell_executed=self._keep_reply,
        )  # fmt: skip

    def _keep_reply(self, execute_reply: dict[str, Any], **_: object) -> None:
        said = execute_reply.get("metadata", {}).get(KEY)
        self._reply = dict(said) if isinstance(said, dict) else {}

    async def ask(self, code: str) -> None:
        """Run code that is no part of the notebook.

        Raises:
            ReproduceError: it failed.
        """
        assert isinstance(self.kc, AsyncKernelClient)
        reply = await self.kc.execute_interactive(
            code, store_history=False, allow_stdin=False, output_hook=lambda _: None
        )
        if reply["content"]["status"] != "ok":
            raise ReproduceError(str(reply["content"].get("evalue") or "The virtual machine did not answer.")[:2000])

    async def show(self, step: Step) -> Shown:
        """Run a step; whatever becomes of it is a result."""
        cell: NotebookNode = new_code_cell(step.source)  # type: ignore[no-untyped-call]
        self.nb.cells, self._reply = [cell], {}
        try:
            await self.async_execute_cell(cell, 0, store_history=not step.digest)  # copies besides cells have no number
        except (DeadKernelError, CellTimeoutError) as error:
            return Shown(step, _plain(cell), lost=f"the kernel process has ended ({type(error).__name__})")
        except CellExecutionError as error:
            cell.outputs.append({"output_type": "error", "ename": error.ename, "evalue": error.evalue, "traceback": []})
        failed = next((one for one in cell.outputs if one["output_type"] == "error"), None)
        name, value = (failed["ename"], str(failed["evalue"])) if failed else ("", "")
        return Shown(
            step, _plain(cell), lost=value[:500] if name in _LOST else "",
            refused=value[:500] if name == RefusedError.__name__ else "", reply=self._reply, count=cell.execution_count,
        )  # fmt: skip


def _plain(cell: NotebookNode) -> tuple[dict[str, Any], ...]:
    """Return outputs without what no file can hold."""
    return tuple(cast("dict[str, Any]", sound(dict(output))) for output in cell.outputs)
