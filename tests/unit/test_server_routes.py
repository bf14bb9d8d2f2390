"""The server extension's routes: a real Jupyter server, kernel processes, guest agents; a fake supervisor."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path

import pytest
import pytest_asyncio
from server_bed import ServerBed, server_bed

from agentvm_kernel.egress.record import Connection
from agentvm_kernel.firewall.reasons import Reason
from agentvm_kernel.observe.chain import Record
from agentvm_kernel.observe.events.anomaly import AnomalyDetected, AnomalyResponse
from agentvm_kernel.observe.events.execution import OutputBlocked
from agentvm_kernel.observe.events.network import NetworkConnectionBlocked
from agentvm_kernel.observe.fields import claimed

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXT = """it's "so" # -m --now %rollback"""


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def bed() -> AsyncIterator[ServerBed]:
    folder = Path(tempfile.mkdtemp(prefix="avm-"))
    async with server_bed(folder) as found:
        yield found
    shutil.rmtree(folder)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def kernel(bed: ServerBed) -> str:
    return await bed.kernel()


async def value(bed: ServerBed, kernel: str, expression: str) -> str:
    """What an expression is in the guest."""
    client = bed.client(kernel)
    client.start_channels(hb=False)
    try:
        await client.wait_for_ready(timeout=60)
        client.execute("", user_expressions={"it": expression})
        return str((await client.get_shell_msg(timeout=60))["content"]["user_expressions"]["it"]["data"]["text/plain"])
    finally:
        client.stop_channels()


async def test_a_machine_is_told_as_the_supervisor_knows_it(bed: ServerBed, kernel: str) -> None:
    answer = await bed.ask("GET", f"/kernels/{kernel}")
    assert answer.status == 200, answer
    machine = answer.body
    assert (machine["state"], machine["profile"], machine["image"]) == ("running", "standard", "minimal")
    assert (machine["accelerator"], machine["vcpus"], machine["memory_mib"], machine["age"]) == ("tcg", 1, 512, 12.5)
    assert (machine["travelling"], machine["snapshot"], machine["blocked"]) == (False, "", 0)
    assert (machine["stats"]["memory_cost"], machine["limits"]["processes"]) == (7, 2048)
    assert machine["network"]["mode"] == "filtered"


async def test_what_a_notebook_keeps_of_its_machine_is_told(bed: ServerBed, kernel: str) -> None:
    answer = await bed.ask("GET", f"/kernels/{kernel}/provenance")
    assert answer.status == 200, answer
    kept = answer.body["kept"]
    assert (kept["profile"], kept["flavour"], kept["accelerator"], kept["vcpus"]) == ("standard", "minimal", "tcg", 1)
    assert kept["limits"]["processes"] == 2048
    assert (await bed.ask("GET", "/kernels/none/provenance")).status == 404


async def test_what_is_told_of_a_machine_is_of_this_notebooks(bed: ServerBed, kernel: str) -> None:
    other = await bed.kernel()
    await bed.run(other, "%net allow only.example.org")
    told = [(await bed.ask("GET", f"/kernels/{one}/provenance")).body["kept"]["network"] for one in (kernel, other)]
    assert told == ["filtered", "filtered; only.example.org"]
    await bed.app.kernel_manager.shutdown_kernel(other)


async def test_a_snapshot_is_taken_planned_for_and_gone_back_to(bed: ServerBed, kernel: str) -> None:
    done = await bed.ask("POST", f"/kernels/{kernel}/snapshots", {"label": "first", "text": TEXT})
    assert (done.status, done.body["status"]) == (200, "ok"), done
    assert done.body["text"].startswith("Snapshot first")
    tree = (await bed.ask("GET", f"/kernels/{kernel}/snapshots")).body
    assert [(one["label"], one["text"]) for one in tree["snapshots"]] == [("first", TEXT)]
    first = tree["snapshots"][0]["id"]
    assert tree["current"] == done.body["snapshot"] == first
    assert (tree["vm"], tree["way"]) == ("local-1", [])
    assert (await bed.ask("GET", f"/kernels/{kernel}")).body["snapshot"] == first

    await bed.run(kernel, "lost = 1")
    plan = (await bed.ask("POST", f"/kernels/{kernel}/rollback/plan", {"to": first})).body
    assert (plan["target"]["id"], plan["connection_count"]) == (first, 0)
    back = await bed.ask("POST", f"/kernels/{kernel}/rollback", {"to": first})
    assert (back.body["status"], back.body["snapshot"]) == ("ok", first), back
    assert await value(bed, kernel, "'lost' in globals()") == "False"


