"""What sessions tell of their executions, in the supervisor's audit log."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from audited import audited
from fake_hypervisor import FakeHypervisor
from kernel_harness import within
from pydantic import ValidationError
from supervisor_bed import SETTINGS, first_grant, make_paths, serving

from agentvm_kernel.config import Paths
from agentvm_kernel.errors import ApiError
from agentvm_kernel.settings import Audit
from agentvm_kernel.supervisor.client import Lease, SupervisorClient
from agentvm_kernel.supervisor.core import Supervisor
from agentvm_kernel.supervisor.execution_messages import Copied, Execution, Report, digest_of
from agentvm_kernel.supervisor.messages import Granted, LeaseRequest
from agentvm_kernel.supervisor.network_messages import CellRequest

BEGUN = Execution(happened="started", run=4, digest=digest_of("get()"), allow=("a.example",))


class Bed:
    """A supervisor, its client, and a lease."""

    def __init__(self, supervisor: Supervisor, client: SupervisorClient, events: Lease, granted: Granted) -> None:
        self.supervisor, self.client, self.events, self.granted = supervisor, client, events, granted

    async def tell(self, *executions: Report, unsaid: int = 0) -> None:
        await self.client.set_cell(self.granted.lease, CellRequest(executions=executions, unsaid=unsaid))

    def audited(self, *events: str) -> list[dict[str, Any]]:
        self.supervisor.audit.flush()
        return audited(self.supervisor.paths.state, *events)


@pytest.fixture
def paths(short_tmp: Path) -> Paths:
    return make_paths(short_tmp)


@pytest.fixture
async def bed(paths: Paths) -> AsyncIterator[Bed]:
    settings = SETTINGS.model_copy(update={"audit": Audit(code=True)})
    async with (
        serving(paths, FakeHypervisor(), settings) as supervisor,
        SupervisorClient(paths, start=False) as client,
        client.lease(LeaseRequest(owner="a test", notebook="n.ipynb")) as events,
    ):
        yield Bed(supervisor, client, events, await first_grant(events))


async def test_a_vms_way_from_image_to_end_is_written_down(bed: Bed) -> None:
    assert [one["event"] for one in bed.audited()][:3] == ["day_began", "supervisor_started", "vm_created"]
    vm = bed.granted.vm
    mine = [one for one in bed.audited() if one.get("vm") == vm]
    assert [one["event"] for one in mine] == ["vm_created", "vm_started", "lease_acquired"]
    assert (mine[0]["accelerator"], mine[2]["accelerator"], mine[2]["notebook"]) == ("tcg", "tcg", "n.ipynb")
    assert [one["image"] for one in bed.audited("image_updated")] == ["d" * 64]
    await bed.client.kill(vm)
    assert (await anext(bed.events)).event == "ended"
    await within(lambda: [one for one in bed.audited("vm_destroyed") if one["vm"] == vm])
    ends = [one for one in bed.audited() if one.get("vm") == vm][3:]
    assert [one["event"] for one in ends] == ["vm_stopped", "lease_released", "vm_destroyed"]
    assert ends[-1]["reason"] == "ended by an administrator"


async def test_an_execution_is_written_down_with_its_digest_and_how_it_ended(bed: Bed) -> None:
    ended = BEGUN.model_copy(update={"happened": "failed", "seconds": 1.5, "count": 7, "error": "KeyError"})
    await bed.tell(BEGUN, ended)
    begun, failed = bed.audited("execution_started", "execution_failed")
    subject = {"vm": bed.granted.vm, "lease": bed.granted.lease, "notebook": "n.ipynb", "run": 4}
    assert begun == begun | subject | {"digest": digest_of("get()"), "allow": ["a.example"]}
    assert failed == failed | subject | {"seconds": 1.5, "count": 7, "error": {"claimed": "KeyError"}}


@pytest.mark.parametrize("happened", ["completed", "failed", "timeout"])
async def test_each_end_has_its_event(bed: Bed, happened: str) -> None:
    await bed.tell(BEGUN, BEGUN.model_copy(update={"happened": happened}))
    assert len(bed.audited(f"execution_{happened}")) == 1


async def test_what_runs_when_its_session_ends_has_failed(bed: Bed) -> None:
    await bed.tell(BEGUN)
    await bed.supervisor.release(bed.supervisor.leases[bed.granted.lease])
    failed, released = bed.audited("execution_failed", "lease_released")
    assert failed["reason"] == "its session was over before it was"
    assert released["event"] == "lease_released"


async def test_code_goes_in_only_where_it_is_given(bed: Bed) -> None:
    assert bed.granted.record_code
    await bed.tell(BEGUN, BEGUN.model_copy(update={"code": "get()"}))
    assert [one.get("code") for one in bed.audited("execution_started")] == [None, "get()"]


async def test_blocked_output_and_limits_are_events_of_their_own(bed: Bed) -> None:
    more = {"happened": "going on", "blocked": {"script": 3, "remote": 1}, "limits": ("output_mib",)}
    await bed.tell(Execution.model_validate(BEGUN.model_dump() | more))
    assert [(one["reason"], one.get("count", 1), one["run"]) for one in bed.audited("output_blocked")] == [
        ("script", 3, 4),
        ("remote", 1, 4),
    ]
    assert [(one["limit"], one["run"]) for one in bed.audited("resource_limit_exceeded")] == [("output_mib", 4)]
    assert bed.audited("execution_completed", "execution_failed") == []


async def test_what_was_copied_is_written_down_by_name_and_digest(bed: Bed) -> None:
    await bed.tell(
        Copied(way="push", path="/home/me/in.csv", digest="a" * 64, size=7, run=4),
        Copied(way="pull", path="out.csv", digest="b" * 64, vm="vm-fork"),
    )
    pushed, pulled = bed.audited("files_copied")
    subject = {"vm": bed.granted.vm, "lease": bed.granted.lease, "notebook": "n.ipynb", "run": 4}
    assert pushed == pushed | subject | {"way": "push", "path": "/home/me/in.csv", "digest": "a" * 64, "size": 7}
    assert (pulled["way"], pulled["vm"], pulled["digest"]) == ("pull", "vm-fork", "b" * 64)


@pytest.mark.parametrize("changes", [{"digest": "x"}, {"way": "out"}, {"size": -1}, {"path": "x" * 2000}, {"more": 1}])
def test_a_copy_is_told_within_bounds(changes: dict[str, object]) -> None:
    told = {"happened": "copied", "way": "push", "digest": "a" * 64}
    assert CellRequest.model_validate({"executions": [told]}).executions == (Copied(way="push", digest="a" * 64),)
    with pytest.raises(ValidationError):
        CellRequest.model_validate({"executions": [told | changes]})


@pytest.mark.parametrize("blocked", [{"nothing": 1}, {"script": 0}, {"script": 1 << 31}, {"script": "many"}])
def test_blocked_output_is_told_by_known_reasons_and_bounded(blocked: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Execution.model_validate(BEGUN.model_dump() | {"blocked": blocked})


async def test_what_could_not_be_told_is_counted(bed: Bed) -> None:
    await bed.tell(unsaid=12)
    assert [one["count"] for one in bed.audited("reports_missing")] == [12]


async def test_a_session_sees_only_its_own_notebooks_part(bed: Bed) -> None:
    await bed.tell(BEGUN)
    async with bed.client.lease(LeaseRequest(owner="another", notebook="other.ipynb")) as events:
        other = await first_grant(events)
        seen = (await bed.client.audit(other.lease)).records
        assert [one.event.event for one in seen] == ["lease_acquired"]
    seen = (await bed.client.audit(bed.granted.lease)).records
    assert [one.event.event for one in seen] == ["lease_acquired", "execution_started"]
    assert [one.event.event for one in (await bed.client.audit(bed.granted.lease, 1)).records] == ["execution_started"]
    with pytest.raises(ApiError, match="valid is a number from 1 to 999"):
        await bed.client.audit(bed.granted.lease, 1000)


async def test_what_a_cell_has_shown_is_written_down_as_a_digest(bed: Bed) -> None:
    begun = BEGUN.model_copy(update={"cell": "cell-1"})
    shown = begun.model_copy(update={"happened": "shown", "outputs": "e" * 64})
    await bed.tell(begun, shown)
    started, told = bed.audited("execution_started", "output_shown")
    assert started["cell"] == "cell-1"
    assert (told["run"], told["digest"], told["outputs"]) == (4, BEGUN.digest, "e" * 64)


async def test_the_number_of_days_is_read_again(bed: Bed) -> None:
    bed.supervisor.paths.config.write_text("[audit]\ndays = 3\n")
    assert "audit" in (await bed.client.reload()).changed
    assert bed.supervisor.audit.days == 3


async def test_a_listing_of_vms_says_whose_session_travels_in_time(bed: Bed) -> None:
    for travelling in (True, False):
        await bed.client.set_cell(bed.granted.lease, CellRequest(travelling=travelling))
        listed = {vm.id: vm.travelling for vm in (await bed.client.vms()).vms}
        assert listed[bed.granted.vm] is travelling
        assert not any(on for vm, on in listed.items() if vm != bed.granted.vm)
