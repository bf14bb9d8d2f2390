"""``agentvm bench kernel``: what the way through the notebook kernel costs."""

from __future__ import annotations

import asyncio
import json
import subprocess  # nosec B404 - runs this interpreter
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

from agentvm_kernel.bench import asking
from agentvm_kernel.bench.asking import DISPLAY, PAYLOAD, TIMEOUT, ask, client_of, kernel
from agentvm_kernel.bench.bed import Bed, Say, Wanted, bed
from agentvm_kernel.bench.figures import Figure, Series, differences
from agentvm_kernel.bench.memory import memory_of
from agentvm_kernel.errors import AgentVMError

_CELL: Final = "1"
_REPEAT: Final = 100
_BLOCK: Final = 10
_DISPLAYS_PER_BLOCK: Final = 2
# Code is translated anew after a clone: the first cells say nothing about the rest.
_WARM_UP: Final = 20
_GUEST_CODE: Final = "/run/agentvm/lib"

# A process of its own in the VM: the notebook's own ipykernel waits in a read meanwhile.
_START: Final = """\
import subprocess, sys
open('/tmp/asking.py', 'w').write({source!r})
asking = subprocess.Popen(
    [sys.executable, '/tmp/asking.py', {code!r}], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
def inside(line):
    print(line, file=asking.stdin, flush=True)
    print(asking.stdout.readline())
"""

Measure = Callable[[str, int], list[float]]


class Runner:
    """One way to run a cell: names it, and keeps its samples by cell.

    Args:
        name: The way.
        measure: Runs a cell a number of times and returns the seconds of each.
    """

    def __init__(self, name: str, measure: Measure) -> None:
        self.name = name
        self._measure = measure
        self.blocks: dict[str, list[list[float]]] = {}

    def run(self, code: str, repeat: int) -> None:
        """Take a block of samples, milliseconds."""
        self.blocks.setdefault(code, []).append([seconds * 1000 for seconds in self._measure(code, repeat)])

    def series(self, what: str, code: str) -> Series:
        """Return all samples of a cell."""
        return Series(f"{what}, {self.name}", "ms", [sample for block in self.blocks[code] for sample in block])


def run(wanted: Wanted, say: Say) -> list[Figure]:
    """Measure cell round trips, display data and memory.

    Args:
        wanted: Image, profile, repetitions (of the cell round trip; 0 for 100).
        say: Told what is going on.

    Raises:
        AgentVMError: no VM could be had, or the kernelspec is not installed.
    """
    with bed(wanted) as ours:
        say("preparing image and golden snapshot", None)
        asyncio.run(ours.prepare(say))
        asyncio.run(ours.filled())
        say("starting kernels", None)
        with notebook(ours) as (manager, through), kernel() as plain, client_of(plain) as host:
            asyncio.run(ours.filled())
            runners = _runners(through, host)
            _take_turns(runners, wanted.repeat or _REPEAT, say)
            figures = [*_cell_figures(runners), *_display_figures(runners)]
            return figures + _memory_figures(_pid(manager), _pid(plain), ours.pid)


@contextmanager
def notebook(ours: Bed) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    """Start the notebook kernel, and connect a client to it."""
    with kernel("agentvm", env=ours.environment) as manager, client_of(manager) as client:
        yield manager, client


def _pid(manager: KernelManager) -> int:
    assert manager.provisioner is not None  # nosec B101 - it has started
    return int(manager.provisioner.pid)  # type: ignore[attr-defined]


def _runners(through: BlockingKernelClient, host: BlockingKernelClient) -> list[Runner]:
    """Return the ways to run a cell, the notebook kernel first."""
    source = Path(asking.__file__).read_text()
    _output(through, _START.format(source=source, code=_GUEST_CODE))
    for client in (through, host):
        ask(client, PAYLOAD)

    def outside(client: BlockingKernelClient) -> Measure:
        return lambda code, repeat: [ask(client, code) for _ in range(repeat)]

    def inside(kind: str) -> Measure:
        def measure(code: str, repeat: int) -> list[float]:
            line = json.dumps({"client": kind, "code": code, "repeat": repeat})
            return [float(seconds) for seconds in json.loads(_output(through, f"inside({line!r})"))]

        return measure

    return [
        Runner("through the notebook kernel", outside(through)),
        Runner("jupyter_client inside the guest", inside("jupyter")),
        Runner("bare client inside the guest", inside("bare")),
        Runner("ipykernel on the host", outside(host)),
    ]


