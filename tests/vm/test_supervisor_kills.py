"""A supervisor killed at random moments under load: nothing is orphaned, no finished snapshot lost, no session stuck.

AGENTVM_SEED repeats a run's choices; AGENTVM_SOAK=1 makes as many kills as are promised.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Final, TypeVar

import psutil
import pytest
from kernel_client import wait_until
from soak import SMALL, answering, granted, size, tell_nonce
from vms import own_supervisor, qemus

from agentvm_kernel.config import Paths
from agentvm_kernel.errors import AgentVMError, SupervisorError
from agentvm_kernel.experiment import AsyncSession, CellResult
from agentvm_kernel.supervisor.client import SupervisorClient
from agentvm_kernel.supervisor.messages import LeaseRequest

KILLS = size(6, 50)
SAMPLES = size(4, 24)
SESSIONS = 3
PATIENCE = 90.0
SEED: Final = int(os.environ.get("AGENTVM_SEED", random.SystemRandom().randrange(10**6)))

pytestmark = [pytest.mark.alone, pytest.mark.timeout(size(300, 3600))]

_T = TypeVar("_T")


class DiedError(Exception):
    """A cell's VM is gone, and the cell says why."""


class Worker:
    """A session after the other on one notebook: cells, snapshots, ways back and forks, in a random order.

    Attributes:
        finished: What was in the VM when each snapshot was taken of which the supervisor has said that it is kept.
        said: What sessions were told when their supervisor was gone.
        done: How often each operation was carried out.
    """

    def __init__(self, number: int, paths: Paths) -> None:
        self.notebook = f"kills/{number}"
        self.finished: dict[str, str] = {}
        self.said: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self._random = random.Random(SEED * SESSIONS + number)
        self._paths = paths
        self._state = ""

    def session(self) -> AsyncSession:
        return AsyncSession(profile="small", notebook=self.notebook, paths=self._paths)

    async def work(self, stop: asyncio.Event) -> None:
        """Go on until told to stop; whatever a session's calls are, they end."""
        while not stop.is_set():
            try:
                async with self._entered() as session:
                    while not stop.is_set():
                        await self._step(session)
            except AgentVMError as error:
                self.said[error.message] += 1
            except DiedError as error:
                self.said[str(error)] += 1

    @asynccontextmanager
    async def _entered(self) -> AsyncIterator[AsyncSession]:
        session = self.session()
        await in_time(session.__aenter__())
        try:
            yield session
        finally:
            await in_time(session.__aexit__(None, None, None))

    async def _step(self, session: AsyncSession) -> None:
        operation = self._random.choice([self._change, self._snapshot, self._rollback, self._fork])
        await in_time(operation(session))
        self.done[operation.__name__] += 1

    async def _change(self, session: AsyncSession) -> None:
        self._state = f"{self._random.getrandbits(64):x}"
        code = f"state = {self._state!r}\nopen('/home/agent/state', 'w').write(state)\nimport os; os.sync()"
        alive(await session.run(code))

    async def _snapshot(self, session: AsyncSession) -> None:
        await self._change(session)
        state = self._state
        info = await session.snapshot()
        assert info.stored
        self.finished[info.id] = state

    async def _rollback(self, session: AsyncSession) -> None:
        if self.finished:
            await self.go_back(session, self._random.choice(sorted(self.finished)))

    async def go_back(self, session: AsyncSession, snapshot: str) -> None:
        await session.rollback(snapshot)
        cell = alive(await session.run("(state, open('/home/agent/state').read())"))
        assert cell.result == repr((self.finished[snapshot],) * 2)

    async def _fork(self, session: AsyncSession) -> None:
        await self._change(session)
        for fork in await session.fork(2, "state[::-1]"):
            if fork.kept:
                assert fork.cell.result == repr(self._state[::-1])
            elif fork.cell.reason:
                self.said[fork.cell.reason] += 1


def alive(cell: CellResult) -> CellResult:
    if cell.status == "died":
        raise DiedError(cell.reason)
    assert cell.status == "ok", cell
    return cell


async def in_time(work: Awaitable[_T]) -> _T:
    """Wait for something that must end; that it does not is no `TimeoutError` that could be taken for another."""
    task = asyncio.ensure_future(work)
    done, _ = await asyncio.wait([task], timeout=PATIENCE)
    if not done:
        for one in asyncio.all_tasks():
            one.print_stack()
    assert done, f"stuck: {task}"
    return task.result()


def supervisor_of(paths: Paths) -> int:
    """Return who holds the supervisors' lock, also while it starts; 0 if nobody does (proc_locks(5))."""
    lock = paths.runtime / "supervisor.lock"
    if not lock.exists():
        return 0
    inode = lock.stat().st_ino
    with open("/proc/locks") as file:  # noqa: PTH123
        fields = [line.split() for line in file if "->" not in line]
    return next((int(line[4]) for line in fields if line[1] == "FLOCK" and line[5].endswith(f":{inode}")), 0)


