"""Part of ``agentvm bench pool``: a well-behaved notebook's cells alone and beside bad neighbours, each of its kind."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack
from typing import Final

from agentvm_kernel.bench.asking import ask
from agentvm_kernel.bench.bed import Bed, Say, Wanted, bed
from agentvm_kernel.bench.figures import Figure, Series
from agentvm_kernel.bench.kernel import notebook

FORK_BOMB: Final = """\
import os
first, told = os.getpid(), False
while True:
    try:
        os.fork()
    except OSError as error:
        if os.getpid() == first and not told: print(error.strerror, flush=True); told = True
"""
MEMORY_HOG: Final = """\
import subprocess, sys
grow = "hoard = []\\nwhile True: hoard.append(b'x' * (8 << 20))"
while True: print("ended by signal", -subprocess.run([sys.executable, "-c", grow]).returncode, flush=True)
"""
DISK_FILLER: Final = """\
import os
file, size = os.open("/home/agent/full", os.O_RDWR | os.O_CREAT), 0
try:
    while True: os.posix_fallocate(file, size, 64 << 20); size += 64 << 20
except OSError as error: print(error.strerror, flush=True)
while True:
    for place in range(0, size, 1 << 20): os.pwrite(file, os.urandom(1 << 10) * 1024, place)
"""
OUTPUT_FLOOD: Final = "while True: print('x' * 65535)"

BAD: Final = {
    "fork bomb": FORK_BOMB,
    "memory hog": MEMORY_HOG,
    "disk filler": DISK_FILLER,
    "output flood": OUTPUT_FLOOD,
}
HELD_TO: Final = "%limits timeout=1h processes=64 memory=256MiB"
GOOD: Final = "sum(number * number for number in range(20_000))"

_REPEAT: Final = 60
_WARM_UP: Final = 20
_PAUSE_SECONDS: Final = 0.3  # somebody at work, who reads what came


def run(wanted: Wanted, say: Say) -> list[Figure]:
    """Measure the cells of a notebook, then again from when its neighbours have begun.

    Args:
        wanted: Image, profile, repetitions (of the cell, 60 at most; 0 for 60).
        say: Told what is going on.

    Raises:
        AgentVMError: no VM could be had, or the kernelspec is not installed.
    """
    repeat = min(wanted.repeat or _REPEAT, _REPEAT)
    with bed(wanted) as ours:
        say("preparing image and golden snapshot", None)
        asyncio.run(ours.prepare(say))
        say("starting kernels", None)
        alone, beside = _measure(ours, repeat, say)
    return [Figure(beside, alone, limit=2, limit_on="ratio")]


def _measure(ours: Bed, repeat: int, say: Say) -> tuple[Series, Series]:
    with ExitStack() as stack:
        _, good = stack.enter_context(notebook(ours))
        bad = {name: stack.enter_context(notebook(ours))[1] for name in BAD}
        for client in bad.values():
            ask(client, HELD_TO)
        for _ in range(_WARM_UP):
            ask(good, GOOD)
        asyncio.run(ours.filled())
        series = [Series(f"a cell every {_PAUSE_SECONDS} s, {where}", "ms") for where in ("alone", _beside())]
        for one in series:
            if one is series[1]:
                for name, client in bad.items():
                    client.execute(BAD[name])
            for number in range(repeat):
                say(one.name, number / repeat)
                one.add(ask(good, GOOD) * 1000)
                time.sleep(_PAUSE_SECONDS)
        return series[0], series[1]


def _beside() -> str:
    *others, last = BAD
    return f"beside {', '.join(others)} and {last}"
