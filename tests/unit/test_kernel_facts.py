"""What a cell cost: in its reply, under it, and in the audit log. The VM's process is this one."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.asynchronous import AsyncKernelClient
from kernel_harness import (
    InProcessKernel,
    ScriptedGuest,
    ScriptedSupervisor,
    cell,
    outputs,
    parts_of,
    replied,
    running,
    told,
    types,
    within,
)

from agentvm_kernel.errors import ApiError, LinkClosedError
from agentvm_kernel.kernel import endings, facts, footer
from agentvm_kernel.kernel.facts import CellFacts
from agentvm_kernel.kernel.wire import Wire
from agentvm_kernel.observe.process import read_usage
from agentvm_kernel.supervisor.stats_messages import Moved
from agentvm_kernel.tally import Tally

MIB = 1 << 20
MEASURED = {"seconds", "cpu_seconds", "memory_peak", "memory_grown", "network_sent", "network_received"}
ASKED = {"hosts", "host_count", "disk_read", "disk_written"}
SNAPSHOTS = {"snapshot_before", "snapshot_after"}


@pytest.fixture
def tally(tmp_path: Path) -> Iterator[Tally]:
    made = Tally(tmp_path / "tally")
    yield made
    made.close()


@asynccontextmanager
async def bed(
    folder: Path, tally: Tally | None
) -> AsyncIterator[tuple[InProcessKernel, AsyncKernelClient, ScriptedGuest]]:
    supervisor = ScriptedSupervisor()
    supervisor.tally = "" if tally is None else str(tally.path)
    async with running(folder, supervisor) as kernel, kernel.client() as client:
        yield kernel, client, await kernel.guest()


def facts_of(reply: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = reply["metadata"]["agentvm"]["facts"]
    return found


def moved(written: int, *hosts: str, vm: str = "vm-1") -> Moved:
    return Moved(vm=vm, disk_read=5, disk_written=written, hosts=hosts, host_count=len(hosts))


def written() -> int:
    usage = read_usage(os.getpid())
    assert usage is not None
    return usage.written


def burn(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


@pytest.fixture
def never_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The supervisor is asked only because of the network: what this process computes depends on the host."""
    monkeypatch.setitem(facts._WORK_SECONDS, "tcg", 1e6)
    monkeypatch.setitem(facts._LONG_SECONDS, "tcg", 1e6)


async def test_a_reply_says_what_the_cell_cost(tmp_path: Path, tally: Tally) -> None:
    gc.collect()  # what earlier tests have left must not go meanwhile
    async with bed(tmp_path, tally) as (kernel, client, guest):
        tally.disk(3, 1000)
        tally.network(100, 200, 1)
        msg_id = client.execute("work()")
        asked = await guest.asked()
        guest.begin(asked)
        began = os.times()
        burn(0.3)
        before = written()
        kept = b"x" * (60 * MIB)
        grown = written() - before
        tally.network(1100, 5200, 3)
        kernel.supervisor.has_moved = moved(91_000, "a.example", "b.example")
        guest.finish(asked)
        reply = await replied(client, msg_id)
        ended = os.times()
        found = facts_of(reply)
        assert set(found) == MEASURED | ASKED | SNAPSHOTS
        cpu = ended.user + ended.system - began.user - began.system
        assert 0.28 <= found["cpu_seconds"] <= cpu + 0.05
        assert found["seconds"] >= 0.3
        assert found["memory_grown"] == pytest.approx(grown, abs=6 * MIB)
        assert found["memory_peak"] > len(kept)
        assert (found["network_sent"], found["network_received"]) == (1000, 5000)
        assert (found["disk_read"], found["disk_written"]) == (2, 90_000)
        assert (found["hosts"], found["host_count"]) == (["a.example", "b.example"], 2)
        (since,) = kernel.supervisor.since
        assert since < time.monotonic() - 0.3


@pytest.mark.usefixtures("never_asks")
async def test_nobody_is_asked_about_a_cell_that_hardly_did_anything(tmp_path: Path, tally: Tally) -> None:
    async with bed(tmp_path, tally) as (kernel, client, guest):
        found = facts_of(await cell(client, guest, "1"))
        assert set(found) == MEASURED | SNAPSHOTS | {"hosts", "host_count"}
        assert (found["hosts"], found["host_count"], found["network_sent"]) == ([], 0, 0)
        assert kernel.supervisor.since == []