def processes_of(paths: Paths) -> list[str]:
    """Command lines with the state folder in them: those of QEMUs, whatever they are for."""
    lines = [one.info["cmdline"] or [] for one in psutil.process_iter(["cmdline"])]
    return [" ".join(line) for line in lines if any(str(paths.state) in word for word in line)]


async def _kill(paths: Paths) -> set[int]:
    """Kill the supervisor that there is, be it that it only starts; return the QEMUs that it leaves."""
    async with asyncio.timeout(PATIENCE):
        while not (pid := supervisor_of(paths)):  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.02)
    left = set(qemus(paths.tag))
    os.kill(pid, signal.SIGKILL)
    return left


async def _load(paths: Paths, workers: list[Worker]) -> set[int]:
    """Kill one supervisor after the other under load; return all QEMUs that were there at a kill."""
    chance, stop, left = random.Random(SEED), asyncio.Event(), set()
    tasks = [asyncio.create_task(worker.work(stop)) for worker in workers]
    for number in range(KILLS):
        if number % 4:  # the fourth is killed while it starts, or soon after
            before = sum((worker.done for worker in workers), Counter()).total()
            while sum((worker.done for worker in workers), Counter()).total() < before + 2 * SESSIONS:
                assert not any(task.done() for task in tasks), [task.result() for task in tasks if task.done()]
                await asyncio.sleep(0.1)
        await asyncio.sleep(chance.uniform(0, 3))
        left |= await _kill(paths)
    stop.set()
    await in_time(asyncio.gather(*tasks))
    return left


async def _look_back(workers: list[Worker]) -> int:
    """See that all finished snapshots are listed, and go back to some."""
    chance, total = random.Random(SEED), 0
    for worker in workers:
        async with asyncio.timeout(4 * PATIENCE), worker.session() as session:
            listed = {info.id for info in (await session.snapshots()).snapshots}
            assert set(worker.finished) <= listed
            total += len(worker.finished)
            for snapshot in chance.sample(sorted(worker.finished), min(SAMPLES // SESSIONS + 1, len(worker.finished))):
                await in_time(worker.go_back(session, snapshot))
    return total


def test_kills_at_random_moments_under_load() -> None:
    print(f"AGENTVM_SEED={SEED}")
    with own_supervisor(SMALL + "[pool]\nwarm_max = 1\nblanks_max = 2\n") as paths:
        workers = [Worker(number, paths) for number in range(SESSIONS)]
        began = time.monotonic()
        left = asyncio.run(_load(paths, workers))
        print(f"{KILLS} kills in {time.monotonic() - began:.0f} s, {len(left)} QEMUs were left")
        snapshots = asyncio.run(_look_back(workers))
        print(f"{snapshots} snapshots finished;", sum((worker.done for worker in workers), Counter()))
        wait_until(lambda: left.isdisjoint(qemus(paths.tag)), "what was left is ended")
        assert not list((paths.state / "snapshots").glob(".new-*"))
        said = sum((worker.said for worker in workers), Counter())
        for text, times in said.most_common():
            print(f"{times} x {text}")
        assert all("supervisor" in text or "VM" in text for text in said)
        assert left
    assert not processes_of(paths)


def _is_gone(pid: int) -> bool:
    """Whether a process has ended; its parent may be in no hurry to take notice."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


async def _starts_after_one_that_was_starting(paths: Paths) -> None:
    request = LeaseRequest(owner="starting", profile="small")
    async with SupervisorClient(paths) as client, client.lease(request) as lease:
        grant, supervisor = await granted(lease), (await client.status()).pid
        os.kill(supervisor, signal.SIGKILL)
        with pytest.raises(SupervisorError, match="is gone, and so is the VM"):
            await anext(lease)
    os.kill(grant.pid, signal.SIGKILL)
    wait_until(lambda: _is_gone(supervisor), "the supervisor is gone")
    (notes,) = (paths.state / "libvirt" / "run" / "qemu").glob(f"*{grant.vm}.xml")
    text = re.sub(r"<domstatus [^>]*>", "<domstatus state='paused' reason='starting up' pid='0'>", notes.read_text())
    text, count = re.subn(r"<domain type", "<job type='none' async='start' flags='0x1'/>\n<domain type", text)
    assert count == 1
    notes.write_text(text)
    async with SupervisorClient(paths) as client, asyncio.timeout(60), answering(client, "small") as (_, runner):
        await tell_nonce(runner)


def test_a_domain_whose_supervisor_was_killed_while_it_started_stops_no_later_one() -> None:
    """Libvirt's notes of it name no process yet; libvirt would wait for it, and so at every start."""
    with own_supervisor(SMALL) as paths:
        asyncio.run(_starts_after_one_that_was_starting(paths))
