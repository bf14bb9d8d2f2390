"""Snapshots, rollbacks and forks over the supervisor's API, with child processes' memory in place of VMs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from audited import audited
from guest_process import MemoryHypervisor, MemoryMachine
from kernel_harness import within
from supervisor_bed import COLD, Leased, first_grant, leased, make_paths, serving

from agentvm_kernel.errors import ApiError, DiskFullError, RequestError, SupervisorError
from agentvm_kernel.settings import Settings, SnapshotSettings
from agentvm_kernel.snapshots.notes import Cell
from agentvm_kernel.snapshots.pins import is_used
from agentvm_kernel.supervisor import bases, forks, history
from agentvm_kernel.supervisor.answers import Forks
from agentvm_kernel.supervisor.budget import Budget
from agentvm_kernel.supervisor.client import SupervisorClient
from agentvm_kernel.supervisor.fork_messages import ForkEnded, ForkGranted, ForkRequest
from agentvm_kernel.supervisor.messages import Ended, LeaseRequest, Progress
from agentvm_kernel.supervisor.network_messages import NetworkRequest
from agentvm_kernel.supervisor.snapshot_messages import SnapshotInfo, SnapshotRequest
from agentvm_kernel.vm.chain import LONG, LONGEST
from agentvm_kernel.vm.clone import VM
from agentvm_kernel.vm.delta import PAGE
from agentvm_kernel.vm.memory import Buffer, GuestMemory


class Session(Leased):
    """A client with a lease, whose machine has a memory."""

    async def snapshot(self, label: str = "", **fields: bool) -> SnapshotInfo:
        return await self.client.snapshot(self.id, SnapshotRequest(label=label, **fields))

    def forks(self, count: int, randomness: str = "diverge") -> Forks:
        return self.client.forks(self.id, ForkRequest(count=count, randomness=randomness))

    def used(self) -> set[str]:
        """Return the ids of the snapshots that are in use."""
        folder = self.supervisor.paths.state / "snapshots" / self.lease.terms.tree.id
        return {path.name for path in folder.iterdir() if path.is_dir() and is_used(path)}


@asynccontextmanager
async def sessions(folder: Path, settings: Settings = COLD) -> AsyncIterator[Session]:
    async with leased(folder, MemoryHypervisor(), settings) as ours:
        yield Session(**vars(ours))


@pytest.fixture
async def session(short_tmp: Path) -> AsyncIterator[Session]:
    async with sessions(short_tmp) as session:
        yield session


def byte_of(machine: MemoryMachine, page: int) -> int:
    """Return what ``GuestProcess.touch`` wrote into a page."""
    buffer = Buffer(PAGE)
    GuestMemory(machine.pid, machine.spec.memory, machine.spec.hardware.memory_mib << 20).read([(page, 1)], buffer)
    return buffer.view(PAGE)[page % PAGE]


def is_awake(machine: MemoryMachine) -> bool:
    moves = [call for call in machine.calls if call in {"pause", "resume"}]
    return not machine.ended.done() and moves[-1] == "resume"


async def until_gone(machine: MemoryMachine) -> None:
    await asyncio.wait_for(asyncio.shield(machine.ended), 30)


async def test_snapshots_are_a_line_and_the_last_is_current(session: Session) -> None:
    assert (await session.client.snapshots(session.id)).current == ""
    session.machine.guest.touch(1, 2)
    first = await session.snapshot("a")
    second = await session.snapshot()
    tree = await session.client.snapshots(session.id)
    assert tree.snapshots == (first, second)
    assert (first.parent, second.parent, tree.current) == ("", first.id, second.id)
    assert (first.label, first.written, second.written) == ("a", 2 * 256, 0)
    assert tree.used == first.size + second.size
    assert first.pause_ms > 0
    assert session.used() == {second.id}
    assert is_awake(session.machine)


@pytest.mark.parametrize(("label", "says", "code"), [("a", "taken", "label_taken"), ("../x", "label", "snapshot")])
async def test_label_that_cannot_be_had_costs_no_pause(session: Session, label: str, says: str, code: str) -> None:
    first = await session.snapshot("a")
    calls = list(session.machine.calls)
    with pytest.raises(ApiError, match=says) as caught:
        await session.snapshot(label)
    assert caught.value.code == code
    assert session.machine.calls == calls
    assert (await session.client.snapshots(session.id)).snapshots == (first,)


async def test_snapshot_that_qemu_refuses_leaves_the_vm_running(session: Session) -> None:
    session.machine.guest.touch(1)
    for wait_stored in (True, False):
        session.machine.faults.add("save")
        with pytest.raises(ApiError, match="refused to save"):
            await session.snapshot(wait_stored=wait_stored)
        assert is_awake(session.machine)
    assert (await session.snapshot()).written == 256


async def test_snapshot_of_no_lease_is_refused(session: Session) -> None:
    with pytest.raises(ApiError, match="no lease"):
        await session.client.snapshot("nobody", SnapshotRequest())


async def test_rollback_gives_the_memory_of_then_and_the_old_vm_is_gone(session: Session) -> None:
    session.machine.guest.touch(1, value=7)
    first = await session.snapshot("a")
    session.machine.guest.touch(1, value=9)
    second = await session.snapshot("b")
    session.machine.guest.touch(1, value=11)
    old = session.machine
    replaced = await session.client.rollback(session.id, "~1")
    assert replaced.snapshot == first
    assert (replaced.granted.lease, replaced.granted.snapshot) == (session.id, first.id)
    assert replaced.granted.pid == session.machine.pid != old.pid
    await until_gone(old)
    assert byte_of(session.machine, 1) == 7
    assert [request["op"] for request in session.machine.ops] == ["identity"]
    assert session.machine.ops[0]["randomness"] == "keep"
    assert session.used() == {first.id}
    assert byte_of(session.hypervisor.of((await session.client.rollback(session.id, second.id)).granted.pid), 1) == 9
    assert session.used() == {second.id}
    assert (await session.client.snapshots(session.id)).snapshots == (first, second)


async def test_lease_ends_with_the_vm_it_has_now(session: Session) -> None:
    await session.snapshot("a")
    await session.client.rollback(session.id, "a")
    session.machine.die("QEMU was killed by SIGKILL")
    ended = await anext(session.events)
    assert isinstance(ended, Ended)
    assert ended.reason == "QEMU was killed by SIGKILL."


@pytest.mark.parametrize("to", ["nothing", "~7", "x" * 300])
async def test_unknown_reference_costs_no_pause(session: Session, to: str) -> None:
    await session.snapshot("a")
    calls, machine = list(session.machine.calls), session.machine
    for ask in (session.client.rollback, session.client.plan_rollback):
        with pytest.raises(ApiError, match="no snapshot") as caught:
            await ask(session.id, to)
        assert caught.value.code == "no_snapshot"
    assert session.machine is machine
    assert machine.calls == calls


async def test_rollback_without_a_snapshot_says_what_to_do(session: Session) -> None:
    with pytest.raises(ApiError, match="no snapshot to go back to") as caught:
        await session.client.rollback(session.id, "")
    assert "%snapshot" in caught.value.hint


@pytest.mark.parametrize("step", ["pause", "load"])
async def test_failed_rollback_leaves_the_old_vm_awake(session: Session, step: str) -> None:
    await session.snapshot("a")
    second = await session.snapshot("b")
    machine = session.machine
    session.hypervisor.faults.add(step)
    with pytest.raises(ApiError, match=f"refused to {step}"):
        await session.client.rollback(session.id, "a")
    assert session.machine is machine
    assert is_awake(machine)
    assert machine.ops[-1]["op"] == "clock"
    assert session.used() == {second.id}
    assert (await session.client.rollback(session.id, "a")).snapshot.label == "a"


async def test_plan_says_what_would_be_left(session: Session) -> None:
    first, second, third = [await session.snapshot(label) for label in "abc"]
    session.machine.guest.touch(1, 5, 6)
    plan = await session.client.plan_rollback(session.id, "a")
    assert plan.target == first
    assert plan.left == (third, second)
    assert plan.written == 3 * PAGE
    assert plan.seconds >= 0
    await session.client.rollback(session.id, "a")
    assert (await session.client.plan_rollback(session.id, "c")).left == ()


async def ran(session: Session, run: int, label: str, *, busy: bool = False) -> None:
    await session.client.snapshot(session.id, SnapshotRequest(label=label, cell=Cell(run=run), busy=busy))


async def way(session: Session) -> list[tuple[str, int]]:
    tree = await session.client.snapshots(session.id)
    assert tree.vm == session.lease.vm.id
    return [(leg.vm, leg.run) for leg in tree.way]


async def test_the_way_to_the_present_names_the_runs_of_each_vm_on_it(session: Session) -> None:
    first = session.lease.vm.id
    assert await way(session) == []
    await ran(session, 2, "a")
    await ran(session, 5, "b")
    assert await way(session) == []
    await session.client.rollback(session.id, "a")
    second = session.lease.vm.id
    assert await way(session) == [(first, 2)]
    await ran(session, 7, "c")
    await session.client.rollback(session.id, "b")
    assert await way(session) == [(first, 5)]
    await session.client.rollback(session.id, "c")
    assert await way(session) == [(first, 2), (second, 7)]


async def test_a_run_that_a_snapshot_froze_is_not_behind_it(session: Session) -> None:
    first = session.lease.vm.id
    await ran(session, 4, "frozen", busy=True)
    await session.client.rollback(session.id, "frozen")
    assert await way(session) == [(first, 3)]


async def test_the_way_is_known_though_what_lies_on_it_was_removed(session: Session) -> None:
    first = session.lease.vm.id
    await ran(session, 1, "a")
    await session.client.rollback(session.id, "a")
    second = session.lease.vm.id
    await ran(session, 2, "b")
    await session.client.rollback(session.id, "b")
    tree = session.lease.terms.tree
    await asyncio.to_thread(tree.remove, (await asyncio.to_thread(tree.find, "a")).id)
    await session.client.rollback(session.id, "b")
    assert await way(session) == [(first, 1), (second, 2)]


async def test_snapshot_not_waited_for_is_there_in_the_end(session: Session) -> None:
    session.machine.guest.touch(1)
    early = await session.snapshot("a", wait_stored=False)
    assert not early.stored
    later = await session.snapshot()
    stored, _ = (await session.client.snapshots(session.id)).snapshots
    assert (stored.id, stored.label, stored.parent, later.parent) == (early.id, "a", early.parent, early.id)
    assert stored.pause_ms == early.pause_ms


async def test_failure_to_store_in_the_background_is_told_to_who_asks_next(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise DiskFullError("There is no room.")

    session.machine.guest.touch(1)
    with monkeypatch.context() as patch:
        patch.setattr(history, "_hand_over", fail)
        await session.snapshot("a", wait_stored=False)
        with pytest.raises(ApiError, match="no room") as caught:
            await session.snapshot("b", wait_stored=False)
    assert caught.value.code == "disk_full"
    assert not list(session.machine.spec.folder.glob("*.delta"))
    session.machine.guest.touch(2)
    info = await session.snapshot("c", wait_stored=False)
    await session.client.rollback(session.id, "c")
    assert (await session.client.snapshots(session.id)).snapshots[0].written == 2 * 256
    assert [byte_of(session.machine, page) for page in (1, 2)] == [7, 7]
    assert session.used() == {info.id}


async def test_snapshot_over_the_quota_is_refused_and_what_it_held_is_not_lost(short_tmp: Path) -> None:
    small = COLD.model_copy(update={"snapshots": SnapshotSettings(quota_gb=1e-9)})
    async with sessions(short_tmp, small) as session:
        session.machine.guest.touch(1)
        session.machine.write_disk()
        with pytest.raises(ApiError) as caught:
            await session.snapshot()
        assert caught.value.code == "quota"
        assert is_awake(session.machine)
        assert session.lease.vm.unsaved_runs == [(1, 1)]
        assert [layer.name for layer in session.lease.vm.unsaved_layers] == ["disk-1.qcow2"]


async def test_the_chain_of_disk_layers_stays_short(session: Session) -> None:
    names = []
    for _ in range(3 * LONG):
        session.machine.write_disk()
        names.append((await session.snapshot()).id)
        await session.lease.vm.settle()
    merges = [call for call in session.machine.calls if call.startswith("merge")]
    found = {stored.id: stored.snapshot for stored in session.lease.terms.tree.snapshots()}
    assert list(found) == names
    assert max(snapshot.depth for snapshot in found.values()) == LONG + 1
    assert sum(snapshot.manifest.over is not None for snapshot in found.values()) == len(merges) > 1
    assert session.machine.calls.index(merges[0]) > session.machine.calls.index("freeze")


async def test_the_chain_stays_short_for_one_who_always_goes_back(session: Session) -> None:
    for _ in range(2 * LONGEST):
        session.machine.write_disk()
        await session.client.rollback(session.id, (await session.snapshot()).id)
    depths = [stored.snapshot.depth for stored in session.lease.terms.tree.snapshots()]
    assert max(depths) == LONGEST
    assert len(depths) == 2 * LONGEST


async def test_layers_are_not_merged_where_the_next_snapshot_would_not_fit(short_tmp: Path) -> None:
    # Each snapshot takes more than 200 kB: there is room for them, but not for a layer as large as all together.
    small = COLD.model_copy(update={"snapshots": SnapshotSettings(quota_gb=0.0045)})
    async with sessions(short_tmp, small) as session:
        for _ in range(LONG + 2):
            session.machine.write_disk()
            await session.snapshot()
            await session.lease.vm.settle()
        assert not [call for call in session.machine.calls if call.startswith("merge")]


async def grants(events: Forks, count: int) -> dict[int, ForkGranted]:
    found: dict[int, ForkGranted] = {}
    while len(found) < count:
        event = await anext(events)
        assert isinstance(event, Progress | ForkGranted), event
        if isinstance(event, ForkGranted):
            found[event.fork] = event
    return found


@pytest.mark.parametrize("randomness", ["common", "diverge"])
async def test_forks_are_clones_of_the_vm_as_it_is(session: Session, randomness: str) -> None:
    session.machine.guest.touch(1)
    async with session.forks(3, randomness) as events:
        granted = await grants(events, 3)
        assert sorted(granted) == [1, 2, 3]
        machines = [session.hypervisor.of(one.granted.pid) for one in granted.values()]
        assert [byte_of(machine, 1) for machine in machines] == [7, 7, 7]
        (point,) = (await session.client.snapshots(session.id)).snapshots
        assert {one.granted.snapshot for one in granted.values()} == {point.id}
        assert point.kind == "fork"
        seeds = {machine.ops[0].get("seed") for machine in machines}
        assert {machine.ops[0]["randomness"] for machine in machines} == {randomness}
        assert (seeds == {None}) == (randomness == "diverge")
        assert len(seeds) == 1
        assert {number: session.hypervisor.of(one.granted.pid).ops[0]["fork"] for number, one in granted.items()} == {
            1: 1, 2: 2, 3: 3
        }  # fmt: skip
        assert len({str(machine.ops[0]["entropy"]) for machine in machines}) == 3
        assert is_awake(session.machine)
        session.supervisor.audit.flush()
        (made,) = audited(session.supervisor.paths.state, "forks_made")
        assert (made["count"], made["snapshot"], made.get("randomness", "diverge")) == (3, point.id, randomness)
        assert bool(made.get("seed")) == (randomness == "common"), "what diverges has no seed unless one is given"
    for machine in machines:
        await until_gone(machine)
    assert session.lease.forks == {}
    assert session.used() == {point.id}  # by the VM itself


async def test_only_as_many_forks_run_as_there_are_slots(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Budget, "slots", lambda _: 1)
    async with session.forks(3) as events:
        (first,) = await grants(events, 1)
        await session.client.rest_fork(session.id, first)
        (second,) = await grants(events, 1)
        assert set(session.lease.forks) == {first, second}
        await session.client.end_fork(session.id, second)
        (third,) = await grants(events, 1)
        assert set(session.lease.forks) == {first, third}
        await session.client.rest_fork(session.id, third)
        with pytest.raises(StopAsyncIteration):
            await anext(events)
    assert set(session.lease.forks) == {first, third}


@pytest.fixture
def second_clone(session: Session, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """The second clone is made when this is set."""
    pool, may_begin, begun = session.supervisor.pool, asyncio.Event(), iter(range(9))
    original = pool.clone

    async def clone(*arguments: Any) -> VM:
        if next(begun) == 1:
            await may_begin.wait()
        return await original(*arguments)

    monkeypatch.setattr(pool, "clone", clone)
    return may_begin


def has_way_out(session: Session, fork: int) -> bool:
    return session.lease.forks[fork].vm in session.lease.network._accesses


async def test_forks_have_their_way_out_when_all_have_begun(
    session: Session, second_clone: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forks, "_FIRST_MOMENT", 1000)
    async with session.forks(2) as events:
        (first,) = await grants(events, 1)
        assert not has_way_out(session, first)
        second_clone.set()
        (second,) = await grants(events, 1)
        assert has_way_out(session, first)
        assert has_way_out(session, second)


async def test_a_fork_does_not_wait_long_for_its_way_out(session: Session, second_clone: asyncio.Event) -> None:
    async with session.forks(2) as events:
        (first,) = await grants(events, 1)
        assert not has_way_out(session, first)
        await within(lambda: has_way_out(session, first))
        second_clone.set()
        await grants(events, 1)


async def test_a_fork_that_rests_has_its_way_out_when_it_is_adopted(
    session: Session, second_clone: asyncio.Event
) -> None:
    async with session.forks(2) as events:
        (first,) = await grants(events, 1)
        await session.client.rest_fork(session.id, first)
        second_clone.set()
        await grants(events, 1)
        assert not has_way_out(session, first)
    await session.client.adopt(session.id, first)
    assert session.lease.vm in session.lease.network._accesses


async def test_nothing_is_started_while_a_forks_cell_may_be_a_short_one(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forks, "_FIRST_MOMENT", 1000)
    async with session.forks(1) as events:
        (first,) = await grants(events, 1)
        filled = asyncio.create_task(session.supervisor.pool.filled())
        await asyncio.wait({filled}, timeout=1)
        assert not filled.done(), "the fork has taken the only blank, and another was started"
        await session.client.rest_fork(session.id, first)
        await asyncio.wait_for(filled, 30)


async def test_the_stock_is_filled_while_a_forks_cell_is_a_long_one(session: Session) -> None:
    async with session.forks(1) as events:
        await grants(events, 1)
        await asyncio.wait_for(session.supervisor.pool.filled(), 30)


async def test_fork_that_dies_is_told_of(session: Session) -> None:
    async with session.forks(1) as events:
        granted = (await grants(events, 1))[1]
        session.hypervisor.of(granted.granted.pid).die("the VM powered itself off")
        ended = await anext(events)
        assert isinstance(ended, ForkEnded)
        assert (ended.fork, ended.code, ended.reason) == (1, "vm_ended", "The VM powered itself off.")
    assert session.lease.forks == {}
    with pytest.raises(ApiError, match="no fork 1"):
        await session.client.rest_fork(session.id, 1)


async def test_forks_of_a_vm_that_cannot_be_saved_do_not_begin(session: Session) -> None:
    session.machine.faults.add("save")
    async with session.forks(2) as events:
        told = [event async for event in events if not isinstance(event, Progress)]
    assert [(event.fork, event.reason) for event in told if isinstance(event, ForkEnded)] == [
        (0, "QEMU refused to save")
    ]
    assert is_awake(session.machine)


async def test_fork_that_cannot_be_made_leaves_the_others_and_no_pin(session: Session) -> None:
    session.hypervisor.faults.add("load")
    async with session.forks(2) as events:
        told = [event for event in [await anext(events) for _ in range(3)] if not isinstance(event, Progress)]
        assert {type(event) for event in told} == {ForkEnded, ForkGranted}
    await session.snapshot()
    point, last = (await session.client.snapshots(session.id)).snapshots
    assert session.used() == {last.id}
    assert point.kind == "fork"


async def test_adopted_fork_becomes_the_vm_and_the_others_end(session: Session) -> None:
    async with session.forks(3) as events:
        granted = await grants(events, 3)
        for number in (1, 2):
            await session.client.rest_fork(session.id, number)
    machines = {number: session.hypervisor.of(one.granted.pid) for number, one in granted.items()}
    await until_gone(machines[3])
    assert machines[1].calls[-1] == "pause"
    machines[2].guest.touch(3)
    old = session.machine
    replaced = await session.client.adopt(session.id, 2)
    assert replaced.granted.pid == session.machine.pid == machines[2].pid
    assert replaced.granted.snapshot == replaced.snapshot.id
    assert is_awake(machines[2])
    for machine in (old, machines[1]):
        await until_gone(machine)
    assert session.lease.forks == {}
    assert session.used() == {replaced.snapshot.id}
    assert (await session.snapshot()).written == 256


async def test_an_adopted_fork_has_behind_it_what_the_vm_had_that_it_was_cloned_from(session: Session) -> None:
    first = session.lease.vm.id
    request = ForkRequest(count=1, cell=Cell(run=3))
    async with session.client.forks(session.id, request) as events:
        async for event in events:
            if isinstance(event, ForkGranted):
                await session.client.rest_fork(session.id, 1)
    await session.client.adopt(session.id, 1)
    assert session.lease.vm.id != first
    assert await way(session) == [(first, 3)]


async def test_only_a_resting_fork_can_be_adopted(session: Session) -> None:
    machine = session.machine
    with pytest.raises(ApiError, match="no fork 1") as caught:
        await session.client.adopt(session.id, 1)
    assert "%%fork" in caught.value.hint
    async with session.forks(2) as events:
        await grants(events, 2)
        with pytest.raises(ApiError, match="no fork 1"):
            await session.client.adopt(session.id, 1)
        await session.client.rest_fork(session.id, 2)
        with pytest.raises(ApiError) as caught:
            await session.client.adopt(session.id, 1)
        assert caught.value.hint == "There are: 2."
    assert session.machine is machine
    assert is_awake(machine)


async def test_forks_end_when_others_are_asked_for(session: Session) -> None:
    async with session.forks(1) as events:
        first = session.hypervisor.of((await grants(events, 1))[1].granted.pid)
        await session.client.rest_fork(session.id, 1)
    assert not first.ended.done()
    async with session.forks(1) as events:
        second = session.hypervisor.of((await grants(events, 1))[1].granted.pid)
        await until_gone(first)
        assert not second.ended.done()
    await session.client.end_fork(session.id, 9)  # nothing happens


async def test_a_later_fork_request_takes_the_place_of_one_that_still_waits(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Budget, "slots", lambda _: 1)
    async with session.forks(2) as earlier:
        (number,) = await grants(earlier, 1)
        async with session.forks(1) as later:
            granted = (await grants(later, 1))[1]
            ended = await anext(earlier)
            assert isinstance(ended, ForkEnded)
            assert ended.fork != number
            assert "Another fork request" in ended.reason
            assert session.lease.forks[1].vm.pid == granted.granted.pid


async def test_a_fork_that_does_not_wake_cannot_be_adopted_and_is_gone(session: Session) -> None:
    async with session.forks(1) as events:
        machine = session.hypervisor.of((await grants(events, 1))[1].granted.pid)
        await session.client.rest_fork(session.id, 1)
    machine.lies = {"ok": False, "error": "no"}
    with pytest.raises(ApiError, match="clock"):
        await session.client.adopt(session.id, 1)
    await until_gone(machine)
    assert session.lease.forks == {}
    assert is_awake(session.machine)


async def test_end_of_the_lease_ends_everything(short_tmp: Path) -> None:
    paths, hypervisor = make_paths(short_tmp), MemoryHypervisor()
    async with serving(paths, hypervisor, COLD) as supervisor, SupervisorClient(paths, start=False) as client:
        async with client.lease(LeaseRequest(notebook="n.ipynb")) as events:
            session = Session(supervisor, hypervisor, client, (await first_grant(events)).lease, events)
            async with session.forks(2) as running:
                granted = await grants(running, 2)
                await session.client.rest_fork(session.id, 1)
            lease = session.lease
        for machine in (hypervisor.of(lease.vm.pid), *(hypervisor.of(one.granted.pid) for one in granted.values())):
            await until_gone(machine)
        async with lease.turn:
            (stored,) = lease.terms.tree.snapshots()
        assert not is_used(stored.snapshot.folder)
        with pytest.raises(SupervisorError, match="no lease"):
            await client.snapshots(session.id)


async def test_far_notebook_gets_a_complete_file_for_as_long_as_it_is_leased(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bases, "_FAR", 20_000)
    folder = session.supervisor.paths.state / "memory"
    await session.snapshot("near")
    await session.supervisor.settled(session.lease)
    assert list(folder.iterdir()) == []
    session.machine.guest.write(0, b"x" * 30_000)
    far = await session.snapshot("far")
    await session.supervisor.settled(session.lease)
    assert [path.name for path in folder.iterdir()] == [f"{far.id}.memory"]
    assert session.supervisor.pool.stocks.counts()[far.id] == {"warm": 0, "blanks": 1}
    session.machine.guest.touch(9, value=5)
    assert session.supervisor.pool.nearest_distance(session.lease.vm.snapshot) == 0
    await session.snapshot("child")
    await session.client.rollback(session.id, "child")
    assert session.machine.spec.memory == folder / f"{far.id}.memory"
    assert [byte_of(session.machine, page) for page in (0, 9)] == [ord("x"), 5]
    await session.client.rollback(session.id, "near")
    assert [byte_of(session.machine, page) for page in (0, 9)] == [0, 0]
    await session.client.rollback(session.id, "far")
    session.machine.guest.write(100_000, b"y" * 30_000)
    farther = await session.snapshot("farther")
    await session.supervisor.settled(session.lease)
    assert [path.name for path in folder.iterdir()] == [f"{farther.id}.memory"]
    assert far.id not in session.supervisor.pool.stocks.counts()
    lease = session.lease
    await session.supervisor.release(lease)
    assert list(folder.iterdir()) == []
    assert farther.id not in session.supervisor.pool.stocks.counts()


async def test_no_complete_file_where_there_is_no_room(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bases, "_FAR", 1)
    small = COLD.model_copy(update={"snapshots": SnapshotSettings(complete_gb=0)})
    async with sessions(short_tmp, small) as session:
        session.machine.guest.touch(1)
        await session.snapshot("far")
        await session.supervisor.settled(session.lease)
        assert list((session.supervisor.paths.state / "memory").iterdir()) == []
        assert "no room for a complete memory file" in caplog.text
        await session.client.rollback(session.id, "far")
        assert byte_of(session.machine, 1) == 7


async def test_complete_file_that_fails_is_no_failure_of_the_snapshot(
    session: Session, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise DiskFullError("There is no room.")

    monkeypatch.setattr(bases, "_FAR", 1)
    monkeypatch.setattr(bases, "make_complete", fail)
    session.machine.guest.touch(1)
    await session.snapshot("far")
    await session.supervisor.settled(session.lease)
    assert "There is no room." in caplog.text
    assert (await session.client.rollback(session.id, "far")).snapshot.label == "far"


async def test_drained_pool_makes_clones_from_scratch(session: Session) -> None:
    await session.snapshot("a")
    await session.supervisor.pool.drain()
    (counts,) = session.supervisor.pool.stocks.counts().values()
    assert counts["blanks"] == 0
    before = len(session.hypervisor.machines)
    await session.client.rollback(session.id, "a")
    assert session.machine is session.hypervisor.machines[before]


async def test_quiet_pool_starts_nothing_until_the_last_has_finished(session: Session) -> None:
    pool = session.supervisor.pool
    await session.snapshot("a")
    with pool.quiet():
        await session.client.rollback(session.id, "a")
        (counts,) = pool.stocks.counts().values()
        assert counts["blanks"] == 0
        await asyncio.wait([asyncio.ensure_future(pool.filled())], timeout=0.05)
        assert counts["blanks"] == 0
    await pool.filled()
    (counts,) = pool.stocks.counts().values()
    assert counts["blanks"] == 1


async def test_dead_blank_is_not_used(session: Session) -> None:
    await session.snapshot("a")
    dead = [machine for machine in session.hypervisor.running if machine is not session.machine]
    for machine in dead:
        machine.die("QEMU was killed by SIGKILL")
    await session.client.rollback(session.id, "a")
    assert session.machine not in dead


async def test_snapshots_are_labelled_removed_and_pruned_and_everybody_is_told(session: Session) -> None:
    client, lease = session.client, session.id
    taken = []
    for page in range(6):
        session.machine.guest.touch(page, value=page + 1)
        taken.append(await session.snapshot("kept" if page == 4 else ""))
    async with client.lease(LeaseRequest(notebook="other.ipynb")) as other:
        others = (await first_grant(other)).lease
        kept = [(await client.snapshot(others, SnapshotRequest())).id for _ in range(2)]
    async with client.events(lease) as events, asyncio.timeout(30):
        labelled = await client.relabel(lease, taken[0].id, "first", "the beginning")
        assert (labelled.label, labelled.text) == ("first", "the beginning")
        assert (await client.relabel(lease, taken[0].id, "start")).text == "the beginning"
        used = (await client.snapshots(lease)).used
        removed = await client.remove(lease, taken[2].id)
        assert removed.removed == (taken[2].id,)
        assert removed.freed == used - (await client.snapshots(lease)).used > 0
        # Three have no label.
        assert (await client.prune(lease, 3)).removed == ()
        assert (await client.prune(lease, 2)).removed == (taken[1].id,)
        # The newest, which the VM descends from, is in use.
        assert (await client.prune(lease, 0)).removed == (taken[3].id,)
        await client.relabel(lease, taken[0].id, "")
        heard = [(await anext(events)).event.fields() for _ in range(6)]
    assert [(one["event"], one.get("snapshots")) for one in heard] == [
        ("snapshot_relabelled", None), ("snapshot_relabelled", None), ("snapshots_removed", [taken[2].id]),
        ("snapshots_removed", [taken[1].id]), ("snapshots_removed", [taken[3].id]), ("snapshot_relabelled", None),
    ]  # fmt: skip
    assert [one.id for one in session.supervisor.store.tree("other.ipynb").snapshots()] == kept
    tree = await client.snapshots(lease)
    assert [(one.id, one.label, one.parent) for one in tree.snapshots] == [
        (taken[0].id, "", ""), (taken[4].id, "kept", taken[0].id), (taken[5].id, "", taken[4].id),
    ]  # fmt: skip
    await client.rollback(lease, taken[5].id)
    assert [byte_of(session.machine, page) for page in range(6)] == [1, 2, 3, 4, 5, 6]


async def test_what_is_in_use_taken_or_invalid_stays_as_it_is(session: Session) -> None:
    client, lease = session.client, session.id
    session.machine.guest.touch(1)
    first = await session.snapshot("a")
    session.machine.guest.touch(2)
    second = await session.snapshot()
    with pytest.raises(ApiError, match="goes on from") as caught:
        await client.remove(lease, second.id)
    assert caught.value.hint
    async with session.forks(1) as forks:
        await anext(one async for one in forks if isinstance(one, ForkGranted))
        await client.rest_fork(lease, 1)
    point = (await client.snapshots(lease)).current
    await client.rollback(lease, "a")
    with pytest.raises(ApiError, match="in use") as caught:
        await client.remove(lease, point)
    assert caught.value.code == "snapshot"
    for label, code in (("a", "label_taken"), ("no label", "snapshot"), ("0" * 12, "snapshot")):
        with pytest.raises(ApiError) as caught:
            await client.relabel(lease, second.id, label)
        assert caught.value.code == code
    with pytest.raises(RequestError):
        await client.relabel(lease, second.id, "x" * 65)
    assert [(one.id, one.label) for one in (await client.snapshots(lease)).snapshots][:2] == [
        (first.id, "a"), (second.id, ""),
    ]  # fmt: skip


async def test_a_clone_is_lent_without_a_network_until_nobody_wants_it_any_more(session: Session) -> None:
    session.machine.guest.touch(1, value=7)
    old = await session.snapshot("old")
    session.machine.guest.touch(1, value=9)
    new = await session.snapshot()
    async with session.client.clone(session.id, old.id) as events:
        granted = await anext(one async for one in events if isinstance(one, ForkGranted))
        clone = session.hypervisor.of(granted.granted.pid)
        assert clone is not session.machine
        assert byte_of(clone, 1) == 7
        assert clone.ops[0] | {"network": "none", "randomness": "keep"} == clone.ops[0]
        assert session.used() == {old.id, new.id}
        assert (granted.granted.snapshot, session.lease.current) == (old.id, new.id)
        # It is no fork: it is neither kept nor adopted, and gets no network when the notebook's is changed.
        for ask in (session.client.rest_fork, session.client.adopt):
            with pytest.raises(ApiError) as caught:
                await ask(session.id, granted.fork)
            assert caught.value.code == "no_fork"
        for mode in ("isolated", "filtered"):
            await session.client.set_network(session.id, NetworkRequest(mode=mode))
        assert {request.get("network") for request in session.machine.ops} >= {"filtered"}
        assert {request.get("network") for request in clone.ops} <= {None, "none"}
    await until_gone(clone)
    assert session.used() == {new.id}
    assert session.supervisor.admission.out == 1
    assert not session.lease.forks


async def test_clones_are_lent_side_by_side_and_end_with_their_machine_or_the_lease(session: Session) -> None:
    old = await session.snapshot("old")
    async with session.client.clone(session.id, old.id) as one, session.client.clone(session.id, old.id) as two:
        grants = [await anext(event async for event in each if isinstance(event, ForkGranted)) for each in (one, two)]
        assert grants[0].fork != grants[1].fork
        session.hypervisor.of(grants[0].granted.pid).die("QEMU was killed by SIGKILL")
        ended = await anext(one)
        assert isinstance(ended, ForkEnded)
        await session.supervisor.release(session.lease)
        async with asyncio.timeout(30):
            assert [event.event async for event in two] == ["fork_ended"]
        await until_gone(session.hypervisor.of(grants[1].granted.pid))


async def test_what_cannot_be_cloned_is_told_and_leaves_nothing_behind(session: Session) -> None:
    old, new = await session.snapshot("old"), await session.snapshot()
    session.hypervisor.faults.add("load")
    for snapshot, code in (("0" * 12, "no_snapshot"), (old.id, "hypervisor")):
        async with session.client.clone(session.id, snapshot) as events:
            ended = [event async for event in events if isinstance(event, ForkEnded)]
            assert [(event.fork, event.code) for event in ended] == [(0, code)]
    assert session.used() == {new.id}
    assert session.supervisor.admission.out == 1


async def test_a_listing_of_vms_says_from_which_snapshot_each_goes_on(session: Session) -> None:
    async def listed() -> str:
        return next(vm.snapshot for vm in (await session.client.vms()).vms if vm.lease == session.id)

    assert await listed() == ""
    first, second = await session.snapshot(), await session.snapshot()
    assert await listed() == second.id
    await session.client.rollback(session.id, first.id)
    assert await listed() == first.id
