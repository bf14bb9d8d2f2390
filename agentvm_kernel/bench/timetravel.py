"""``agentvm bench timetravel``: what a snapshot after every cell costs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from jupyter_client.blocking.client import BlockingKernelClient

from agentvm_kernel.bench.asking import ask
from agentvm_kernel.bench.bed import Say, Wanted, bed
from agentvm_kernel.bench.figures import Figure, Series, differences
from agentvm_kernel.bench.kernel import notebook

_BLOCKS: Final = 6
_PER_BLOCK: Final = 10
_CELLS: Final = 100
_SECTOR: Final = 512  # st_blocks counts in units of this (stat(2))


def run(wanted: Wanted, say: Say) -> list[Figure]:
    """Measure cells with and without time travel, in turns, and what the snapshots take on disk.

    Args:
        wanted: Image, profile, repetitions (of the block of ten cells; 0 for 6).
        say: Told what is going on.

    Raises:
        AgentVMError: no VM could be had.
    """
    with bed(wanted) as ours:
        say("preparing image and golden snapshot", None)
        asyncio.run(ours.prepare(say))
        asyncio.run(ours.filled())
        with notebook(ours) as (_, client):
            ask(client, "import os; blocks = []")
            asyncio.run(ours.filled())
            without, during = _blocks(client, wanted.repeat or _BLOCKS, say)
            stored = _stored_by_cells(client, ours.paths.state / "snapshots", say)
    off = Series("cell `1`, time travel off", "ms", [sample for block in without for sample in block])
    on = Series("cell `1`, time travel on", "ms", [sample for block in during for sample in block])
    extra = differences("cell `1`: what time travel adds", "ms", list(zip(during, without, strict=True)))
    written = Series(f"written by {_CELLS} cells, 1 MiB each", "MiB", [float(_CELLS)])
    return [
        Figure(extra, off, limit=30),
        Figure(on, off),
        Figure(Series(f"stored by {_CELLS} cells that write 1 MiB each", "MiB", [stored]), written, limit=250),
    ]


def _blocks(client: BlockingKernelClient, number: int, say: Say) -> tuple[list[list[float]], list[list[float]]]:
    """Return milliseconds of cells without and with time travel, block by block; the first cell of each is dropped."""
    times: dict[str, list[list[float]]] = {"off": [], "on": []}
    for block in range(number):
        say("cells with and without time travel, in turns", block / number)
        for mode in ("on", "off") if block % 2 else ("off", "on"):
            ask(client, f"%timetravel {mode}")
            times[mode].append([ask(client, "1") * 1000 for _ in range(_PER_BLOCK + 1)][1:])
    return times["off"], times["on"]


def _stored_by_cells(client: BlockingKernelClient, folder: Path, say: Say) -> float:
    """Return the MiB that the snapshots of a hundred cells take."""
    ask(client, "%timetravel on")
    before = _size(folder)
    for cell in range(_CELLS):
        say("cells that write 1 MiB each", cell / _CELLS)
        ask(client, "blocks.append(os.urandom(1 << 20))")
    ask(client, "%timetravel off")
    ask(client, "%snapshot")  # waits until all before it is stored
    return (_size(folder) - before) / (1 << 20)


def _size(folder: Path) -> int:
    return sum(path.stat().st_blocks * _SECTOR for path in folder.rglob("*") if path.is_file())
