"""For how long the supervisor is followed, and what becomes of it when that goes away: a fake one over its real API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fake_supervisor import FakeSupervisor
from kernel_harness import within

from agentvm_kernel.config import Paths
from agentvm_kernel.errors import SupervisorError
from agentvm_kernel.firewall.reasons import Reason
from agentvm_kernel.observe.chain import Record
from agentvm_kernel.observe.events.execution import OutputBlocked
from agentvm_kernel.observe.events.supervisor import ConfigurationChanged
from agentvm_kernel.server import watch as module
from agentvm_kernel.server.kernels import Kernel
from agentvm_kernel.server.news import Herald
from agentvm_kernel.server.supervision import Supervision
from agentvm_kernel.server.watch import Watch
from agentvm_kernel.supervisor.client import SupervisorClient
from agentvm_kernel.supervisor.messages import LeaseRequest


@pytest.fixture
def paths(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    monkeypatch.setenv("AGENTVM_STATE_DIR", str(short_tmp))
    monkeypatch.setattr(module, "_RETRY", 0.05)
    return Paths.of_user()


def kernel(name: str) -> Kernel:
    return Kernel(name, f"kernel-{name}", 1, {})


class Page:
    """What pages are told."""

    def __init__(self, paths: Paths) -> None:
        self.told: list[dict[str, Any]] = []
        self.supervision = Supervision(paths)
        self.watch = Watch(self.supervision, Herald(self.told.append))

    def kinds(self, name: str) -> list[str]:
        return [one["what"] for one in self.told if one["kernel_id"] == name]

    async def close(self) -> None:
        await self.watch.close()
        await self.supervision.close()


@asynccontextmanager
async def leased(paths: Paths, name: str) -> AsyncIterator[str]:
    """A lease as a kernel has it."""
    async with (
        SupervisorClient(paths, start=False) as client,
        client.lease(LeaseRequest(image="minimal", owner=f"kernel-{name}")) as lease,
    ):
        granted: Any = await anext(lease)
        yield granted.lease


async def test_it_ends_when_nobody_has_looked_for_a_while(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.3)
    page = Page(paths)
    async with FakeSupervisor(paths) as supervisor, leased(paths, "a"):
        page.watch.look([kernel("a")])
        await within(lambda: "stats" in page.kinds("a"))
        await within(lambda: not page.watch.is_following)
        await within(lambda: not supervisor._listeners)
        page.watch.look([kernel("a")])
        await within(lambda: page.kinds("a").count("machine") == 2)
        await page.close()


async def test_the_end_of_the_server_leaves_nothing_behind(paths: Paths) -> None:
    page = Page(paths)
    async with FakeSupervisor(paths) as supervisor, leased(paths, "a"):
        before = asyncio.all_tasks()
        page.watch.look([kernel("a")])
        await within(lambda: supervisor._listeners and "stats" in page.kinds("a"))
        own = {task for task in asyncio.all_tasks() - before if "watch" in (task.get_name() + repr(task.get_coro()))}
        assert own
        await page.close()
        assert not own & asyncio.all_tasks()
        assert not page.watch.is_following
        await within(lambda: not supervisor._listeners)


async def test_nothing_is_told_of_a_kernel_at_which_nobody_looks(paths: Paths) -> None:
    page = Page(paths)
    async with FakeSupervisor(paths) as supervisor, leased(paths, "a") as a, leased(paths, "b") as b:
        page.watch.look([kernel("a")])
        await within(lambda: "stats" in page.kinds("a"))
        for lease in (b, a):
            supervisor.happens(OutputBlocked(reason=Reason.SCRIPT, vm="v", lease=lease))
        await within(lambda: "blocked" in page.kinds("a"))
        assert page.kinds("b") == []
        await page.close()


async def test_what_was_blocked_is_read_once_until_more_is(paths: Paths) -> None:
    page = Page(paths)
    async with FakeSupervisor(paths) as supervisor, leased(paths, "a") as a:

        async def counted() -> tuple[int, int]:
            """How much was blocked, and how often the supervisor was asked for that."""
            found = [(await page.supervision.machine(kernel("a"))).blocked for _ in range(3)]
            assert len(set(found)) == 1
            return found[0], supervisor.asked.count(f"GET /v1/leases/{a}/audit")

        def one_more(missed: int = 0) -> None:
            event = OutputBlocked(reason=Reason.SCRIPT, vm="v", lease=a)
            supervisor.recorded.append(Record(sequence=1, time=1.0, event=event, previous="0" * 64))
            page.told.clear()
            supervisor.happens(ConfigurationChanged(what="of another") if missed else event, missed=missed)

        assert await counted() == (0, 3)
        page.watch.look([kernel("a")])
        await within(lambda: supervisor._listeners and {"stats", "machine"} <= set(page.kinds("a")))
        assert await counted() == (0, 4)
        one_more()
        await within(lambda: "blocked" in page.kinds("a"))
        assert await counted() == (1, 5)
        one_more(missed=1)
        await within(lambda: "blocked" in page.kinds("a"))
        assert await counted() == (2, 6)
        await page.watch.close()
        assert await counted() == (2, 9)
        await page.close()


async def test_a_policy_or_a_limit_that_was_changed_by_hand_is_told(paths: Paths) -> None:
    page = Page(paths)
    async with FakeSupervisor(paths) as supervisor, leased(paths, "a") as a:
        page.watch.look([kernel("a")])
        await within(lambda: {"stats", "machine"} <= set(page.kinds("a")))
        page.told.clear()
        supervisor.happens(ConfigurationChanged(what="the supervisor read its configuration again"))
        supervisor.happens(OutputBlocked(reason=Reason.SCRIPT, vm="v", lease=a))
        await within(lambda: "blocked" in page.kinds("a"))
        assert "machine" not in page.kinds("a")
        supervisor.happens(ConfigurationChanged(what="limits: cpu", lease=a))
        await within(lambda: "machine" in page.kinds("a"))
        await page.close()


async def test_a_kernel_is_forgotten_though_another_is_looked_at(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.3)
    page = Page(paths)

    def forgotten() -> bool:
        page.watch.look([kernel("b")])
        return "a" not in page.watch._until

    async with FakeSupervisor(paths) as supervisor, leased(paths, "a") as a, leased(paths, "b") as b:
        page.watch.look([kernel("a")])
        await within(lambda: "stats" in page.kinds("a"))
        await within(forgotten)
        page.told.clear()
        for lease in (a, b):
            supervisor.happens(OutputBlocked(reason=Reason.SCRIPT, vm="v", lease=lease))
        await within(lambda: "blocked" in page.kinds("b"))
        assert page.kinds("a") == []
        await page.close()


async def test_a_supervisor_that_goes_away_is_told_and_the_next_one_is_followed(paths: Paths) -> None:
    page = Page(paths)
    page.watch.look([kernel("a")])
    async with FakeSupervisor(paths) as supervisor, leased(paths, "a"):
        await within(lambda: {"stats", "machine"} <= set(page.kinds("a")))
        supervisor.falls_silent()  # as one that is killed
    await within(lambda: "gone" in page.kinds("a"))
    page.told.clear()
    with pytest.raises(SupervisorError):
        await page.supervision.lease(kernel("a"))
    async with FakeSupervisor(paths), leased(paths, "a"):
        await within(lambda: {"stats", "machine"} <= set(page.kinds("a")))
        assert (await page.supervision.lease(kernel("a"))).owner == "kernel-a"
        await page.close()


async def test_who_listened_too_slowly_asks_for_everything_again(paths: Paths) -> None:
    page = Page(paths)
    async with FakeSupervisor(paths) as supervisor, leased(paths, "a"):
        page.watch.look([kernel("a")])
        await within(lambda: supervisor._listeners and "stats" in page.kinds("a"))
        supervisor.happens(OutputBlocked(reason=Reason.SCRIPT, vm="x", lease="of-another"), missed=3)
        await within(lambda: {"machine", "snapshots", "connections", "blocked"} <= set(page.kinds("a")))
        await page.close()
