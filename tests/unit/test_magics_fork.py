"""`%%fork`: what is held while the point is saved, what is shown, and what an interrupt does."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from unittest.mock import ANY

import pytest
from jupyter_client.asynchronous import AsyncKernelClient
from kernel_harness import (
    TIMEOUT,
    Asked,
    InProcessKernel,
    ScriptedGuest,
    ask,
    cell,
    granted,
    outputs,
    parts_of,
    replied,
    running,
    shown,
    told,
    types,
    within,
)

from agentvm_kernel.kernel.execution import CellError, CellResult
from agentvm_kernel.kernel.forks import ForkResult
from agentvm_kernel.magics.outcome import draw
from agentvm_kernel.supervisor.execution_messages import digest_of
from agentvm_kernel.supervisor.fork_messages import ForkEnded, ForkGranted
from agentvm_kernel.supervisor.messages import Progress
from agentvm_kernel.supervisor.snapshot_messages import SnapshotRequest

POINT = "00000000f0f0"
SNAPSHOT = SnapshotRequest(kind="fork")


@asynccontextmanager
async def forking(
    folder: Path, code: str = "%%fork 2\nx * 2"
) -> AsyncIterator[tuple[InProcessKernel, AsyncKernelClient, ScriptedGuest, str]]:
    """A kernel that has asked for forks, of which none is there yet."""
    async with running(folder) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        await cell(client, guest, "x = 1")
        msg_id = client.execute(code)
        await guest.execute()
        await within(lambda: kernel.supervisor.forking)
        yield kernel, client, guest, msg_id


async def grant(kernel: InProcessKernel, number: int) -> ScriptedGuest:
    """Let a fork be there; return its guest."""
    links = len(kernel.links)
    event = ForkGranted(fork=number, granted=granted(number + 100, lease="lease-1", snapshot=POINT))
    kernel.supervisor.fork_events.put_nowait(event)
    await within(lambda: len(kernel.links) > links and "agent" in kernel.links[links].streams)
    return ScriptedGuest(kernel.links[links])


async def answer(fork: ScriptedGuest, result: str) -> Asked:
    asked = await fork.asked()
    fork.begin(asked)
    fork.output(asked, f"printed {result}\n")
    data = {"data": {"text/plain": result}, "metadata": {}, "execution_count": 1}
    fork.say("iopub", parts_of("execute_result", data, asked.header))
    fork.finish(asked)
    return asked


async def test_forks_run_the_lines_below_and_their_results_are_a_table(tmp_path: Path) -> None:
    async with forking(tmp_path, "%%fork 2 --randomness common\nx * 2\nx") as (kernel, client, _, msg_id):
        forks = [await grant(kernel, number) for number in (1, 2)]
        asked = [await answer(fork, f"r{number}") for number, fork in enumerate(forks, 1)]
        said = await outputs(client, msg_id)
        reply = await replied(client, msg_id)
    assert [one.content["code"] for one in asked] == ["x * 2\nx"] * 2
    assert types(said) == ["busy", "execute_input", "display_data", "idle"]
    lines = shown(said).splitlines()
    assert [line.split()[:2] for line in lines[:3]] == [["fork", "status"], ["1", "ok"], ["2", "ok"]]
    assert lines[1].endswith("r1")
    assert lines[3:5] == ["fork 1 printed:", "printed r1"]
    assert lines[-1] == "%adopt K makes fork K the notebook's VM; K may be 1, 2."
    (display,) = [one["content"]["data"] for one in said if one["msg_type"] == "display_data"]
    side_by_side = display["application/vnd.agentvm.forks+json"]
    assert side_by_side["run"] == 2
    assert [(fork["fork"], fork["status"], fork["kept"]) for fork in side_by_side["forks"]] == [
        (1, "ok", True),
        (2, "ok", True),
    ]
    assert side_by_side["forks"][1]["blocked"] == 0
    assert side_by_side["forks"][1]["outputs"] == [
        {"output_type": "stream", "name": "stdout", "text": "printed r2\n"},
        {"output_type": "execute_result", "execution_count": 1, "data": {"text/plain": "r2"}, "metadata": {}},
    ]
    assert reply["metadata"]["agentvm"] == {
            "run": 2, "vm": "vm-1", "snapshot": POINT, "facts": ANY,
            "code": digest_of("%%fork 2 --randomness common\nx * 2\nx"),
            "forks": {"count": 2, "randomness": "common", "seed": ANY},
        }  # fmt: skip
    assert {"forks 2 common", "rest 1", "rest 2"} <= set(kernel.supervisor.asked)
    assert not kernel.supervisor.forking


async def test_only_a_fork_of_the_run_that_is_named_is_adopted(tmp_path: Path) -> None:
    async with forking(tmp_path, "%%fork 1\nx") as (kernel, client, guest, msg_id):
        await answer(await grant(kernel, 1), "1")
        await replied(client, msg_id)
        assert "forks of run 1 are gone" in await told(client, guest, "%adopt 1 --of 1")
        assert not [asked for asked in kernel.supervisor.asked if asked.startswith("adopt")]
        await kernel.supervisor.snapshot("lease-1", SNAPSHOT)
        adopted = client.execute("%adopt 1 --of 2")
        await guest.execute()
        assert (await replied(client, adopted))["content"]["status"] == "ok"
        assert "forks of run 2 are gone" in await told(client, ScriptedGuest(kernel.links[-1]), "%adopt 1 --of 2")


async def test_the_vm_is_held_until_the_first_fork_is_there_and_no_longer(tmp_path: Path) -> None:
    async with forking(tmp_path) as (kernel, client, guest, msg_id):
        kernel.supervisor.fork_events.put_nowait(Progress(stage="saving the virtual machine"))
        await ask(client, "debug_request", {"command": "debugInfo"}, "control")
        await within(lambda: kernel.waiting("control"))
        assert kernel.links[0].held
        assert guest.idle_hands("control")
        first = await grant(kernel, 1)
        assert (await guest.asked("control")).header["msg_type"] == "debug_request"
        assert not kernel.links[0].held
        now = client.execute("%snapshot --now")
        assert (await replied(client, now))["content"]["status"] == "ok"
        second = await grant(kernel, 2)
        await answer(first, "1")
        await answer(second, "2")
        assert (await replied(client, msg_id))["content"]["status"] == "ok"


async def test_progress_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentvm_kernel.kernel.progress._INTERVAL", 0.05)
    async with forking(tmp_path) as (kernel, client, _, msg_id):
        kernel.supervisor.fork_events.put_nowait(Progress(stage="starting QEMU"))
        assert "starting QEMU" in await progress(client, msg_id, "Saving the virtual machine: starting QEMU (")
        first, second = await grant(kernel, 1), await grant(kernel, 2)
        await answer(first, "1")
        await progress(client, msg_id, "Running the forks: 1 running, 1 of 2 done [############............] 50% (")
        await answer(second, "2")
        assert types(await outputs(client, msg_id))[-2:] == ["display_data", "idle"]


async def progress(client: AsyncKernelClient, msg_id: str, beginning: str) -> str:
    while True:
        message = await client.get_iopub_msg(timeout=TIMEOUT)
        if message["msg_type"] in {"display_data", "update_display_data"}:
            text = str(message["content"]["data"]["text/plain"])
            if text.startswith(beginning):
                return text


async def test_forks_that_cannot_be_are_an_error_and_the_notebook_goes_on(tmp_path: Path) -> None:
    async with forking(tmp_path) as (kernel, client, guest, msg_id):
        kernel.supervisor.fork_events.put_nowait(ForkEnded(fork=0, code="disk_full", reason="There is no room."))
        reply = await replied(client, msg_id)
        assert "There is no room." in reply["content"]["evalue"]
        assert reply["metadata"]["agentvm"]["snapshot"] == ""
        assert (await cell(client, guest, "x"))["content"]["status"] == "ok"


async def test_an_interrupt_ends_the_forks_once_the_vm_is_saved(tmp_path: Path) -> None:
    async with forking(tmp_path) as (kernel, client, guest, msg_id):
        await ask(client, "interrupt_request", {}, "control")
        assert (await replied(client, msg_id))["content"]["ename"] == "KeyboardInterrupt"
        after = client.execute("after")
        await kernel.held(1)
        assert kernel.links[0].held
        assert kernel.supervisor.forking
        await grant(kernel, 1)
        await within(lambda: not kernel.supervisor.forking)
        await guest.execute()
        assert (await replied(client, after))["content"]["status"] == "ok"


async def test_an_interrupt_ends_forks_that_run(tmp_path: Path) -> None:
    async with forking(tmp_path) as (kernel, client, guest, msg_id):
        await (await grant(kernel, 1)).asked()
        await ask(client, "interrupt_request", {}, "control")
        assert (await replied(client, msg_id))["content"]["ename"] == "KeyboardInterrupt"
        await within(lambda: not kernel.supervisor.forking)
        assert (await cell(client, guest, "x"))["content"]["status"] == "ok"


async def test_forks_end_with_the_vm(tmp_path: Path) -> None:
    async with forking(tmp_path) as (kernel, client, guest, msg_id):
        await (await grant(kernel, 1)).asked()
        guest.say("agent", [json.dumps({"event": "kernel_died", "exit_code": 3}).encode()])
        assert "exit code 3" in (await replied(client, msg_id))["content"]["evalue"]
        assert not kernel.supervisor.forking


async def test_comms_from_before_the_fork_stay_open_when_one_is_adopted(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        guest.say("iopub", parts_of("comm_open", {"comm_id": "before", "target_name": "t", "data": {}}))
        await cell(client, guest, "x")
        forked = client.execute("%%fork 1\nx")
        await guest.execute()
        await answer(await grant(kernel, 1), "1")
        await replied(client, forked)
        guest.say("iopub", parts_of("comm_open", {"comm_id": "after", "target_name": "t", "data": {}}))
        await cell(client, guest, "y")
        point = await kernel.supervisor.snapshot("lease-1", SNAPSHOT)
        kernel.supervisor.taken[-1] = point.model_copy(update={"id": POINT})
        adopt = client.execute("%adopt 1")
        await guest.execute()
        said = []
        while not said or said[-1]["parent_header"].get("msg_id") != adopt or types(said)[-1] != "idle":
            said.append(await client.get_iopub_msg(timeout=TIMEOUT))
        assert [m["content"]["comm_id"] for m in said if m["msg_type"] == "comm_close"] == ["after"]
        undone = await told(client, ScriptedGuest(kernel.links[-1]), "%undo 2 3")
        assert "valid is %undo" in undone


@pytest.mark.parametrize(
    "call",
    [
        "%%fork\nx",
        "%%fork 0\nx",
        "%%fork 65\nx",
        "%%fork two\nx",
        "%%fork 2 3\nx",
        "%%fork 2 --randomness none\nx",
        "%%fork 2 --timeout 0\nx",
        "%%fork 2 --timeout 90000\nx",
        "%%fork 2 --timeout\nx",
        "%%fork -2\nx",
    ],
)
async def test_a_wrong_call_forks_nothing(tmp_path: Path, call: str) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        text = await told(client, guest, call)
        assert "valid is %%fork N" in text
        assert "\n" not in text
        assert "needs the lines to run below" in await told(client, guest, "%%fork 2\n  \n")
        assert kernel.supervisor.asked == []


def result(fork: int, **changes: object) -> ForkResult:
    values: dict[str, object] = {"status": "ok", "seconds": 0.125}
    return ForkResult(
        fork, CellResult(**(values | changes)), memory=64 << 20, cpu_seconds=0.05, kept=changes.get("status") != "died"
    )  # type: ignore[arg-type]


def test_every_end_has_its_line() -> None:
    text = draw(
        [
            result(1, result="42"),
            result(2, status="error", error=CellError("ValueError", "no\nsuch", "…"), stderr="warned\n"),
            result(3, status="timeout", reason="It was not done within 5 s."),
            result(4, status="died", reason="The VM is gone."),
        ]
    )["text/plain"]
    assert text.splitlines() == [
        "fork  status   time    CPU     memory    result",
        "1     ok       0.12 s  0.05 s  64.0 MiB  42",
        "2     error    0.12 s  0.05 s  64.0 MiB  ValueError: no…",
        "3     timeout  0.12 s  0.05 s  64.0 MiB  It was not done within 5 s.",
        "4     died     0.12 s  0.05 s  64.0 MiB  The VM is gone.",
        "fork 2 printed:",
        "warned",
        "%adopt K makes fork K the notebook's VM; K may be 1, 2, 3.",
    ]
    assert draw([result(1, status="died")])["text/plain"].endswith("No fork can be adopted.")


def test_long_output_is_shortened() -> None:
    text = draw([result(1, stdout="line\n" * 100_000)])["text/plain"]
    assert text.count("line") == 12
    assert "…" in text
    assert len(draw([result(1, stdout="x" * 100_000)])["text/plain"]) < 2000


@pytest.mark.parametrize("evil", ["<script>alert(1)</script>", "\x1b]0;title\x07\x1b[31mred", "\u202eabc\u2066"])
def test_what_forks_say_is_shown_as_text(evil: str) -> None:
    drawn = draw([result(1, stdout=evil, result=evil, status="error", error=CellError(evil, evil, evil))])
    assert "<script" not in drawn["text/html"]
    for text in drawn.values():
        assert all(character.isprintable() or character == "\n" for character in text)
