"""What the supervisor does about anomalies: audit, note, slow, pause, kill, and taking that back."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from anomaly_bed import bed
from kernel_harness import ScriptedSupervisor, outputs, running, types, within

from agentvm_kernel.anomalies import AnomalySettings
from agentvm_kernel.egress.record import Connection
from agentvm_kernel.errors import ApiError
from agentvm_kernel.kernel.anomaly import noticed
from agentvm_kernel.snapshots.notes import Cell
from agentvm_kernel.supervisor.messages import Ended, LimitsRequest, Noticed
from agentvm_kernel.supervisor.network_messages import CellRequest
from agentvm_kernel.supervisor.operator import Operator
from agentvm_kernel.supervisor.operator_messages import DiskRequest, Resumed
from agentvm_kernel.supervisor.snapshot_messages import SnapshotRequest
from agentvm_kernel.supervisor.workspace_messages import WorkspaceRequest

SEEN = Noticed(
    vm="vm-1", run=1, rule="own", severity="critical", text="sends a lot", value=123.456, threshold=100,
    response="note",
)  # fmt: skip


async def test_an_anomaly_is_audited_and_told_once(short_tmp: Path) -> None:
    async with bed(short_tmp) as ours:
        await ours.client.set_cell(ours.id, CellRequest(cell=Cell(run=7, code="send()")))
        await ours.send(99)
        assert ours.audited("anomaly_detected") == []
        for _ in range(3):
            await ours.send(101)
        (entry,) = ours.audited("anomaly_detected")
        assert (entry["vm"], entry["lease"], entry["kind"]) == (ours.lease.vm.id, ours.id, "own")
        assert (entry["severity"], entry["value"], entry["response"]) == ("critical", 200, "note")
        assert "is_claimed" not in entry
        event = await ours.told()
        assert isinstance(event, Noticed)
        assert (event.rule, event.run, event.response) == ("own", 7, "note")
        assert ours.audited("anomaly_response") == []


async def test_what_is_only_audited_is_not_told(short_tmp: Path) -> None:
    async with bed(short_tmp, "audit") as ours:
        await ours.send(101)
        assert [entry["response"] for entry in ours.audited("anomaly_detected")] == ["audit"]
        await Operator(ours.supervisor).kill(ours.lease.vm.id)
        assert isinstance(await ours.told(), Ended)


async def test_a_pause_keeps_the_vm_and_is_taken_back(short_tmp: Path) -> None:
    async with bed(short_tmp, "pause") as ours:
        assert await ours.held() == [""]
        await ours.send(101)
        assert ours.machine.calls[-1] == "pause"
        assert await ours.held() == ["paused"]
        (kept,) = (await ours.client.snapshots(ours.id)).snapshots
        assert kept.label.startswith("anomaly-own-")
        (entry,) = ours.audited("anomaly_response")
        assert (entry["response"], entry["kind"]) == ("pause", "own")
        assert kept.id in entry["detail"]
        vm, asked = ours.lease.vm.id, list(ours.machine.ops)
        for attempt in (
            ours.client.snapshot(ours.id, SnapshotRequest()),
            ours.client.set_limits(ours.id, LimitsRequest(changes={"processes": 99})),
            ours.client.set_workspace(ours.id, WorkspaceRequest(folder=str(Path(__file__).parent))),
            ours.client.copy_disk(vm, DiskRequest(file=str(short_tmp / "disk"))),
        ):
            with pytest.raises(ApiError, match="stopped because of an anomaly") as refused:
                await attempt
            assert refused.value.code == "stopped"
        assert ours.machine.calls[-1] == "pause"
        assert ours.machine.ops == asked, "its guest could not answer"
        assert await ours.client.resume(vm) == Resumed(was_paused=True, was_slowed=False)
        assert await ours.held() == [""]
        assert ours.machine.calls[-1] == "resume"
        assert ours.machine.ops[-1]["op"] == "clock"
        assert [entry["response"] for entry in ours.audited("anomaly_response")] == ["pause", "resume"]
        assert await ours.client.resume(vm) == Resumed(was_paused=False, was_slowed=False)
        await ours.client.snapshot(ours.id, SnapshotRequest())


async def test_what_cannot_be_kept_is_stopped_all_the_same(short_tmp: Path) -> None:
    async with bed(short_tmp, "pause") as ours:
        ours.machine.faults.add("save")
        await ours.send(101)
        assert ours.machine.calls[-1] == "pause"
        assert "could not be kept" in ours.audited("anomaly_response")[0]["detail"]


async def test_a_slowed_vm_gives_way_whatever_it_wants_until_that_is_taken_back(short_tmp: Path) -> None:
    async with bed(short_tmp, "slow") as ours:
        before = len(ours.machine.calls)
        await ours.send(101)
        done = ours.machine.calls[before:]
        assert [call.split()[0] for call in done] == ["give", "limit"]
        assert done[1].startswith("limit 0.1 ")
        assert await ours.held() == ["slowed"]
        await ours.client.set_limits(ours.id, LimitsRequest(changes={"cpu": 1.5}))
        assert ours.machine.calls[before:] == done
        assert await ours.client.resume(ours.lease.vm.id) == Resumed(was_paused=False, was_slowed=True)
        assert ours.machine.calls[-2].startswith("limit 1.5 ")
        assert ours.machine.calls[-1] == "take turns"


async def test_a_killed_vms_session_is_told_why(short_tmp: Path) -> None:
    async with bed(short_tmp, "kill") as ours:
        await ours.send(101)
        assert isinstance(await ours.told(), Noticed)
        ended = await ours.told()
        assert isinstance(ended, Ended)
        assert ended.code == "anomaly"
        assert "own" in ended.reason


async def test_a_response_that_fails_is_audited(short_tmp: Path) -> None:
    async with bed(short_tmp, "slow") as ours:
        vm = ours.lease.vm
        await ours.look()
        ours.account(101)
        await ours.supervisor.stats.sampler.look()
        ours.supervisor.anomalies.look()
        await ours.machine.end()
        await ours.supervisor.anomalies.responses.settled()
        (entry,) = [one for one in ours.audited("anomaly_response") if one["vm"] == vm.id]
        assert entry["detail"].startswith("failed: ")


@pytest.mark.parametrize("is_known", [True, False])
async def test_connections_are_looked_at_too(short_tmp: Path, is_known: bool) -> None:
    """Those of a VM that has not been looked at yet, as well: its first cell may be the one that tells."""
    async with bed(short_tmp) as ours:
        vm = ours.lease.vm.id
        if is_known:
            await ours.look()
        await asyncio.sleep(0)
        ours.supervisor.networks._log.put(
            Connection(
                id=1, time=1.0, session=ours.id, vm=vm, cell="", name="pool.minexmr.example", address="", port=443,
                verdict="refused", rule="", reason="it is not allowed", duration=0.0,
            )
        )  # fmt: skip
        await within(lambda: bool(ours.supervisor.anomalies._contacts[vm]))
        await ours.look()
        await ours.look()
        assert [entry["kind"] for entry in ours.audited("anomaly_detected")] == ["mining-name"]


async def test_other_rules_hold_once_the_configuration_is_read_again(short_tmp: Path) -> None:
    async with bed(short_tmp) as ours:
        ours.supervisor.anomalies.configure(AnomalySettings(enabled=False))
        await ours.send(101)
        assert ours.audited("anomaly_detected") == []


async def test_output_counts_from_when_the_vm_is_looked_at(short_tmp: Path) -> None:
    async with bed(short_tmp) as ours:
        await ours.client.set_cell(ours.id, CellRequest(output=10**9))
        await ours.look()
        await ours.look()
        assert ours.audited("anomaly_detected") == []
        await ours.client.set_cell(ours.id, CellRequest(output=2 * 10**9))
        await ours.look()
        assert [entry["kind"] for entry in ours.audited("anomaly_detected")] == ["output-flood"]


# In the notebook


async def test_a_note_stands_under_the_running_cell(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        msg_id = client.execute("send()")
        asked = await guest.asked()
        guest.begin(asked)
        await within(kernel.router._table.current)
        kernel.supervisor.leases[0].events.put_nowait(SEEN)
        while (message := await client.get_iopub_msg(timeout=20))["msg_type"] != "stream":
            pass
        assert message["parent_header"]["msg_id"] == msg_id
        assert message["content"] == {
            "name": "stderr",
            "text": "Anomaly own (critical): the VM sends a lot: 123.5, threshold 100.\n",
        }
        guest.finish(asked)
        assert "idle" in types(await outputs(client, msg_id))


@pytest.mark.parametrize("is_busy", [True, False])
@pytest.mark.parametrize(
    ("done", "said"),
    [
        (Resumed(was_paused=True, was_slowed=True), "The VM runs on, at full speed."),
        (Resumed(was_paused=False, was_slowed=False), "The VM was neither stopped nor slowed down."),
    ],
)
async def test_vm_resume_asks_for_the_notebooks_vm_even_while_a_cell_runs(
    tmp_path: Path, done: Resumed, said: str, is_busy: bool
) -> None:
    supervisor = ScriptedSupervisor()
    supervisor.resumed = done
    async with running(tmp_path, supervisor) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        if is_busy:
            client.execute("send()")
            await guest.asked()
        msg_id = client.execute("%vm resume")
        while (message := await client.get_iopub_msg(timeout=20))["msg_type"] != "display_data":
            pass
        assert message["parent_header"]["msg_id"] == msg_id
        assert message["content"]["data"]["text/plain"] == said
        assert [asked for asked in kernel.supervisor.asked if asked.startswith("resume")] == ["resume vm-1"]


def test_a_note_marks_what_is_claimed_and_cannot_steer_a_terminal() -> None:
    claimed = SEEN.model_copy(update={"claimed": True, "about": "\x1b[31mhost", "response": "pause"})
    text = noticed(claimed)
    assert "the VM, by its own account, sends" in text
    assert "\x1b" not in text
    assert "%vm resume" in text
    assert text.count("\n") == 1
