"""A cell in several forks at once; the forks are guest agents on this host."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from local_guest import LocalGuest, local_guest

from agentvm_kernel.errors import ApiError, SnapshotError, SupervisorError
from agentvm_kernel.firewall.reasons import Reason
from agentvm_kernel.kernel import execution
from agentvm_kernel.kernel.execution import LINK_LIMITS
from agentvm_kernel.kernel.forkpoint import ForkEvent
from agentvm_kernel.kernel.forks import ForkProgress, ForkResult, run_forks
from agentvm_kernel.link.connection import Link, connect
from agentvm_kernel.link.endpoint import Endpoint, UnixEndpoint
from agentvm_kernel.supervisor.execution_messages import Execution
from agentvm_kernel.supervisor.fork_messages import ForkEnded, ForkGranted, ForkRequest
from agentvm_kernel.supervisor.messages import Granted, Progress

CONNECT = partial(connect, limits=LINK_LIMITS)
NUMBER = "import os; n = int(open(os.environ['HOME'] + '/number').read())\n"


def granted(endpoint: UnixEndpoint, key: bytes = bytes(32), epoch: int = 1, pid: int = 1 << 30) -> Granted:
    return Granted(
        lease="l1", vm=f"fork-{epoch}", epoch=epoch, key=key.hex(), link=endpoint, image="0" * 64, flavour="minimal",
        profile="light", vcpus=1, memory_mib=512, disk_gb=4, accelerator="tcg", pid=pid, acquire_ms=1.0,
    )  # fmt: skip


class FakeSupervisor:
    """Makes forks as the supervisor does; one that rests or ends makes room for the next.

    Args:
        slots: How many run at the same time.
    """

    def __init__(self, slots: int = 16) -> None:
        self.slots = asyncio.Semaphore(slots)
        self.running: dict[int, AsyncExitStack] = {}
        self.resting: dict[int, AsyncExitStack] = {}
        self.guests: dict[int, LocalGuest] = {}
        self.asked: list[str] = []
        self.events: asyncio.Queue[ForkEvent | None] = asyncio.Queue()
        self.most = 0

    async def __aenter__(self) -> FakeSupervisor:
        return self

    async def __aexit__(self, *_: object) -> None:
        for stack in self.resting.values():
            await stack.aclose()

    @asynccontextmanager
    async def forks(self, lease: str, request: ForkRequest) -> AsyncIterator[AsyncIterator[ForkEvent]]:
        assert lease == "l1"
        self.events.put_nowait(Progress(stage="saving the virtual machine"))
        tasks = [asyncio.create_task(self._make(number)) for number in range(1, request.count + 1)]
        try:
            yield self._told()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            for stack in self.running.values():
                await stack.aclose()
            self.running.clear()

    async def _told(self) -> AsyncIterator[ForkEvent]:
        while (event := await self.events.get()) is not None:
            yield event

    async def _make(self, number: int) -> None:
        await self.slots.acquire()
        stack = AsyncExitStack()
        guest = await stack.enter_async_context(local_guest())
        self.running[number], self.guests[number] = stack, guest
        self.most = max(self.most, len(self.running))
        (guest.folder / "number").write_text(str(number))
        self.events.put_nowait(ForkGranted(fork=number, granted=granted(guest.endpoint, guest.key, 1, guest.pid)))

    async def rest_fork(self, lease: str, fork: int) -> None:
        self.asked.append(f"rest {fork}")
        if fork not in self.running:
            raise SnapshotError(f"There is no fork {fork}.")
        self.resting[fork] = self.running.pop(fork)
        self.slots.release()

    async def end_fork(self, lease: str, fork: int) -> None:
        self.asked.append(f"end {fork}")
        stack = self.running.pop(fork, None) or self.resting.pop(fork, None)
        if stack is None:
            raise SnapshotError(f"There is no fork {fork}.")
        await stack.aclose()
        self.slots.release()


async def run(
    supervisor: FakeSupervisor,
    count: int,
    code: str,
    *,
    timeout: float = 60,
    on_progress: Callable[[ForkProgress], None] = lambda _: None,
) -> list[ForkResult]:
    return await run_forks(
        supervisor, "l1", CONNECT, ForkRequest(count=count), code, timeout=timeout, on_progress=on_progress
    )


BEHAVIOURS = (
    NUMBER
    + """
import signal, time
print("fork", n, flush=True)
if n == 2:
    raise ValueError("two")
if n == 3:
    time.sleep(0.3)
    os._exit(3)
if n == 4:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        time.sleep(60)
if n == 5:
    while True:
        print("x" * 1_000_000, flush=True)