def _output(client: BlockingKernelClient, code: str) -> str:
    """Run a cell and return what it printed."""
    texts: list[str] = []

    def hook(message: dict[str, object]) -> None:
        content = message["content"]
        if message["msg_type"] == "stream" and isinstance(content, dict):
            texts.append(content["text"])

    reply = client.execute_interactive(code, output_hook=hook, timeout=TIMEOUT, allow_stdin=False)
    if reply["content"]["status"] != "ok":
        raise AgentVMError(f"The benchmark's cell failed: {reply['content'].get('evalue')} {''.join(texts)}")
    return "".join(texts)


def _take_turns(runners: list[Runner], repeat: int, say: Say) -> None:
    """Let every runner have its turn in each round, beginning with another each time."""
    for runner in runners:
        runner.run(_CELL, min(_WARM_UP, repeat))
        runner.run(DISPLAY, 1)
        runner.blocks.clear()
    block = min(_BLOCK, repeat)
    rounds = -(-repeat // block)
    for number in range(rounds):
        say("cells and display data, in turns", number / rounds)
        first = number % len(runners)
        for runner in runners[first:] + runners[:first]:
            runner.run(_CELL, block)
            runner.run(DISPLAY, min(_DISPLAYS_PER_BLOCK, repeat))


def _cell_figures(runners: list[Runner]) -> list[Figure]:
    through, jupyter, bare, host = (runner.series("cell `1`", _CELL) for runner in runners)
    blocks = [runner.blocks[_CELL] for runner in runners]
    figures = []
    # What is promised compares with a Jupyter client at both ends. The bare client, which has next to no time of its
    # own, shows what there is besides ipykernel.
    for other, inside, limit in ((1, jupyter, 3), (2, bare, None)):
        pairs = list(zip(blocks[0], blocks[other], strict=True))
        name = f"cell round trip: notebook kernel minus {runners[other].name}"
        figures.append(Figure(differences(name, "ms", pairs), inside, limit=limit))
    return [*figures, *(Figure(through, other) for other in (jupyter, bare, host))]


def _display_figures(runners: list[Runner]) -> list[Figure]:
    through, jupyter, bare, host = (runner.series("1 MiB of display data", DISPLAY) for runner in runners)
    return [
        Figure(through, jupyter, limit=1.5, limit_on="ratio"),
        Figure(through, bare),
        Figure(through, host),
    ]


def _memory_figures(notebook: int, plain: int, supervisor: int) -> list[Figure]:
    """Compare both processes with what Python and the libraries take that they cannot do without."""
    with _importing("agentvm_kernel.supervisor.daemon") as imports:
        pids = {
            "kernel process": notebook,
            "ipykernel on the host": plain,
            "supervisor": supervisor,
            "the supervisor's imports alone": imports,
        }
        memory = {name: memory_of(pid) for name, pid in pids.items()}
    private = {name: Series(f"private memory, {name}", "MB", [found.private]) for name, found in memory.items()}
    shared = {name: Series(f"proportional memory, {name}", "MB", [f.proportional]) for name, f in memory.items()}
    figures = []
    for ours, other, limit in (
        ("kernel process", "ipykernel on the host", 80),
        ("supervisor", "the supervisor's imports alone", 120),
    ):
        figures += [Figure(private[ours], private[other], limit=limit), Figure(shared[ours], shared[other])]
    return figures


@contextmanager
def _importing(module: str) -> Iterator[int]:
    """Run a process that imports a module and does nothing."""
    code = f"import {module}; print(flush=True); input()"
    with subprocess.Popen(  # nosec B603
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None  # nosec B101 - it is a pipe
        process.stdout.readline()
        yield process.pid
        process.communicate(b"\n")
