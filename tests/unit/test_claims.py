"""What guests say of themselves: read in the guest, taken as hostile on the host, asked for gently."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from agentvm_guest.claims import claims
from anomaly_bed import Bed, bed
from kernel_harness import within

from agentvm_kernel.observe.claims import Claims
from agentvm_kernel.supervisor import claims as feed


def test_a_guest_tells_of_processes_load_memory_and_disk() -> None:
    told = claims()
    assert Claims.of(told).model_dump() == told
    assert told["processes"] > 1
    assert told["processes_started"] > 1
    assert told["memory_free"] > 0
    assert 0 <= told["filesystem_free"] <= told["filesystem_size"]


def test_what_a_guest_cannot_read_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "loadavg").write_text("nonsense")
    (tmp_path / "meminfo").write_text("MemTotal: 5 kB\n")
    assert set(claims(tmp_path)) == {"filesystem_size", "filesystem_free"}
    assert claims(tmp_path, tmp_path / "nowhere") == {}


@pytest.mark.parametrize(
    "value", [None, True, -1, 1 << 60, "7", [7], {"a": 7}, math.nan, math.inf, 7.5, 10**400], ids=lambda v: str(v)[:9]
)
def test_what_makes_no_sense_is_no_claim(value: object) -> None:
    assert Claims.of({"processes_started": value, "processes": 3}) == Claims(processes=3)
    assert Claims.of({"load": value}) == (Claims(load=7.5) if value == 7.5 else Claims())


def test_a_claim_goes_through_json_unharmed() -> None:
    hostile = json.loads('{"ok": true, "load": 1e400, "processes": 5, "memory_free": "\\ud800", "more": {"x": 1}}')
    assert Claims.of(hostile) == Claims(processes=5)
    assert Claims.model_validate_json(Claims(processes=5, load=0.25).model_dump_json()) == Claims(
        processes=5, load=0.25
    )


@pytest.fixture
def _curious(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guests are asked at every look."""
    monkeypatch.setattr(feed, "_SECONDS", 0.0)
    monkeypatch.setattr(feed, "_WORK_SECONDS", 0.0)


async def look(ours: Bed, started: int, **lies: object) -> None:
    """Let the guest claim something, and the rules look at it."""
    ours.machine.lies = {"processes_started": started, **lies}
    asked = ours.supervisor.anomalies.claims
    await ours.supervisor.stats.sampler.look()
    asked.look()
    await within(lambda: (said := asked.of(ours.lease.vm.machine)) and said.processes_started == started)
    await ours.look()


def times_asked(ours: Bed) -> int:
    return sum(request["op"] == "facts" for request in ours.machine.ops)


@pytest.mark.usefixtures("_curious")
async def test_a_claimed_process_storm_is_an_anomaly_that_is_marked_as_claimed(short_tmp: Path) -> None:
    async with bed(short_tmp) as ours:
        for started in (500, 700, 1300):
            await look(ours, started)
        assert ours.audited("anomaly_detected") == []
        await look(ours, 2600)
        (entry,) = ours.audited("anomaly_detected")
        assert (entry["kind"], entry["is_claimed"], entry["vm"]) == ("process-storm", True, ours.lease.vm.id)


@pytest.mark.usefixtures("_curious")
async def test_a_claim_stands_beside_what_is_measured_and_changes_nothing_of_it(short_tmp: Path) -> None:
    async with bed(short_tmp) as ours:
        (before,) = [vm for vm in (await ours.client.vms()).vms if vm.state == "leased"]
        assert before.claimed is None
        await look(ours, 5, cpu_seconds=1e6, disk_written=1 << 40, network_sent=7, executing=True, memory=1)
        ours.machine.lies = {}
        (after,) = [vm for vm in (await ours.client.vms()).vms if vm.state == "leased"]
        assert after.claimed == Claims(processes_started=5)
        assert after.cpu_seconds < 1000
        same = {"memory_mib", "disk_read", "disk_written", "network_sent", "network_received", "executing", "state"}
        assert after.model_dump(include=same) == before.model_dump(include=same)


@pytest.mark.usefixtures("_curious")
async def test_guests_that_have_hardly_worked_or_are_held_are_not_asked(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bed(short_tmp) as ours:
        await look(ours, 5)
        count = times_asked(ours)
        monkeypatch.setattr(feed, "_WORK_SECONDS", 1e6)
        await ours.supervisor.stats.sampler.look()
        ours.supervisor.anomalies.claims.look()
        monkeypatch.setattr(feed, "_WORK_SECONDS", 0.0)
        async with ours.lease.turn:
            ours.supervisor.anomalies.claims.look()
        assert times_asked(ours) == count
        assert [one for one in ours.supervisor.anomalies.claims._asked.values() if not one.task.done()] == []
        await look(ours, 6)
        assert times_asked(ours) == count + 1


@pytest.mark.usefixtures("_curious")
async def test_a_guest_that_does_not_answer_is_asked_once_and_keeps_what_it_said(short_tmp: Path) -> None:
    async with bed(short_tmp) as ours:
        await look(ours, 5)
        ours.machine.is_mute = True
        count = times_asked(ours)
        for _ in range(3):
            await ours.supervisor.stats.sampler.look()
            ours.supervisor.anomalies.claims.look()
            await within(lambda: times_asked(ours) == count + 1)
        ours.machine.is_mute = False
        said = ours.supervisor.anomalies.claims.of(ours.lease.vm.machine)
        assert said is not None
        assert said.processes_started == 5