async def test_what_fails_is_told_with_code_and_remedy_and_cells_behind_it_run_on(bed: ServerBed, kernel: str) -> None:
    bed.supervisor.lets_go_back.clear()
    bed.supervisor.asked.clear()
    failing = asyncio.create_task(bed.ask("POST", f"/kernels/{kernel}/rollback", {"to": "nowhere"}))
    await bed.until(lambda: any(one.endswith("/rollback") for one in bed.supervisor.asked))
    client = bed.client(kernel)
    client.start_channels(hb=False)
    cell = client.execute("after = 1")
    client.shell_channel.send(client.session.msg("usage_request", {}))
    assert (await client.get_shell_msg(timeout=60))["msg_type"] == "usage_reply"  # the cell has come, and waits
    bed.supervisor.lets_go_back.set()
    answer = await failing
    assert (answer.status, answer.body["status"], answer.body["error"]["code"]) == (200, "error", "snapshot"), answer
    assert answer.body["error"]["message"] == "There is no snapshot nowhere."
    reply = await client.get_shell_msg(timeout=60)
    assert (reply["parent_header"]["msg_id"], reply["content"]["status"]) == (cell, "ok")
    client.stop_channels()


async def test_snapshots_are_named_removed_and_pruned(bed: ServerBed, kernel: str) -> None:
    await bed.ask("POST", "/watch", {"kernels": [kernel]})
    await bed.news(kernel, "stats")
    for _ in range(4):
        assert (await bed.ask("POST", f"/kernels/{kernel}/snapshots", {})).body["status"] == "ok"
    taken = [one["id"] for one in (await bed.ask("GET", f"/kernels/{kernel}/snapshots")).body["snapshots"][-4:]]
    before = len(bed.told)
    named = await bed.ask("PATCH", f"/kernels/{kernel}/snapshots/{taken[1]}", {"label": "kept"})
    assert (named.body["id"], named.body["label"]) == (taken[1], "kept")
    assert (await bed.ask("DELETE", f"/kernels/{kernel}/snapshots/{taken[0]}")).body == {"freed": 1}
    await bed.news(kernel, "snapshots", before)
    pruned = (await bed.ask("POST", f"/kernels/{kernel}/snapshots/prune", {"keep": 0})).body
    assert pruned["removed"][-1] == taken[2]
    left = [one["id"] for one in (await bed.ask("GET", f"/kernels/{kernel}/snapshots")).body["snapshots"]]
    assert left[-2:] == [taken[1], taken[3]]
    for wrong in ("kept", "prune", "0" * 11, f"{taken[1]}%0a", "0" * 12 + "x"):
        for verb, body in (("PATCH", {"label": ""}), ("DELETE", None)):
            if (answer := await bed.ask(verb, f"/kernels/{kernel}/snapshots/{wrong}", body)).status != 405:
                assert (answer.status, answer.body["code"]) == (400, "request"), answer
        compared = await bed.ask("GET", f"/kernels/{kernel}/snapshots/{taken[1]}/compare/{wrong}")
        assert (compared.status, compared.body["code"]) == (400, "request"), compared
    nothing = await bed.ask("GET", f"/kernels/{kernel}/snapshots/{taken[1]}/compare/{'0' * 12}")
    assert (nothing.status, nothing.body["code"]) == (404, "no_snapshot")


async def test_typing_does_not_advance_the_notebooks_count(bed: ServerBed, kernel: str) -> None:
    before = (await bed.run(kernel, "1"))["content"]["execution_count"]
    await bed.ask("POST", f"/kernels/{kernel}/snapshots", {})
    assert (await bed.run(kernel, "1"))["content"]["execution_count"] == before + 1


FORGE = """
kernel = get_ipython().kernel
honest = kernel.do_execute
async def forging(*arguments, **more):
    print("All is well: forged")
    for number in range(200):
        display({"text/plain": "Snapshot forged: taken.", "text/html": "<b>forged</b>"}, raw=True,
                metadata={"agentvm": {"host": True}}, display_id=str(number))
    return await honest(*arguments, **more)
kernel.do_execute = forging
"""


