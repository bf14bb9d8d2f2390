"""``agentvm bench clone``: how long it takes until a VM is there, and what it occupies."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Final

from agentvm_kernel.bench.bed import Bed, Say, Wanted, bed
from agentvm_kernel.bench.book import Book
from agentvm_kernel.bench.figures import Figure
from agentvm_kernel.bench.workshop import OwnSnapshot, Workshop, workshop
from agentvm_kernel.errors import VMError
from agentvm_kernel.supervisor.client import SupervisorClient
from agentvm_kernel.supervisor.messages import Granted, LeaseRequest
from agentvm_kernel.vm.clone import become

_REPEAT: Final = 10

_ACQUIRE: Final = "acquire of a warm VM: request to confirmed identity"
_START: Final = "blank: QEMU started through libvirt, nothing loaded"
_ANSWER: Final = "clone from a blank: to the agent's first answer"
_IDENTITY: Final = "clone from a blank: to the confirmed identity"
_COLD_ANSWER: Final = "clone with no blank at hand: to the agent's first answer"
_COLD_IDENTITY: Final = "clone with no blank at hand: to the confirmed identity"
_OWN: Final = "QEMU's own snapshot-load: to the agent's first answer"
_BOOT: Final = "cold boot of the image: to an idle ipykernel"
_CLONE_MEMORY: Final = "idle clone"
_OWN_MEMORY: Final = "VM after QEMU's own snapshot-load"


async def run(wanted: Wanted, say: Say) -> list[Figure]:
    """Measure acquires, clones and their memory, each in turns with its baseline.

    Args:
        wanted: Image, profile, repetitions (0 for 10).
        say: Told what is going on.

    Raises:
        AgentVMError: no VM could be had.
    """
    book = Book()
    rounds = (wanted.repeat or _REPEAT) + 1
    with bed(wanted) as ours:
        say("preparing image and golden snapshot", None)
        await ours.prepare(say)
        async with workshop(ours, say) as shop, shop.own_snapshot() as own:
            for number in range(rounds):
                say("acquires and clones, in turns", number / rounds)
                # The first round fills caches and does not count.
                await _round(ours, shop, own, book if number else Book())
            say("booting the image, for comparison", None)
            book.add(_BOOT, await shop.boot() * 1000)
    return _figures(book)


async def _round(ours: Bed, shop: Workshop, own: OwnSnapshot, book: Book) -> None:
    await ours.filled()
    await _acquire(ours, book)
    await ours.filled()
    await _clone_to_answer(shop, book)
    await _clone_to_identity(shop, book)
    with book.timed(_OWN):
        await own.load()
    book.weigh(_OWN_MEMORY, own.vm.pid)


async def _acquire(ours: Bed, book: Book) -> None:
    """Acquire a VM as a kernel process does, and give it back."""
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(SupervisorClient(ours.paths, start=False))
        with book.timed(_ACQUIRE):
            lease = await stack.enter_async_context(client.lease(LeaseRequest(owner="bench")))
            event = await anext(lease)
        if not isinstance(event, Granted):
            raise VMError(f"The supervisor had no VM at hand: {event}")


async def _clone_to_answer(shop: Workshop, book: Book) -> None:
    with book.timed(_COLD_ANSWER):
        with book.timed(_START):
            blank = await shop.start_blank()
        with book.timed(_ANSWER):
            vm = await shop.first_answer(blank)
    await vm.end()


async def _clone_to_identity(shop: Workshop, book: Book) -> None:
    with book.timed(_COLD_IDENTITY):
        with book.timed(_START):
            blank = await shop.start_blank()
        with book.timed(_IDENTITY):
            vm = await become(blank, blank.machine.spec.folder.name)
    book.weigh(_CLONE_MEMORY, vm.pid)
    await vm.end()


def _figures(book: Book) -> list[Figure]:
    own, start, boot = book[_OWN], book[_START], book[_BOOT]
    return [
        Figure(book[_ACQUIRE], own, limit=20),
        Figure(book[_ACQUIRE], book[_COLD_IDENTITY]),
        Figure(book[_ANSWER], own, limit=200),
        Figure(book[_IDENTITY], own),
        Figure(book[_COLD_ANSWER], start, limit=600),
        Figure(book[_COLD_ANSWER], boot),
        Figure(book[_COLD_IDENTITY], start),
        Figure(book[f"private memory, {_CLONE_MEMORY}"], book[f"private memory, {_OWN_MEMORY}"], limit=80),
        Figure(book[f"of that clean, {_CLONE_MEMORY}"], book[f"of that clean, {_OWN_MEMORY}"]),
        Figure(book[f"of that dirty, {_CLONE_MEMORY}"], book[f"of that dirty, {_OWN_MEMORY}"]),
        Figure(book[f"proportional memory, {_CLONE_MEMORY}"], book[f"proportional memory, {_OWN_MEMORY}"]),
    ]
