"""A fork bomb, a memory hog, a disk filler and an output flood at the same time: each is held, and nobody else suffers.

How long the cells beside them take is printed and recorded; `agentvm bench pool` says whether it is as promised.
"""

from __future__ import annotations

import secrets
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from kernel_client import Cell, Notebook, notebook
from travel import ok
from vms import environment_of, own_supervisor

from agentvm_kernel.bench.neighbours import BAD, GOOD

pytestmark = [pytest.mark.alone, pytest.mark.timeout(300)]

DEADLINE = 20
CELLS = 25
PROFILE = f"""
[profiles.fenced]
vcpus = 1
memory_mib = 512
disk_gb = 2
cell_deadline = {DEADLINE}
processes = 64
user_memory_mib = 256
output_mib = 8
"""
OVERDUE = f"ran longer than {DEADLINE} s, the deadline of profile fenced"
BEFORE_THAT = {
    "fork bomb": "Resource temporarily unavailable",
    "memory hog": "ended by signal 9",
    "disk filler": "No space left on device",
    "output flood": "more than 8 MiB, the output limit of profile fenced",
}
"""What each comes up against first, if it gets so far while the others take the CPU."""


@pytest.fixture
def notebooks() -> Iterator[tuple[Notebook, dict[str, Notebook]]]:
    """A good one, and the bad ones by what they are."""
    with own_supervisor(PROFILE) as paths, ExitStack() as stack:
        environment = environment_of(paths) | {"AGENTVM_PROFILE": "fenced"}
        good, *bad = (stack.enter_context(notebook(environment)) for _ in range(1 + len(BAD)))
        for one in (good, *bad):
            ok(one, "1")
        yield good, dict(zip(BAD, bad, strict=True))


def milliseconds(nb: Notebook) -> float:
    """The median of some cells whose answers are right; beside each, a shell of the host's."""
    times = []
    for _ in range(CELLS):
        nonce = secrets.token_hex(4)
        began = time.perf_counter()
        assert ok(nb, f"({GOOD}, {nonce!r})").result == f"(2666466670000, {nonce!r})"
        times.append((time.perf_counter() - began) * 1000)
        subprocess.run(["sh", "-c", "true"], check=True)
        time.sleep(0.3)  # who always wants the CPU is no good neighbour
    return statistics.median(times)


def said(cell: Cell) -> str:
    return f"{cell.text()} {cell.text('stderr')} {cell.reply.get('evalue')}"


def test_four_bad_neighbours_are_held_and_a_good_one_works_on(
    notebooks: tuple[Notebook, dict[str, Notebook]], record_property: Callable[[str, object], None]
) -> None:
    good, bad = notebooks
    alone = milliseconds(good)
    sent = {name: one.client.execute(BAD[name]) for name, one in bad.items()}
    beside = milliseconds(good)
    record_property("median cell, alone and beside four bad neighbours, ms", (alone, beside))
    print(f"median cell: alone {alone:.0f} ms, beside four bad neighbours {beside:.0f} ms")
    ended = {name: said(one.finish(sent[name])) for name, one in bad.items()}
    print("came up against another limit before the deadline:", [n for n in ended if BEFORE_THAT[n] in ended[n]])
    for name, text in ended.items():
        assert OVERDUE in text, (name, text[-500:])
    assert any(BEFORE_THAT[name] in text for name, text in ended.items())
    milliseconds(good)
