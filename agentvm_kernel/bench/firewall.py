"""``agentvm bench firewall``: what it costs to clean a message, beside what it costs to produce and carry it."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from jupyter_client.blocking.client import BlockingKernelClient

from agentvm_kernel.bench import outputs
from agentvm_kernel.bench.asking import ask
from agentvm_kernel.bench.bed import Say, Wanted, bed
from agentvm_kernel.bench.figures import Figure, Series, differences
from agentvm_kernel.bench.kernel import notebook
from agentvm_kernel.errors import AgentVMError
from agentvm_kernel.firewall.context import Mode
from agentvm_kernel.firewall.firewall import Firewall
from agentvm_kernel.firewall.policy import Policy
from agentvm_kernel.firewall.reasons import Reason

_REPEAT: Final = 40
_BLOCK: Final = 5


@dataclass
class Subject:
    """One output.

    Attributes:
        name: What it is.
        msg_type: Of its message.
        content: The message's content.
        code: The cell that produces it, once `outputs` is there.
        limit: What is promised of the added time.
        limit_on: Milliseconds, or the part of the cell's round trip.
    """

    name: str
    msg_type: str
    content: bytes
    code: str
    limit: float = 0.15
    limit_on: str = "ratio"
    cleaned: list[list[float]] = field(default_factory=list)
    trusted: list[list[float]] = field(default_factory=list)
    trips: list[float] = field(default_factory=list)


def run(wanted: Wanted, say: Say) -> list[Figure]:
    """Measure the added time of each output, in turns with the same in mode ``trusted`` and with a cell that makes it.

    Args:
        wanted: Image, profile, repetitions (of everything; 0 for 40).
        say: Told what is going on.

    Raises:
        AgentVMError: no VM could be had, the kernelspec is not installed, or an output was blocked.
    """
    repeat = wanted.repeat or _REPEAT
    found = _subjects()
    with bed(wanted) as ours:
        say("preparing image and golden snapshot", None)
        asyncio.run(ours.prepare(say))
        asyncio.run(ours.filled())
        say("starting a kernel", None)
        with notebook(ours) as (_, client):
            asyncio.run(ours.filled())
            _prepare(client, found)
            _take_turns(client, found, repeat, say)
    return [figure for subject in found for figure in _figures(subject)]


def _subjects() -> list[Subject]:
    stream = {"name": "stdout", "text": outputs.line()}
    return [
        Subject("a short stream", "stream", json.dumps(stream).encode(), "print(1)", 0.2, "median"),
        # pandas writes a table whenever it is shown; a picture or a plot may be there already.
        _display("a pandas table of 1,000 rows", "text/html", outputs.table(), "table()"),
        _display("a PNG of 1 MB", "image/png", outputs.picture(), "the_picture"),
        _display("an HTML plot of 200 kB", "text/html", outputs.plot(), "the_plot"),
    ]


def _display(name: str, mime: str, value: str, expression: str) -> Subject:
    content = {"data": {"text/plain": name, mime: value}, "metadata": {}, "transient": {}}
    code = f"display({{'text/plain': {name!r}, {mime!r}: {expression}}}, raw=True)"
    return Subject(name, "display_data", json.dumps(content).encode(), code)


def _prepare(client: BlockingKernelClient, found: list[Subject]) -> None:
    """Give the VM what makes the outputs, and let everything run once before it counts."""
    source = Path(outputs.__file__).read_text()
    reply = client.execute_interactive(
        f"exec({source!r}, globals())\nthe_picture, the_plot = picture(), plot()", output_hook=lambda _: None
    )
    if reply["content"]["status"] != "ok":
        raise AgentVMError(f"The benchmark's cell failed: {reply['content'].get('evalue')}")
    for subject in found:
        _block(subject, Mode.STANDARD, 1)
        _block(subject, Mode.TRUSTED, 1)
        ask(client, subject.code)


def _take_turns(client: BlockingKernelClient, found: list[Subject], repeat: int, say: Say) -> None:
    size = min(_BLOCK, repeat)
    rounds = -(-repeat // size)
    for number in range(rounds):
        say("messages and cells, in turns", number / rounds)
        for subject in found:
            modes = [Mode.STANDARD, Mode.TRUSTED]
            for mode in modes if number % 2 else reversed(modes):
                kept = subject.cleaned if mode is Mode.STANDARD else subject.trusted
                kept.append(_block(subject, mode, size))
            subject.trips += [ask(client, subject.code) * 1000 for _ in range(size)]


def _block(subject: Subject, mode: Mode, repeat: int) -> list[float]:
    """Clean a message so many times; milliseconds."""
    firewall = Firewall(Policy(mode))
    samples = []
    for _ in range(repeat):
        began = time.perf_counter()
        shown = firewall.output(subject.msg_type, subject.content, b"{}", (), _ignore)
        samples.append((time.perf_counter() - began) * 1000)
        if shown is None:
            raise AgentVMError(f"The firewall blocked {subject.name}.")
    return samples


def _ignore(_reason: Reason, _words: str) -> None:
    """Take no notice of what is blocked."""


def _figures(subject: Subject) -> list[Figure]:
    pairs = list(zip(subject.cleaned, subject.trusted, strict=True))
    added = differences(f"added by the output firewall: {subject.name}", "ms", pairs)
    trusted = Series(
        f"the same in mode trusted: {subject.name}", "ms", [one for block in subject.trusted for one in block]
    )
    trip = Series(f"round trip of a cell through the notebook kernel: {subject.name}", "ms", subject.trips)
    if subject.limit_on == "median":
        return [Figure(added, trusted, limit=subject.limit), Figure(added, trip)]
    return [Figure(added, trusted), Figure(added, trip, limit=subject.limit, limit_on="ratio")]
