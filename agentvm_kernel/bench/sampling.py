"""``agentvm bench sampling``: what it costs to measure VMs once a second, beside libvirt's own statistics."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Final

from agentvm_kernel.bench.bed import Say, Wanted
from agentvm_kernel.bench.book import Book
from agentvm_kernel.bench.figures import Figure
from agentvm_kernel.bench.stage import Stage, stage
from agentvm_kernel.observe.process import weigh
from agentvm_kernel.observe.sampler import Sampler
from agentvm_kernel.settings import Pool
from agentvm_kernel.supervisor.messages import LeaseRequest

_REPEAT: Final = 5
_VMS: Final = 4
_LOOKS: Final = 60
_QUESTIONS: Final = 5

_CPU: Final = "sampling {} idle VMs once a second"
_CPU_OF_LIBVIRT: Final = "getAllDomainStats of {} idle VMs once a second"
_WALL: Final = "one look at {} idle VMs"
_WALL_OF_LIBVIRT: Final = "one getAllDomainStats of {} idle VMs"
_CLOSE: Final = "one close look at the memory of one VM, each 20 to 60 s"


class _Clock:
    """Goes on by a second with each look, so that a minute of looks does not take a minute."""

    def __init__(self) -> None:
        self.now = time.monotonic()

    def __call__(self) -> float:
        return self.now


async def run(wanted: Wanted, say: Say) -> list[Figure]:
    """Measure the CPU time of this process for a minute of looks at running VMs, in turns with libvirt's.

    Args:
        wanted: Image, profile, repetitions (of a minute; 0 for 5), number of VMs (0 for 4).
        say: Told what is going on.

    Raises:
        AgentVMError: no VM could be had.
    """
    count, rounds = wanted.vms or _VMS, (wanted.repeat or _REPEAT) + 1
    book = Book()
    async with stage(wanted, say, pool=Pool(warm=0, blanks=0), max_vms=count) as ours, AsyncExitStack() as stack:
        for number in range(1, count):
            say(f"leasing {count} VMs", number / count)
            lease = await ours.supervisor.acquire(LeaseRequest(owner=f"bench {number}"), lambda _: None)
            stack.push_async_callback(ours.supervisor.release, lease)
        await ours.supervisor.stats.close()  # it would measure them, too
        clock = _Clock()
        sampler = Sampler(ours.supervisor.stats.subjects, clock=clock)
        for number in range(rounds):
            say("looking, in turns", number / rounds)
            # The first round looks closely at all of them, and does not count.
            await _round(ours, sampler, clock, book if number else Book())
    return _figures(book, count)


async def _round(ours: Stage, sampler: Sampler, clock: _Clock, book: Book) -> None:
    async def look() -> None:
        clock.now += 1
        await sampler.look()

    wall, share = await _spent(look, _LOOKS)
    book.add(_WALL, wall, "ms")
    book.add(_CPU, share, "% of a core")
    wall, share = await _spent(ours.hypervisor.domain_stats, _QUESTIONS)
    book.add(_WALL_OF_LIBVIRT, wall, "ms")
    book.add(_CPU_OF_LIBVIRT, share, "% of a core")
    machine = ours.lease.vm.machine
    with book.timed(_CLOSE):
        weigh(machine.pid, machine.spec.memory)


async def _spent(work: Callable[[], Awaitable[object]], times: int) -> tuple[float, float]:
    """Do something several times.

    Returns:
        How long it takes once, milliseconds; and what all threads of this process computed for it, percent of a core if
        it is done once a second.
    """
    began, cpu = time.perf_counter(), time.process_time()
    for _ in range(times):
        await work()
    return (time.perf_counter() - began) / times * 1000, (time.process_time() - cpu) / times * 100


def _figures(book: Book, count: int) -> list[Figure]:
    cpu, wall, of_libvirt, wall_of_libvirt = (
        book[name].renamed(name.format(count)) for name in (_CPU, _WALL, _CPU_OF_LIBVIRT, _WALL_OF_LIBVIRT)
    )
    return [
        Figure(cpu, of_libvirt, limit=0.075 * count),
        Figure(wall, wall_of_libvirt),
        Figure(book[_CLOSE], wall_of_libvirt),
    ]