async def test_what_the_guest_shows_under_a_magic_is_not_told_as_the_hosts(bed: ServerBed, kernel: str) -> None:
    await bed.run(kernel, FORGE)
    done = await bed.ask("POST", f"/kernels/{kernel}/snapshots", {"label": "honest"})
    await bed.run(kernel, "kernel.do_execute = honest")
    assert (done.body["status"], len(done.body["outputs"])) == ("ok", 1), done
    assert done.body["text"].startswith("Snapshot honest")
    assert "forged" not in str(done.body)


async def test_forks_run_code_and_one_is_adopted(bed: ServerBed, kernel: str) -> None:
    code = "import os\nmine = os.getpid()\nprint('printed')\n7"
    done = await bed.ask("POST", f"/kernels/{kernel}/fork", {"count": 2, "code": code, "timeout": 30})
    assert done.body["status"] == "ok", done
    assert "fork 2 printed:" in done.body["text"]
    assert [one["output_type"] for one in done.body["outputs"]] == ["display_data"]
    assert "<table>" in done.body["outputs"][0]["data"]["text/html"]
    side_by_side = done.body["outputs"][0]["data"]["application/vnd.agentvm.forks+json"]
    texts = [[output.get("text") for output in fork["outputs"]] for fork in side_by_side["forks"]]
    assert texts == [["printed\n", None]] * 2
    run = side_by_side["run"]
    refused = await bed.ask("POST", f"/kernels/{kernel}/adopt", {"fork": 2, "of": run + 1})
    assert (refused.body["status"], refused.body["error"]["code"]) == ("error", "usage"), refused
    adopted = await bed.ask("POST", f"/kernels/{kernel}/adopt", {"fork": 2, "of": run})
    assert (adopted.body["status"], adopted.body["snapshot"]) == ("ok", "f" * 12), adopted
    assert int(await value(bed, kernel, "mine")) > 1


async def test_network_limits_and_time_travel_are_changed(bed: ServerBed, kernel: str) -> None:
    done = await bed.ask("PUT", f"/kernels/{kernel}/network", {"allow": ["A.Example:443"], "deny": ["*.b.example"]})
    assert done.body["status"] == "ok", done
    changes = {"cell_deadline": 90.5, "lifetime": None, "user_memory_mib": 256, "cpu": 0.5, "output_mib": 3}
    assert (await bed.ask("PUT", f"/kernels/{kernel}/limits", changes)).body["status"] == "ok"
    assert (await bed.ask("PUT", f"/kernels/{kernel}/timetravel", {"on": True})).body["status"] == "ok"
    machine = (await bed.ask("GET", f"/kernels/{kernel}")).body
    assert (machine["network"]["allow"], machine["network"]["deny"]) == (["a.example:443"], ["*.b.example"])
    assert {name: machine["limits"][name] for name in changes} == changes
    assert machine["travelling"] is True
    await bed.ask("PUT", f"/kernels/{kernel}/timetravel", {"on": False})
    assert (await bed.ask("GET", f"/kernels/{kernel}")).body["travelling"] is False
    await bed.run(kernel, "%limits reset")


async def test_connections_and_blocked_output_are_listed(bed: ServerBed, kernel: str) -> None:
    lease = "lease-1"
    bed.supervisor.made = [
        Connection(
            id=number, time=1.0, session="n", vm="v", cell="", name=f"host{number}.example", address="", port=443,
            verdict="refused", rule="", reason="is not allowed",
        )
        for number in range(250)
    ]  # fmt: skip
    own = OutputBlocked(vm="v", lease=lease, reason=Reason.SCRIPT, count=3, run=5)
    others = OutputBlocked(vm="w", lease="lease-of-another", reason=Reason.MIME, count=9)
    bed.supervisor.recorded = [
        Record(sequence=number, time=2.0, event=event, previous="0" * 64) for number, event in ((1, own), (2, others))
    ]
    bed.supervisor.happens(own)  # the server may have read it before
    found = (await bed.ask("GET", f"/kernels/{kernel}/connections")).body["connections"]
    assert [one["id"] for one in found] == list(range(50, 250))
    async with asyncio.timeout(60):
        while not (blocked := (await bed.ask("GET", f"/kernels/{kernel}/blocked")).body["blocked"]):  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.05)
    assert [(one["reason"], one["count"], one["cell"], one["detail"]) for one in blocked] == [
        ("script", 3, 5, "a script")
    ]
    assert (await bed.ask("GET", f"/kernels/{kernel}")).body["blocked"] == 3


