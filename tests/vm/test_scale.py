"""Many VMs at once, many notebooks at once, and very many one after the other: each answers, and nothing stays behind.

With AGENTVM_SOAK=1 as many as are promised. How fast it goes is printed (`pytest -s`) and recorded, not tested.
"""

from __future__ import annotations

import ast
import asyncio
import hashlib
import secrets
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack
from threading import Barrier

import pytest
from kernel_client import notebook
from soak import SMALL, answering, at_rest, private_mib, size, tell_nonce, written_mib
from vms import environment_of, own_supervisor

from agentvm_kernel import Session
from agentvm_kernel.config import Paths
from agentvm_kernel.supervisor.client import SupervisorClient

VMS = size(12, 40)
NOTEBOOKS, KERNELS = size(6, 20), size(2, 4)
CYCLES = size(25, 500)
WARM_UP = size(5, 10)
GROWTH_MIB = 6  # the allocator's; a leak of 16 KiB a cycle would be more
LATE_THREADS = 12  # bounded pools of threads start one when it is first needed; a leak would be one a cycle

POOL = """
[pool]
warm_max = 2
blanks_max = 2
"""

pytestmark = [pytest.mark.alone, pytest.mark.timeout(size(300, 3000))]

Say = Callable[[str, object], None]


@pytest.fixture(scope="module")
def paths() -> Iterator[Paths]:
    with own_supervisor(SMALL + POOL) as paths:
        yield paths


async def _vms(paths: Paths, say: Say) -> None:
    async with SupervisorClient(paths) as client, AsyncExitStack() as stack:
        began = time.monotonic()
        entering = [stack.enter_async_context(answering(client, "small")) for _ in range(VMS)]
        leased = await asyncio.gather(*entering)
        say(f"{VMS} VMs are there and linked after, s", round(time.monotonic() - began, 2))
        began = time.monotonic()
        await asyncio.gather(*(tell_nonce(runner) for _, runner in leased))
        say("all have answered two cells after, s", round(time.monotonic() - began, 2))
        say("private memory of a VM, MiB", round(statistics.median(private_mib(grant.pid) for grant, _ in leased), 1))
        assert len({grant.vm for grant, _ in leased}) == VMS
        assert (await client.pool()).out == VMS


def test_many_vms_at_once_each_answer(paths: Paths, record_property: Say) -> None:
    asyncio.run(_vms(paths, recorded(record_property)))


def test_many_notebooks_execute_a_cell_at_the_same_time(paths: Paths, record_property: Say) -> None:
    nonces = [secrets.token_hex(8) for _ in range(NOTEBOOKS)]
    codes = [f"import hashlib\n({nonce!r}, hashlib.sha256({nonce!r}.encode()).hexdigest())" for nonce in nonces]
    everybody = Barrier(NOTEBOOKS - KERNELS + 1)

    def in_session(number: int) -> str:
        with Session(profile="small", notebook=f"scale/{number}", paths=paths) as session:
            everybody.wait(240)
            return session.run(codes[number]).result

    environment = environment_of(paths) | {"AGENTVM_PROFILE": "small"}
    with ExitStack() as stack:
        kernels = [stack.enter_context(notebook(environment)) for _ in range(KERNELS)]
        threads = stack.enter_context(ThreadPoolExecutor(NOTEBOOKS))
        sessions = [threads.submit(in_session, number) for number in range(KERNELS, NOTEBOOKS)]
        everybody.wait(240)
        began = time.monotonic()
        sent = [kernel.client.execute(code) for kernel, code in zip(kernels, codes, strict=False)]
        results = [kernel.finish(msg_id).result for kernel, msg_id in zip(kernels, sent, strict=True)]
        results += [session.result() for session in sessions]
        recorded(record_property)(f"{NOTEBOOKS} notebooks have all answered after, s", time.monotonic() - began)
    assert [ast.literal_eval(result) for result in results] == [
        (nonce, hashlib.sha256(nonce.encode()).hexdigest()) for nonce in nonces
    ]


async def _cycle(client: SupervisorClient) -> None:
    async with answering(client, "small") as (_, runner):
        await tell_nonce(runner)


async def _cycles(paths: Paths, say: Say) -> None:
    async with SupervisorClient(paths) as client:
        for _ in range(WARM_UP):
            await _cycle(client)
        pid = (await client.status()).pid
        before, memory = await at_rest(client, paths), await written_mib(pid)
        await client.fill()
        for _ in range(CYCLES):
            await _cycle(client)
        after, growth = await at_rest(client, paths), await written_mib(pid) - memory
    say("the supervisor has, before", before | {"written MiB": round(memory, 1)})
    say(f"after {CYCLES} acquires, cells and releases", after | {"written MiB": round(memory + growth, 1)})
    assert after.pop("threads") - before.pop("threads") <= LATE_THREADS
    assert after == before
    assert growth < GROWTH_MIB


def test_acquire_run_release_over_and_over_leaves_nothing(paths: Paths, record_property: Say) -> None:
    asyncio.run(_cycles(paths, recorded(record_property)))


def recorded(record_property: Say) -> Say:
    def say(name: str, value: object) -> None:
        record_property(name, value)
        print(f"{name}: {value}")

    return say