async def test_a_cell_that_takes_long_is_asked_about_though_it_computes_little(
    tmp_path: Path, tally: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(facts._WORK_SECONDS, "tcg", 1e6)
    monkeypatch.setitem(facts._LONG_SECONDS, "tcg", 0.0)
    async with bed(tmp_path, tally) as (kernel, client, guest):
        kernel.supervisor.has_moved = moved(500)
        assert facts_of(await cell(client, guest, "1"))["disk_written"] == 500


async def test_without_a_tally_there_is_what_the_kernel_shows(tmp_path: Path) -> None:
    async with bed(tmp_path, None) as (kernel, client, guest):
        assert set(facts_of(await cell(client, guest, "1"))) == {
            "seconds", "cpu_seconds", "memory_peak", "memory_grown", *SNAPSHOTS,
        }  # fmt: skip
        assert kernel.supervisor.since == []


async def test_cells_that_wait_for_each_other_count_only_their_own(tmp_path: Path, tally: Tally) -> None:
    async with bed(tmp_path, tally) as (kernel, client, guest):
        ids = [client.execute(f"{number}") for number in range(3)]
        asked = [await guest.asked() for _ in ids]
        found = []
        for number, (msg_id, one) in enumerate(zip(ids, asked, strict=True), start=1):
            tally.network(10 * number, 0, 0)
            kernel.supervisor.has_moved = moved(1000 * number)
            burn(0.1 * number)
            guest.begin(one)
            guest.finish(one)
            found.append(facts_of(await replied(client, msg_id)))
        assert [one["network_sent"] for one in found] == [10, 10, 10]
        assert [one["disk_written"] for one in found] == [1000, 1000, 1000]
        assert [one["cpu_seconds"] for one in found] == pytest.approx([0.1, 0.2, 0.3], abs=0.09)


@pytest.mark.parametrize("answer", ["never", "error", "of another VM"])
async def test_a_supervisor_that_does_not_answer_costs_no_more_than_its_facts(
    tmp_path: Path, tally: Tally, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    monkeypatch.setattr(facts, "_PATIENCE", 0.05)
    async with bed(tmp_path, tally) as (kernel, client, guest):

        async def ask(lease: str, since: float) -> Moved:
            if answer == "never":
                await asyncio.Event().wait()
            if answer == "error":
                raise ApiError("no_lease", "It is gone.")
            return moved(7, vm="vm-2")

        kernel.supervisor.moved = ask  # type: ignore[method-assign]
        msg_id = client.execute("1")
        asked = await guest.asked()
        tally.network(10, 0, 1)
        guest.begin(asked)
        guest.finish(asked)
        found = facts_of(await replied(client, msg_id))
        assert set(found) == MEASURED | SNAPSHOTS
        assert found["network_sent"] == 10


async def test_a_guest_cannot_say_what_its_cell_cost(tmp_path: Path, tally: Tally) -> None:
    async with bed(tmp_path, tally) as (_, client, guest):
        msg_id = client.execute("1")
        asked = await guest.asked()
        guest.begin(asked)
        lie = {"agentvm": {"facts": {"cpu_seconds": 1e9, "lie": 1}}, "facts": 1, "cpu_seconds": 1e9}
        content = {"status": "ok", "execution_count": 1, "payload": [], "user_expressions": {}, **lie}
        guest.say("shell", parts_of("execute_reply", content, asked.header, lie))
        guest.status(asked, "idle")
        reply = await replied(client, msg_id)
        assert facts_of(reply)["cpu_seconds"] < 1000
        assert "lie" not in json.dumps(reply["metadata"])


async def test_a_cell_that_did_not_run_cost_nothing(tmp_path: Path, tally: Tally) -> None:
    async with bed(tmp_path, tally) as (kernel, client, guest):
        ids = [client.execute("1"), client.execute("2")]
        asked = [await guest.asked() for _ in ids]
        guest.begin(asked[0])
        guest.finish(asked[0], "error")
        guest.reply(asked[1], {"status": "aborted"})
        assert "facts" in (await replied(client, ids[0]))["metadata"]["agentvm"]
        assert "facts" not in (await replied(client, ids[1]))["metadata"]["agentvm"]
        assert kernel.router._facts._begun == {}


@pytest.fixture
def _no_better_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for a reason why a VM has gone, which here nobody tells."""
    monkeypatch.setattr(endings, "_BETTER_REASON", 0.05)


@pytest.mark.usefixtures("_no_better_reason")
async def test_nothing_is_remembered_of_a_cell_whose_vm_is_gone(tmp_path: Path, tally: Tally) -> None:
    async with bed(tmp_path, tally) as (kernel, client, guest):
        msg_id = client.execute("1")
        guest.begin(await guest.asked())
        await within(lambda: kernel.router._facts._begun)
        kernel.links[-1].end(LinkClosedError("gone"))
        assert "facts" not in (await replied(client, msg_id))["metadata"]["agentvm"]
        assert kernel.router._facts._begun == {}


async def test_the_audit_log_is_told_what_cells_cost(tmp_path: Path, tally: Tally) -> None:
    async with bed(tmp_path, tally) as (kernel, client, guest):
        msg_id = client.execute("1")
        asked = await guest.asked()
        guest.begin(asked)
        tally.network(10, 20, 1)
        burn(0.1)
        guest.finish(asked)
        await replied(client, msg_id)
        await kernel.machine.network.told()
        told = [one for request in kernel.supervisor.cells for one in request.executions]
        started, ended = [one for one in told if one.happened in {"started", "completed"}]
        assert (started.cpu_seconds, started.network_sent) == (None, None)
        assert ended.cpu_seconds is not None
        assert 0.08 <= ended.cpu_seconds < 10
        assert (ended.network_sent, ended.network_received) == (10, 20)


async def test_a_process_that_has_taken_the_vms_number_is_not_measured(
    tmp_path: Path, tally: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bed(tmp_path, tally) as (_, client, guest):
        msg_id = client.execute("1")
        asked = await guest.asked()
        guest.begin(asked)
        other = replace(read_usage(os.getpid()), started=1e9)
        monkeypatch.setattr(facts, "read_usage", lambda pid: other)
        guest.finish(asked)
        assert set(facts_of(await replied(client, msg_id))) == {
            "seconds", "network_sent", "network_received", "hosts", "host_count", *SNAPSHOTS,
        }  # fmt: skip


def test_a_reply_has_room_for_two_kilobytes() -> None:
    names = tuple(f"{number}{'x' * 250}.example" for number in range(20))
    most = CellFacts(1e6 / 3, 1e6, 1 << 50, 1 << 50, 1 << 60, 1 << 60, 1 << 60, 1 << 60, names, 256, "a" * 12, "b" * 12)
    found = most.metadata()
    assert len(json.dumps(found)) <= 2048
    assert found["hosts"] == list(names[-3:])
    assert found["host_count"] == 256


# Magics and time travel


async def test_a_magic_has_its_time_and_its_snapshots(tmp_path: Path, tally: Tally) -> None:
    async with bed(tmp_path, tally) as (_, client, guest):
        found = facts_of(await cell(client, guest, "%snapshot"))
        assert set(found) == {"seconds", *SNAPSHOTS}
        assert (found["snapshot_before"], found["snapshot_after"]) == ("", "000000000001")
        found = facts_of(await cell(client, guest, "%rollback nowhere"))
        assert (found["snapshot_before"], found["snapshot_after"]) == ("000000000001", "000000000001")


async def test_with_time_travel_a_reply_names_the_snapshot_after_its_cell(tmp_path: Path, tally: Tally) -> None:
    async with bed(tmp_path, tally) as (kernel, client, guest):
        await cell(client, guest, "%timetravel on")
        kernel.supervisor.go_on.clear()
        kernel.supervisor.at_work.clear()
        msg_id = client.execute("1")
        await guest.execute()
        await kernel.supervisor.at_work.wait()
        assert not await client.shell_channel.msg_ready()
        kernel.supervisor.go_on.set()
        reply = await replied(client, msg_id)
        found = facts_of(reply)
        assert (found["snapshot_before"], found["snapshot_after"]) == ("000000000001", "000000000002")
        assert reply["content"]["status"] == "ok"
        assert types(await outputs(client, msg_id))[-1] == "idle"


async def test_with_time_travel_a_cell_that_fails_is_answered_before_those_that_it_aborts(
    tmp_path: Path, tally: Tally
) -> None:
    async with bed(tmp_path, tally) as (kernel, client, guest):
        await cell(client, guest, "%timetravel on")
        kernel.supervisor.go_on.clear()
        first, second = client.execute("1"), client.execute("2")
        await guest.execute("error")
        await kernel.held(1)
        kernel.supervisor.go_on.set()
        replies = [await client.get_shell_msg(timeout=20) for _ in range(2)]
        assert [one["parent_header"]["msg_id"] for one in replies] == [first, second]
        assert [one["content"]["status"] for one in replies] == ["error", "aborted"]
        assert facts_of(replies[0])["snapshot_after"] == "000000000002"
        assert guest.idle_hands()


@pytest.mark.usefixtures("_no_better_reason")
async def test_with_time_travel_a_cell_whose_vm_is_gone_before_the_snapshot_has_its_reply(
    tmp_path: Path, tally: Tally
) -> None:
    async with bed(tmp_path, tally) as (kernel, client, guest):
        await cell(client, guest, "%timetravel on")
        kernel.supervisor.go_on.clear()
        kernel.supervisor.at_work.clear()
        msg_id = client.execute("1")
        await guest.execute()
        await kernel.supervisor.at_work.wait()
        kernel.links[-1].end(LinkClosedError("gone"))
        reply = await replied(client, msg_id)
        assert reply["content"]["status"] == "ok"
        kernel.supervisor.go_on.set()


@pytest.mark.usefixtures("_no_better_reason")
async def test_with_time_travel_a_cell_whose_vm_is_gone_before_idle_has_its_reply_first(
    tmp_path: Path, tally: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = []
    pack = Wire.pack

    def note(self: Wire, msg_type: str, content: Any, **more: Any) -> tuple[str, list[bytes]]:
        sent.append(msg_type if msg_type != "status" else content["execution_state"])
        return pack(self, msg_type, content, **more)

    async with bed(tmp_path, tally) as (kernel, client, guest):
        await cell(client, guest, "%timetravel on")
        msg_id = client.execute("1")
        asked = await guest.asked()
        guest.begin(asked)
        guest.reply(asked, {"status": "ok", "execution_count": 2, "payload": [], "user_expressions": {}})
        await within(lambda: any(one.late for one in kernel.router._table.unfinished()))
        monkeypatch.setattr(Wire, "pack", note)
        kernel.links[-1].end(LinkClosedError("gone"))
        assert (await replied(client, msg_id))["content"]["status"] == "ok"
        await outputs(client, msg_id)
        assert sent[:2] == ["execute_reply", "idle"]


# The line under a cell


async def footers(client: AsyncKernelClient, guest: ScriptedGuest, code: str = "1", **options: bool) -> list[str]:
    msg_id = client.execute(code, **options)
    await guest.execute()
    messages = await outputs(client, msg_id)
    shown = [one["content"] for one in messages if one["msg_type"] == "display_data"]
    if shown:
        assert types(messages)[-2:] == ["display_data", "idle"]
        assert shown[0]["metadata"] == {"agentvm": {"facts": True}}  # type: ignore[index]
    return [one["data"]["text/plain"] for one in shown]  # type: ignore[index]


@pytest.mark.usefixtures("never_asks")
async def test_a_line_under_each_cell_can_be_turned_on_and_off(tmp_path: Path, tally: Tally) -> None:
    async with bed(tmp_path, tally) as (_, client, guest):
        assert await told(client, guest, "%vm facts") == "No cell has run yet."
        assert await footers(client, guest) == []
        assert "CPU" in await told(client, guest, "%vm facts")
        assert "says what it cost" in await told(client, guest, "%vm facts on")
        (line,) = await footers(client, guest)
        assert "CPU" in line
        assert "memory" in line
        assert await footers(client, guest, silent=True) == []
        await told(client, guest, "%vm facts off")
        assert await footers(client, guest) == []
        assert "%vm facts on" in await told(client, guest, "%vm facts maybe")


@pytest.mark.usefixtures("never_asks")
async def test_the_line_waits_for_a_reply_that_comes_after_idle(tmp_path: Path, tally: Tally) -> None:
    async with bed(tmp_path, tally) as (_, client, guest):
        await told(client, guest, "%vm facts on")
        msg_id = client.execute("1")
        asked = await guest.asked()
        guest.begin(asked)
        guest.status(asked, "idle")
        await within(guest.link.streams["iopub"].to_host.empty)
        guest.reply(asked, {"status": "ok", "execution_count": 1, "payload": [], "user_expressions": {}})
        assert types(await outputs(client, msg_id))[-2:] == ["display_data", "idle"]


@pytest.mark.usefixtures("never_asks")
@pytest.mark.parametrize(("wait", "then", "count"), [(True, "", 0), (False, "", 1), (True, "more", 1)])
async def test_the_line_does_not_take_the_place_of_what_is_to_be_cleared(
    tmp_path: Path, tally: Tally, wait: bool, then: str, count: int
) -> None:
    async with bed(tmp_path, tally) as (_, client, guest):
        await told(client, guest, "%vm facts on")
        msg_id = client.execute("1")
        asked = await guest.asked()
        guest.begin(asked)
        guest.output(asked, "text")
        guest.say("iopub", parts_of("clear_output", {"wait": wait}, asked.header))
        if then:
            guest.output(asked, then)
        guest.finish(asked)
        assert types(await outputs(client, msg_id)).count("display_data") == count


async def test_with_time_travel_the_line_names_the_snapshot(tmp_path: Path, tally: Tally) -> None:
    async with bed(tmp_path, tally) as (_, client, guest):
        await cell(client, guest, "%timetravel on")
        await cell(client, guest, "%vm facts on")
        (line,) = await footers(client, guest)
        assert line.endswith("snapshot 000000000001 to 000000000002")


def test_the_line_says_what_is_more_than_nothing() -> None:
    assert footer.line(CellFacts(0.004)) == "0.00 s"
    some = CellFacts(1.5, 1.25, 300 * 10**6, 0, 0, 0, 0, 0, (), 0, "a1", "a1")
    assert footer.line(some) == "1.50 s, CPU 1.25 s; memory 300 MB; snapshot a1"
    hosts = ("pypi.org", "<b>\x1b[1m", "c", "d")
    many = CellFacts(1.5, 1.25, 300 * 10**6, 200 * 10**6, 10**3, 50 * 10**6, 0, 10**8, hosts, 9, "", "b2")
    assert footer.line(many) == (
        "1.50 s, CPU 1.25 s; memory 300 MB, 200 MB more; sent 1 kB, received 50 MB; disk 100 MB written;"
        " hosts pypi.org, <b>\N{REPLACEMENT CHARACTER}[1m, c and 6 more; snapshot the image's own to b2"
    )
    data = footer.content(many)["data"]
    assert isinstance(data, dict)
    assert "&lt;b&gt;" in data["text/html"]
    assert "<b>" not in data["text/html"]


# What the guest says of itself


async def test_the_status_marks_what_the_guest_claims(tmp_path: Path) -> None:
    async with bed(tmp_path, None) as (_, client, guest):
        lines = (await told(client, guest, "%vm status")).splitlines()
        marked = [line for line in lines if "(claimed by the guest)" in line]
        assert [line.split("  ")[0] for line in marked] == [
            "processes (claimed by the guest)", "load (claimed by the guest)",
        ]  # fmt: skip
        measured = [line for line in lines if "(measured by the host)" in line]
        guest.link.claims = {"processes": 1 << 70, "load": "<b>", "cpu_seconds": 9, "memory": 1}
        lines = (await told(client, guest, "%vm status")).splitlines()
        assert not any("claimed" in line for line in lines)
        assert len([line for line in lines if "(measured by the host)" in line]) == len(measured) == 2
