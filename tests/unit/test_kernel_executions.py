"""The notebook's executions, as the kernel process tells them; and `%audit`."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from kernel_harness import (
    ScriptedSupervisor,
    cell,
    granted,
    interrupted,
    outputs,
    parts_of,
    replied,
    running,
    told,
    within,
)

from agentvm_kernel.errors import ApiError
from agentvm_kernel.firewall.reasons import Reason
from agentvm_kernel.kernel import deadline, executions, network
from agentvm_kernel.kernel.executions import cell_begins
from agentvm_kernel.observe.chain import Record
from agentvm_kernel.observe.events.execution import ExecutionFailed
from agentvm_kernel.observe.fields import claimed
from agentvm_kernel.observe.outputs import digest_of_outputs
from agentvm_kernel.profiles import Limits
from agentvm_kernel.supervisor.execution_messages import Execution, digest_of

Happening = tuple[str, int, str]


def reports(supervisor: ScriptedSupervisor) -> list[Execution]:
    """What was told of beginnings and ends; what cells have shown comes before or after their end."""
    return [one for request in supervisor.cells for one in request.executions if one.happened != "shown"]


def happenings(supervisor: ScriptedSupervisor) -> list[Happening]:
    return [(one.happened, one.run, one.digest) for one in reports(supervisor)]


async def test_cells_are_told_when_they_begin_and_how_they_ended(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        await cell(client, guest, "first()")
        await cell(client, guest, "second()", "error")
        await kernel.machine.network.told()
        first, second = digest_of("first()"), digest_of("second()")
        assert happenings(kernel.supervisor) == [
            ("started", 1, first), ("completed", 1, first), ("started", 2, second), ("failed", 2, second),
        ]  # fmt: skip
        failed = reports(kernel.supervisor)[-1]
        assert (failed.error, failed.vm, failed.count, failed.code) == ("E", "vm-1", 2, "")


async def test_one_request_tells_the_end_of_a_cell_and_the_next_ones_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "_SOON", 3600)
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        for number in range(3):
            await cell(client, guest, f"{number}")
            await within(lambda number=number: len(kernel.supervisor.cells) == number + 1)
        told = [
            [one.happened for one in request.executions if one.happened != "shown"]
            for request in kernel.supervisor.cells
        ]
        assert told == [["started"], ["completed", "started"], ["completed", "started"]]
    assert [one.happened for one in kernel.supervisor.cells[-1].executions if one.happened != "shown"] == ["completed"]


async def test_no_cell_waits_for_a_supervisor_that_does_not_answer(tmp_path: Path) -> None:
    supervisor = ScriptedSupervisor()
    answer = asyncio.Event()
    set_cell = supervisor.set_cell

    async def late(lease: str, request: object) -> None:
        await answer.wait()
        await set_cell(lease, request)  # type: ignore[arg-type]

    supervisor.set_cell = late  # type: ignore[method-assign]
    async with running(tmp_path, supervisor) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        for number in range(3):
            assert (await cell(client, guest, f"{number}"))["content"]["status"] == "ok"  # type: ignore[index]
        assert supervisor.cells == []
        answer.set()
        await kernel.machine.network.told()
    assert [one.happened for one in reports(supervisor)] == ["started", "completed"] * 3


async def test_a_magic_is_no_execution(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        await told(client, await kernel.guest(), "%net")
        await kernel.machine.network.told()
        assert reports(kernel.supervisor) == []


async def test_what_a_cell_may_reach_is_told_with_it(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        await cell(client, await kernel.guest(), "# net: allow a.example\nget()")
        await kernel.machine.network.told()
        assert [one.allow for one in reports(kernel.supervisor)] == [("a.example",), ()]


async def test_code_is_told_only_if_the_configuration_says_so(tmp_path: Path) -> None:
    supervisor = ScriptedSupervisor(grant=False)
    async with running(tmp_path, supervisor) as kernel, kernel.client() as client:
        await supervisor.leased.wait()
        supervisor.leases[0].events.put_nowait(supervisor._granted().model_copy(update={"record_code": True}))
        await cell(client, await kernel.guest(), "get()" + "x" * 10_000)
        await kernel.machine.network.told()
        begun, ended = reports(supervisor)
        assert (begun.code[:6], len(begun.code), ended.code) == ("get()x", 8192, "")


def test_halves_of_surrogate_pairs_do_not_keep_a_cell_from_being_told() -> None:
    told = cell_begins("get('\ud800')", granted(record_code=True))
    assert told.code == "get('?')"
    assert Execution.model_validate_json(told.model_dump_json()) == told


async def test_a_cell_whose_vm_dies_has_failed(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        msg_id = client.execute("crash()")
        guest.begin(await guest.asked())
        await within(lambda: kernel.supervisor.cells)
        await told_restart(client, kernel)
        await replied(client, msg_id)
        await kernel.guest()
        await kernel.machine.network.told()
        failed = reports(kernel.supervisor)[-1]
        assert (failed.happened, failed.vm, failed.reason) == ("failed", "vm-1", "The VM was restarted.")


async def told_restart(client: object, kernel: object) -> None:
    """Restart the VM in the middle of a cell, as the deadline does."""
    await kernel.machine.restart()  # type: ignore[attr-defined]


async def test_a_cell_past_its_deadline_has_timed_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadline, "_TICK", 0.01)
    monkeypatch.setattr(deadline, "GRACE", 0.2)
    supervisor = ScriptedSupervisor()
    supervisor.given = Limits.model_construct(cell_deadline=0.2)
    async with running(tmp_path, supervisor) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        msg_id = client.execute("while True: pass")
        guest.begin(await guest.asked())
        await interrupted(guest)
        await replied(client, msg_id)
        await kernel.guest()
        await kernel.machine.network.told()
        late = reports(supervisor)[-1]
        assert (late.happened, late.limits) == ("timeout", ("cell_deadline",))


async def test_what_the_firewall_leaves_out_is_told_with_its_reason(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        client.execute("show()")
        guest.begin(asked := await guest.asked())
        guest.say("iopub", parts_of("display_data", {"data": {"application/x-own": 1}, "metadata": {}}, asked.header))
        guest.finish(asked)
        await within(lambda: reports(kernel.supervisor)[-1].happened == "completed")
    assert reports(kernel.supervisor)[-1].blocked == {Reason.MIME: 1}


async def test_blocked_output_is_told_with_the_cells_end_or_soon_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executions, "_SOON", 0)
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        msg_id = client.execute("show()")
        asked = await guest.asked()
        guest.begin(asked)
        (request,) = kernel.router._table.current()
        for reason in (Reason.SCRIPT, Reason.SCRIPT, Reason.REMOTE):
            kernel.router._executions.blocked(request, reason)
        guest.finish(asked)
        await replied(client, msg_id)
        for late in (request, None):
            kernel.router._executions.blocked(late, Reason.SIZE)
        await within(lambda: len(reports(kernel.supervisor)) == 4)
        told = [(one.happened, one.run, one.blocked) for one in reports(kernel.supervisor)]
        assert told == [
            ("started", 1, {}),
            ("completed", 1, {Reason.SCRIPT: 2, Reason.REMOTE: 1}),
            ("going on", 1, {Reason.SIZE: 1}),
            ("going on", 0, {Reason.SIZE: 1}),
        ]


async def test_reports_are_sent_in_pieces_and_what_is_too_much_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as kernel, kernel.client():
        await kernel.guest()
        notebook = kernel.machine.network
        for run in range(1100):
            notebook.report(Execution(happened="started", run=run, digest="d" * 64, code="x" * 1000))
        await notebook.told()
        assert max(len(request.model_dump_json()) for request in kernel.supervisor.cells) < 64 << 10
        assert [one.run for one in reports(kernel.supervisor)] == list(range(1000))
        assert sum(request.unsaid for request in kernel.supervisor.cells) == 100


async def test_what_a_supervisor_did_not_take_is_counted(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client():
        await kernel.guest()
        notebook = kernel.machine.network
        kernel.supervisor.fails = ApiError("no_lease", "There is no lease.")
        notebook.report(Execution(happened="started", run=1, digest="d" * 64))
        await notebook.told()
        kernel.supervisor.fails = None
        notebook.report(Execution(happened="completed", run=1, digest="d" * 64))
        await notebook.told()
        assert [(len(one.executions), one.unsaid) for one in kernel.supervisor.cells] == [(1, 1)]


async def test_audit_shows_a_table_and_what_a_guest_claims_as_claimed(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        assert "says nothing of this notebook" in await told(client, guest, "%audit")
        event = ExecutionFailed(vm="vm-1", run=3, digest="d" * 64, error=claimed("\x1b[31mKeyError"))
        kernel.supervisor.audited = [
            Record(sequence=number, time=1.0, event=event, previous="0" * 64) for number in range(1, 41)
        ]
        lines = (await told(client, guest, "%audit")).splitlines()
        assert len(lines) == 21
        assert lines[-1].split()[0] == "40"
        assert 'error=claimed "\N{REPLACEMENT CHARACTER}[31mKeyError"' in lines[-1]
        assert len((await told(client, guest, "%audit 3")).splitlines()) == 4
        for wrong in ("%audit 0", "%audit x", "%audit 1 2", "%audit 1000"):
            assert "valid is %audit [N]" in await told(client, guest, wrong)
        assert "%audit [N]" in await told(client, guest, "%audit?")


async def test_what_a_cell_has_shown_is_told_with_its_id_once_it_is_idle(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        content = {"code": "show()", "silent": False, "store_history": True, "user_expressions": {}}
        message = client.session.msg("execute_request", content, metadata={"cellId": "cell-1"})
        client.shell_channel.send(message)
        asked = await guest.asked()
        guest.begin(asked)
        guest.output(asked, "one ")
        guest.output(asked, "two")
        guest.finish(asked)
        await outputs(client, message["header"]["msg_id"])
        await replied(client, message["header"]["msg_id"])

        def told() -> list[Execution]:
            return [one for request in kernel.supervisor.cells for one in request.executions]

        await within(lambda: len(told()) == 3)
        (shown,) = [one for one in told() if one.happened == "shown"]
        output = {"output_type": "stream", "name": "stdout", "text": "one two"}
        assert (shown.run, shown.outputs) == (1, digest_of_outputs([output]))
        assert [one.cell for one in told()] == ["cell-1"] * 3