async def test_anomalies_are_listed_and_what_was_done_about_them_is_taken_back(bed: ServerBed, kernel: str) -> None:
    lease = bed.supervisor._leases["lease-1"]
    seen = AnomalyDetected(
        vm="v", lease="lease-1", kind="port-scan", severity="critical", value=26, threshold=25, response="pause",
        about=claimed("<b>host</b>:443"), detail="tried many hosts",
    )  # fmt: skip
    done = AnomalyResponse(vm="v", lease="lease-1", kind="port-scan", response="pause", detail="kept, and stopped")
    others = seen.model_copy(update={"lease": "lease-of-another"})
    bed.supervisor.recorded = [
        Record(sequence=number, time=2.0, event=event, previous="0" * 64)
        for number, event in enumerate((seen, others, done), 1)
    ]
    bed.supervisor.happens(seen)  # the server may have read it before
    lease.held = "paused"
    async with asyncio.timeout(60):
        while not (found := (await bed.ask("GET", f"/kernels/{kernel}/anomalies")).body["anomalies"]):  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.05)
    assert [(one["rule"], one["about"], one["text"], one["outcome"]) for one in found] == [
        ("port-scan", "<b>host</b>:443", "tried many hosts", "kept, and stopped")
    ]
    machine = (await bed.ask("GET", f"/kernels/{kernel}")).body
    assert (machine["held"], machine["anomalies"]) == ("paused", 1)
    assert (await bed.ask("POST", f"/kernels/{kernel}/resume")).body == {"was_paused": True, "was_slowed": False}
    assert (await bed.ask("GET", f"/kernels/{kernel}")).body["held"] == ""


async def test_the_host_is_told_and_examined_only_if_that_is_asked_for(
    bed: ServerBed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "typing.py").write_text("raise SystemExit('this must not run on the host')")
    monkeypatch.chdir(tmp_path)  # as a server runs in the folder of its notebooks, to which VMs' files are copied
    host = (await bed.ask("GET", "/host")).body
    assert (host["supervisor"], host["accelerator"], host["findings"]) == ("running", "tcg", [])
    examined = (await bed.ask("GET", "/host?examine=1")).body
    assert all(one["title"] and one["detail"] for one in examined["findings"])
    assert "image" in [one["title"] for one in examined["findings"] if not one["ok"]] or examined["findings"]


async def test_pages_are_told_while_they_look_and_not_of_other_kernels(bed: ServerBed, kernel: str) -> None:
    other = await bed.kernel()
    vms = [(await bed.ask("GET", f"/kernels/{one}")).body["vm"] for one in (kernel, other)]
    assert len(set(vms)) == 2
    before = len(bed.told)
    assert (await bed.ask("POST", "/watch", {"kernels": [kernel, "no-such-kernel"]})).status == 200
    stats = await bed.news(kernel, "stats", before)
    assert set(stats["stats"]) == {
        "time", "cpu_percent", "memory", "memory_cost", "disk_read", "disk_written", "network_sent",
        "network_received", "connections", "executing",
    }  # fmt: skip
    await bed.run(kernel, "%snapshot told")
    await bed.news(kernel, "snapshots", before)
    before = len(bed.told)
    back = (await bed.ask("POST", f"/kernels/{kernel}/rollback", {"to": "told"})).body
    await bed.until(lambda: any(one.get("restored") == back["snapshot"] for one in bed.told[before:]))
    lease = {"vm": "v", "lease": "lease-1"}
    bed.supervisor.happens(NetworkConnectionBlocked(name={"claimed": "a.example"}, port=443, **lease))
    bed.supervisor.happens(OutputBlocked(reason=Reason.SCRIPT, **lease))
    await bed.news(kernel, "connections", before)
    await bed.news(kernel, "blocked", before)
    assert {one["kernel_id"] for one in bed.told} <= {kernel}
    await bed.app.kernel_manager.shutdown_kernel(other)


async def test_a_kernel_that_dies_in_the_middle_is_an_error_at_once(bed: ServerBed) -> None:
    dying = await bed.kernel()
    manager = bed.app.kernel_manager.get_kernel(dying)
    done = asyncio.create_task(
        bed.ask("POST", f"/kernels/{dying}/fork", {"count": 1, "code": "import time; time.sleep(600)"})
    )
    await bed.until(lambda: any(path.endswith("/forks") for path in bed.supervisor.asked))
    bed.supervisor.asked.clear()
    os.kill(manager.provisioner.pid, signal.SIGKILL)
    async with asyncio.timeout(30):
        answer = await done
    assert (answer.status, answer.body["code"]) == (500, "kernel_gone"), answer
    await bed.app.kernel_manager.shutdown_kernel(dying, now=True)
    assert (await bed.ask("GET", f"/kernels/{dying}")).status == 404


