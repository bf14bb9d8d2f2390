"""A supervisor that leaves, reloads, ends what has lived long enough, and lets wait whom it cannot serve."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from kernel_client import notebook, wait_until
from travel import back, named, ok, value
from vms import environment_of, own_supervisor, qemus, shut_down, supervisor_pid

from agentvm_kernel.config import Paths
from agentvm_kernel.supervisor.client import Lease, SupervisorClient
from agentvm_kernel.supervisor.messages import Ended, Granted, LeaseRequest, LimitsRequest, Progress
from agentvm_kernel.vm import translation
from agentvm_kernel.vm.delta import PAGE
from agentvm_kernel.vm.pagemap import absent_pages

pytestmark = pytest.mark.timeout(300)


async def granted(lease: Lease) -> Granted:
    async for event in lease:
        if isinstance(event, Granted):
            return event
    raise AssertionError("no grant")


async def ended(lease: Lease) -> Ended:
    async for event in lease:
        if isinstance(event, Ended):
            return event
    raise AssertionError("no end")


@asynccontextmanager
async def leased(client: SupervisorClient, owner: str) -> AsyncIterator[tuple[Lease, Granted]]:
    async with asyncio.timeout(120), client.lease(LeaseRequest(owner=owner)) as lease:
        yield lease, await granted(lease)


def test_a_supervisor_that_leaves_keeps_the_machine_and_the_next_goes_on_with_it() -> None:
    with own_supervisor() as paths:
        paths.config.write_text('on_shutdown = "keep"\n' + paths.config.read_text())
        with notebook(named(environment_of(paths), "/tests/keep.ipynb")) as nb:
            ok(nb, "import subprocess\ncounter = 41\nchild = subprocess.Popen(['sleep', '1000'])")
            first = supervisor_pid(paths)
            asyncio.run(shut_down(paths))
            wait_until(lambda: qemus(paths.tag) == [], "the VMs are gone")
            cell = nb.run("counter")
            assert cell.status == "error"
            said = str(cell.reply["evalue"])
            assert "kept as the snapshot" in said
            name = said.split("kept as the snapshot ")[1][:12]
            back(nb, name)
            assert value(nb, "(counter + 1, child.poll())") == (42, None)
            assert supervisor_pid(paths) != first


def test_a_supervisor_that_is_to_end_its_vms_does() -> None:
    with own_supervisor() as paths, notebook(environment_of(paths)) as nb:
        ok(nb, "x = 1")
        asyncio.run(shut_down(paths))
        wait_until(lambda: qemus(paths.tag) == [], "the VMs are gone")
        assert "supervisor" in str(nb.run("x").reply["evalue"])
        ok(nb, "%vm restart")


async def _lives_out(paths: Paths) -> None:
    async with SupervisorClient(paths) as client, leased(client, "short") as (lease, grant):
        limits = await client.set_limits(grant.lease, LimitsRequest(changes={"lifetime": 1.0}))
        assert limits.lifetime == 1
        end = await ended(lease)
        assert end.code == "limit"
        assert "it had been leased for 1 s, its lifetime" in end.reason
        assert "%limits lifetime" in end.hint


async def _waits(paths: Paths) -> None:
    async with SupervisorClient(paths) as client, leased(client, "first"):
        async with asyncio.timeout(60), client.lease(LeaseRequest(owner="second")) as second:
            async for event in second:
                assert isinstance(event, Progress)
                if event.stage.startswith("waiting"):
                    break
            assert event.stage == "waiting for a VM: place 1 of 1 (max_vms allows no more than 1 at a time)"
            (waiting,) = (await client.pool()).waiting
            assert (waiting.place, waiting.owner) == (1, "second")
        async with client.lease(LeaseRequest(owner="third")) as third:
            assert isinstance(await anext(third), Progress)
            assert (await client.pool()).out == 1
            text = paths.config.read_text()
            paths.config.write_text(text.replace("max_vms = 1", "max_vms = 2"))
            assert (await client.reload()).changed == ("max_vms",)
            async with asyncio.timeout(60):
                await granted(third)
            assert (await client.pool()).out == 2


async def _drains(paths: Paths) -> None:
    async with SupervisorClient(paths) as client, leased(client, "one") as (_, grant):
        async with asyncio.timeout(60):
            while not {one.state for one in (await client.vms()).vms} >= {"warm", "blank"}:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        waiting = [pid for pid in qemus(paths.tag) if pid != grant.pid]
        buffers = [(pid, address) for pid in waiting for address in translation._buffers(pid)]
        assert len(buffers) == (len(waiting) if (await client.status()).accelerator == "tcg" else 0)
        assert [absent_pages(pid, address, translation._ROOM // PAGE) for pid, address in buffers] == [[]] * len(
            buffers
        )
        await client.drain()
        assert [one.id for one in (await client.vms()).vms] == [grant.vm]
        assert qemus(paths.tag) == [grant.pid]
        assert (await client.pool()).drained
        async with leased(client, "two"):
            assert len(qemus(paths.tag)) == 2
        await client.fill()
        async with asyncio.timeout(60):
            while not any(one.warm for one in (await client.pool()).stocks):  # noqa: ASYNC110
                await asyncio.sleep(0.05)


def test_lifetime_queue_reload_and_drain() -> None:
    with own_supervisor() as paths:
        paths.config.write_text("max_vms = 1\n" + paths.config.read_text())
        asyncio.run(_lives_out(paths))
        asyncio.run(_waits(paths))
        asyncio.run(_drains(paths))