n * 10
"""
)


async def test_a_fork_that_fails_dies_hangs_or_floods_costs_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "_GRACE", 0.2)
    seen: list[ForkProgress] = []
    async with FakeSupervisor() as supervisor:
        results = await run(supervisor, 6, BEHAVIOURS, timeout=20, on_progress=seen.append)
        assert set(supervisor.resting) == {1, 2, 6}
        assert sorted(word for word in supervisor.asked if word.startswith("end")) == ["end 3", "end 4", "end 5"]
    assert [result.fork for result in results] == [1, 2, 3, 4, 5, 6]
    assert [result.cell.status for result in results] == ["ok", "error", "died", "timeout", "flood", "ok"]
    assert [result.kept for result in results] == [True, True, False, False, False, True]
    assert [result.cell.result for result in results] == ["10", "", "", "", "", "60"]
    assert all(result.cell.stdout.startswith(f"fork {result.fork}\n") for result in results)
    assert all(result.memory > 1 << 20 for result in results)
    assert results[1].cell.error
    assert results[1].cell.error.value == "two"
    assert results[2].cell.reason == "The Python process in the VM ended with exit code 3."
    assert seen[0] == ForkProgress("saving the virtual machine", 0, 0, 6)
    assert seen[-1] == ForkProgress("saving the virtual machine", 0, 6, 6)


async def test_what_forks_show_is_kept_as_the_firewall_lets_it_through_and_what_is_not_is_told() -> None:
    told: list[Execution] = []
    code = NUMBER + "from IPython.display import display\ndisplay({'application/vnd.agentvm.forks+json': n, "
    code += "'text/html': f'<b onclick=x>{n}</b>'}, raw=True)\nprint('p', n)"
    async with FakeSupervisor() as supervisor:
        request = ForkRequest(count=2)
        results = await run_forks(supervisor, "l1", CONNECT, request, code, timeout=60, report=told.append)
    for result in results:
        display, printed = result.cell.outputs
        assert display["data"] == {"text/html": f"<b>{result.fork}</b>"}
        assert printed["text"] == f"p {result.fork}\n"
        assert result.cell.blocked[Reason.MIME] == 1
    ends = [one for one in told if one.happened == "completed"]
    assert [one.blocked[Reason.MIME] for one in ends] == [1, 1]


async def test_forks_that_have_to_wait_run_as_others_are_done() -> None:
    async with FakeSupervisor(slots=1) as supervisor:
        results = await run(supervisor, 3, NUMBER + "n")
        assert [result.cell.result for result in results] == ["1", "2", "3"]
        assert supervisor.most == 1


async def test_no_link_to_a_fork_is_left_open() -> None:
    links: list[Link] = []

    async def connected(endpoint: Endpoint, *, key: bytes, epoch: int) -> Link:
        links.append(await CONNECT(endpoint, key=key, epoch=epoch))
        return links[-1]

    async with FakeSupervisor() as supervisor:
        await run_forks(supervisor, "l1", connected, ForkRequest(count=1), "1", timeout=60)
        assert set(supervisor.resting) == {1}
        async with asyncio.timeout(5):
            await links[0].wait_closed()


async def test_what_the_supervisor_says_of_a_lost_fork_is_its_reason() -> None:
    async with FakeSupervisor() as supervisor:
        said: list[ForkEvent] = [ForkEnded(fork=1, code="vm_ended", reason="QEMU was killed by signal 9.")]

        def lose(progress: ForkProgress) -> None:
            if progress.running and said:
                supervisor.events.put_nowait(said.pop())

        (result,) = await run(supervisor, 1, "import time; time.sleep(60)", on_progress=lose)
    assert (result.cell.status, result.cell.reason, result.kept) == ("died", "QEMU was killed by signal 9.", False)
    assert supervisor.asked == []


async def test_cancelling_ends_all_forks_those_that_rest_too() -> None:
    async with FakeSupervisor() as supervisor:
        rested = asyncio.Event()

        def watch(progress: ForkProgress) -> None:
            if progress.finished == 1 and progress.running == 1:
                rested.set()

        code = NUMBER + "import time; time.sleep(60 * (n - 1))"
        task = asyncio.create_task(run(supervisor, 2, code, on_progress=watch))
        async with asyncio.timeout(60):
            await rested.wait()
        assert set(supervisor.resting) == {1}
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not supervisor.resting
        assert not supervisor.running


class Scripted(FakeSupervisor):
    """Says what the test wants, and makes no forks.

    Args:
        events: What it says.
    """

    def __init__(self, *events: ForkEvent | None) -> None:
        super().__init__()
        for event in events:
            self.events.put_nowait(event)

    @asynccontextmanager
    async def forks(self, lease: str, request: ForkRequest) -> AsyncIterator[AsyncIterator[ForkEvent]]:
        yield self._told()


async def test_no_forks_at_all_is_the_supervisors_error() -> None:
    with pytest.raises(ApiError, match=r"No room") as caught:
        await run(Scripted(ForkEnded(fork=0, code="disk_full", reason="No room.", hint="Prune.")), 3, "1")
    assert (caught.value.code, caught.value.hint) == ("disk_full", "Prune.")


async def test_a_fork_that_could_not_be_had_is_a_result() -> None:
    events = [ForkEnded(fork=number, code="vm", reason=f"No {number}.") for number in (2, 1)]
    results = await run(Scripted(*events), 2, "1")
    assert [(r.fork, r.cell.status, r.cell.reason, r.memory) for r in results] == [
        (1, "died", "No 1.", 0),
        (2, "died", "No 2.", 0),
    ]


async def test_a_fork_that_cannot_be_dialled_is_a_result(tmp_path: Path) -> None:
    supervisor = Scripted(ForkGranted(fork=1, granted=granted(UnixEndpoint(str(tmp_path / "none")))), None)
    (result,) = await run(supervisor, 1, "1")
    assert result.cell.status == "died"
    assert "cannot be dialled" in result.cell.reason
    assert supervisor.asked == ["end 1"]


async def test_a_supervisor_that_goes_away_is_an_error() -> None:
    with pytest.raises(SupervisorError, match="went away"):
        await run(Scripted(ForkEnded(fork=1, code="vm", reason="No."), None), 2, "1")


async def test_a_fork_that_cannot_rest_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(self: FakeSupervisor, lease: str, fork: int) -> None:
        raise SnapshotError("It is gone.")

    monkeypatch.setattr(FakeSupervisor, "rest_fork", refuse)
    async with FakeSupervisor() as supervisor:
        (result,) = await run(supervisor, 1, "1")
    assert (result.cell.status, result.kept, supervisor.asked) == ("ok", False, ["end 1"])