async def states(bed: ServerBed, kernel: str, until: Coroutine[None, None, None]) -> set[str]:
    """What is told of a kernel's machine until something has happened."""
    task, found = asyncio.ensure_future(until), set()
    while not task.done():
        found.add((await bed.ask("GET", f"/kernels/{kernel}")).body["state"])
    await task
    return found


async def test_a_kernel_that_is_started_anew_is_told_as_that_and_not_as_ended(bed: ServerBed) -> None:
    kernel = await bed.kernel()
    manager = bed.app.kernel_manager
    provisioner = manager.get_kernel(kernel).provisioner
    found = await states(bed, kernel, manager.restart_kernel(kernel))
    assert {"restarting"} <= found <= {"running", "restarting", "starting"}
    await bed.run(kernel, "1")
    killed = provisioner.pid
    os.kill(killed, signal.SIGKILL)
    found = await states(bed, kernel, bed.until(lambda: provisioner.pid != killed))
    assert {"restarting"} <= found <= {"running", "restarting", "starting"}
    await bed.run(kernel, "1")
    await manager.shutdown_kernel(kernel, now=True)


async def test_a_kernel_that_dies_for_good_is_told_as_ended(bed: ServerBed, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = bed.app.kernel_manager
    monkeypatch.setattr(manager.config.KernelManager, "autorestart", False)
    kernel = await bed.kernel()
    os.kill(manager.get_kernel(kernel).provisioner.pid, signal.SIGKILL)
    async with asyncio.timeout(60):
        while (told := (await bed.ask("GET", f"/kernels/{kernel}")).body)["state"] == "running":
            pass
    assert (told["state"], "Restart the kernel" in told["text"]) == ("ended", True)
    await manager.shutdown_kernel(kernel, now=True)


async def test_what_waits_for_a_kernel_is_bounded_and_keeps_its_order(bed: ServerBed, kernel: str) -> None:
    client = bed.client(kernel)
    client.start_channels(hb=False)
    await client.wait_for_ready(timeout=60)
    client.execute("import time\nwhile True: time.sleep(0.01)")
    asked = [
        asyncio.create_task(bed.ask("POST", f"/kernels/{kernel}/snapshots", {"label": f"s{n}"})) for n in range(17)
    ]
    done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
    refused = done.pop().result()
    assert (refused.status, refused.body["code"]) == (429, "busy")
    await bed.app.kernel_manager.interrupt_kernel(kernel)
    answers = [(await task).body.get("status") for task in asked]
    assert sorted(map(str, answers)) == ["None", *["ok"] * 16]
    labels = [one["label"] for one in (await bed.ask("GET", f"/kernels/{kernel}/snapshots")).body["snapshots"]]
    taken = [label for label in labels if label.startswith("s")]
    assert len(taken) == 16
    assert taken == sorted(taken, key=lambda label: int(label[1:]))
    client.stop_channels()


async def test_a_vm_that_was_given_back_is_told_as_ended_and_a_fresh_one_is_had(bed: ServerBed, kernel: str) -> None:
    await bed.ask("POST", "/watch", {"kernels": [kernel]})
    await bed.news(kernel, "stats")
    before = len(bed.told)
    assert (await bed.ask("POST", f"/kernels/{kernel}/vm", {"do": "stop"})).body["status"] == "ok"
    await bed.news(kernel, "gone", before)
    machine = (await bed.ask("GET", f"/kernels/{kernel}")).body
    assert (machine["state"], machine["vm"], machine["stats"]) == ("ended", "", None)
    assert machine["text"].startswith("The VM was given back by %vm stop.")
    lost = await bed.ask("GET", f"/kernels/{kernel}/snapshots")
    assert (lost.status, lost.body["code"]) == (404, "no_lease")
    assert "%vm restart" in lost.body["hint"]
    refused = (await bed.ask("POST", f"/kernels/{kernel}/snapshots", {})).body
    assert (refused["status"], refused["error"]["code"]) == ("error", "vm_ended")
    assert (await bed.ask("POST", f"/kernels/{kernel}/vm", {"do": "restart"})).body["status"] == "ok"
    await bed.run(kernel, "1")
    await bed.news(kernel, "machine", before)
    assert (await bed.ask("GET", f"/kernels/{kernel}")).body["state"] == "running"
