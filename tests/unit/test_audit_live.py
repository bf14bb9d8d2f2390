"""What goes into the audit log is told live: to many, in order, to slow ones with the number of what they missed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fake_hypervisor import FakeHypervisor
from supervisor_bed import first_grant, make_paths, serving

from agentvm_kernel.errors import ApiError
from agentvm_kernel.observe.audit import AuditLog
from agentvm_kernel.observe.events.execution import ExecutionStarted
from agentvm_kernel.observe.events.vm import LeaseAcquired, LeaseReleased, VMStopped
from agentvm_kernel.observe.listener import WAITING, News
from agentvm_kernel.supervisor.audit_messages import AuditNews
from agentvm_kernel.supervisor.client import SupervisorClient
from agentvm_kernel.supervisor.core import Supervisor
from agentvm_kernel.supervisor.messages import LeaseRequest, LimitsRequest


@pytest.fixture
def log(tmp_path: Path) -> Iterator[AuditLog]:
    log = AuditLog(tmp_path / "audit", clock=lambda: 2.5)
    yield log
    log.close()


def stopped(number: int) -> VMStopped:
    return VMStopped(vm=f"vm-{number}")


@asynccontextmanager
async def supervised(folder: Path) -> AsyncIterator[tuple[Supervisor, Path]]:
    async with serving(make_paths(folder), FakeHypervisor()) as supervisor:
        yield supervisor, folder


async def test_every_listener_hears_everything_in_order_from_when_it_began(log: AuditLog) -> None:
    log.record(stopped(0))
    with log.listen() as first:
        log.record(stopped(1))
        with log.listen() as second:
            log.record(stopped(2))
            assert [await anext(first), await anext(first)] == [News(2.5, stopped(n), 0) for n in (1, 2)]
            assert await anext(second) == News(2.5, stopped(2), 0)


async def test_what_other_threads_record_wakes_a_listener(log: AuditLog) -> None:
    with log.listen() as listener:
        waiting = asyncio.ensure_future(anext(listener))
        await asyncio.sleep(0)
        thread = threading.Thread(target=log.record, args=(stopped(7),))
        thread.start()
        async with asyncio.timeout(10):
            assert (await waiting).event == stopped(7)
        thread.join()


async def test_a_slow_listener_loses_the_oldest_and_is_told_how_many(log: AuditLog) -> None:
    with log.listen() as listener:
        for number in range(WAITING + 3):
            log.record(stopped(number))
        heard = [await anext(listener) for _ in range(WAITING)]
        assert [one.event for one in heard] == [stopped(number) for number in range(3, WAITING + 3)]
        assert [one.missed for one in heard] == [3] + [0] * (WAITING - 1)
        log.record(stopped(999))
        assert await anext(listener) == News(2.5, stopped(999), 0)


async def test_a_lease_is_told_of_itself_only(log: AuditLog) -> None:
    with log.listen("l1") as listener:
        log.record(LeaseAcquired(vm="vm-1", lease="l2"))
        log.record(stopped(1))
        log.record(LeaseAcquired(vm="vm-1", lease="l1"))
        assert (await anext(listener)).event == LeaseAcquired(vm="vm-1", lease="l1")


async def test_listening_ends_with_the_log_after_what_was_recorded(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    with log.listen() as listener:
        waiting = asyncio.ensure_future(anext(listener, None))
        await asyncio.sleep(0)
        await asyncio.to_thread(log.close)
        async with asyncio.timeout(10):
            assert await waiting is None
    with log.listen() as late:
        async with asyncio.timeout(10):
            assert await anext(late, None) is None


async def test_who_does_not_listen_any_more_costs_nothing(log: AuditLog) -> None:
    with log.listen() as listener:
        pass
    log.record(stopped(1))
    assert not log._listeners
    assert not listener._waiting


async def test_clients_are_told_of_all_leases_or_of_one_until_it_is_over(short_tmp: Path) -> None:
    async with (
        supervised(short_tmp),
        SupervisorClient(make_paths(short_tmp), start=False) as client,
        client.events() as everything,
    ):
        leasing = client.lease(LeaseRequest(owner="me", notebook="n.ipynb"))
        lease = (await first_grant(await leasing.__aenter__())).lease
        async with client.events(lease) as mine, client.lease(LeaseRequest(owner="other")) as other:
            others = (await first_grant(other)).lease
            for one in (others, lease):
                await client.set_limits(one, LimitsRequest(changes={"cell_deadline": 7}))
            await leasing.__aexit__(None, None, None)
            async with asyncio.timeout(10):
                heard = [news async for news in mine]
            assert [one.event.event for one in heard] == ["configuration_changed", "lease_released"]
            assert {one.event.lease for one in heard if not isinstance(one.event, VMStopped)} == {lease}
            seen: list[AuditNews] = []
            async with asyncio.timeout(10):
                while not (seen and isinstance(seen[-1].event, LeaseReleased)):
                    seen.append(await anext(everything))
        changed = [one.event.lease for one in seen if one.event.event == "configuration_changed"]
        assert changed == [others, lease]
        assert {one.event.lease for one in seen if isinstance(one.event, LeaseAcquired)} == {lease, others}


async def test_to_follow_ends_when_the_supervisor_leaves(short_tmp: Path) -> None:
    async with SupervisorClient(make_paths(short_tmp), start=False) as client:
        served = supervised(short_tmp)
        await served.__aenter__()
        async with client.events() as events:
            leaving = asyncio.create_task(served.__aexit__(None, None, None))
            async with asyncio.timeout(20):
                last = [news async for news in events][-1]
                await leaving
            assert last.event.event == "supervisor_stopped"


async def test_the_longest_event_arrives_and_a_client_that_reads_nothing_is_told_what_it_missed(
    short_tmp: Path,
) -> None:
    long = ExecutionStarted(vm="v", digest="d" * 64, notebook="\x01" * 5000, code="\x02" * 9000, allow=("\x03" * 600,))
    async with supervised(short_tmp) as (supervisor, _):
        paths = make_paths(short_tmp)
        async with SupervisorClient(paths, start=False) as client, client.events() as events:
            supervisor.audit.record(long)
            assert (await anext(one async for one in events if one.event.event == "execution_started")).event == long
            for _ in range(WAITING * 5):
                supervisor.audit.record(long)
                await asyncio.sleep(0)
            missed = 0
            async with asyncio.timeout(60):
                while not missed:
                    missed = (await anext(events)).missed
            assert missed < WAITING * 4


async def test_there_are_no_events_of_a_lease_that_is_not_there(short_tmp: Path) -> None:
    async with supervised(short_tmp), SupervisorClient(make_paths(short_tmp), start=False) as client:
        with pytest.raises(ApiError) as caught:
            async with client.events("none"):
                pass
        assert caught.value.code == "no_lease"
