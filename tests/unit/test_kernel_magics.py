"""Which cells are host magics, and what they show."""

from __future__ import annotations

from pathlib import Path

import pytest
from kernel_harness import TIMEOUT, ScriptedSupervisor, granted, outputs, running, types

from agentvm_kernel.kernel.info import Usage
from agentvm_kernel.magics.call import Call, find_call

NAMES = {"vm"}


@pytest.mark.parametrize(
    ("code", "call"),
    [
        ("%vm", Call("vm", (), False, True)),
        ("\n\n  # first a comment\n  %vm  status  # and one more\n\n", Call("vm", ("status",), False, True)),
        ("%vm?", Call("vm", (), True, True)),
        ("?%vm", Call("vm", (), True, True)),
        ("%vm restart now", Call("vm", ("restart", "now"), False, True)),
        ("%vm\nx = 1", Call("vm", (), False, False)),
        ("x = 1\n%vm", None),
        ("%vmware", None),
        ("%%vm", None),
        ("%timeit 1", None),
        ("'%vm'", None),
        ("", None),
        ("# %vm", None),
    ],
)
def test_what_counts_as_a_host_magic(code: str, call: Call | None) -> None:
    assert find_call(code, NAMES) == call


async def run_magic(tmp_path: Path, code: str, **changes: object) -> tuple[list[dict], dict]:  # type: ignore[type-arg]
    supervisor = ScriptedSupervisor(grant=False)
    async with running(tmp_path, supervisor) as kernel, kernel.client() as client:
        await supervisor.leased.wait()
        supervisor.leases[0].events.put_nowait(granted(**changes))
        guest = await kernel.guest()
        msg_id = client.execute(code)
        await guest.execute()
        return await outputs(client, msg_id), await client.get_shell_msg(timeout=TIMEOUT)


async def test_status_is_measured_and_warns_of_software_emulation(tmp_path: Path) -> None:
    said, reply = await run_magic(tmp_path, "%vm")
    assert types(said) == ["busy", "execute_input", "display_data", "idle"]
    assert said[1]["content"] == {"code": "%vm", "execution_count": 1}
    text = said[2]["content"]["data"]["text/plain"]
    assert "QEMU gives no isolation guarantee" in text
    for wanted in ("vm-1", "minimal", "512 MiB", "virtio-serial", "12 ms", "MiB"):
        assert wanted in text
    assert reply["content"]["status"] == "ok"
    assert reply["content"]["execution_count"] == 1
    assert reply["metadata"]["agentvm"]["run"] == 1


async def test_the_reply_to_a_magic_that_failed_has_the_error_for_programs(tmp_path: Path) -> None:
    _, reply = await run_magic(tmp_path, "%limits cpu=0")
    error = reply["metadata"]["agentvm"]["error"]
    assert (error["code"], error["hint"]) == ("limit", "Valid is at least 0.05 cores, at most 1024 cores.")
    assert error["message"].startswith("cpu cannot be 0")


async def test_status_names_hardware_virtualisation(tmp_path: Path) -> None:
    said, _ = await run_magic(tmp_path, "%vm status", accelerator="kvm")
    assert "KVM" in said[2]["content"]["data"]["text/html"]
    assert "guarantee" not in said[2]["content"]["data"]["text/html"]


async def test_what_the_supervisor_says_is_escaped_in_html(tmp_path: Path) -> None:
    said, _ = await run_magic(tmp_path, "%vm status", vm="<script>")
    assert "<script>" not in said[2]["content"]["data"]["text/html"]


async def test_help(tmp_path: Path) -> None:
    said, _ = await run_magic(tmp_path, "%vm?")
    assert "%vm restart" in said[2]["content"]["data"]["text/plain"]


@pytest.mark.parametrize(
    ("code", "expected"),
    [("%vm explode", "valid is %vm status, %vm facts, %vm facts on"), ("%vm\nprint(1)", "must be alone in its cell")],
)
async def test_a_wrong_call_says_what_is_valid_in_one_line(tmp_path: Path, code: str, expected: str) -> None:
    said, reply = await run_magic(tmp_path, code)
    assert types(said) == ["busy", "execute_input", "error", "idle"]
    assert expected in reply["content"]["evalue"]
    assert "\n" not in reply["content"]["evalue"]


async def test_status_without_a_vm_says_why(tmp_path: Path) -> None:
    supervisor = ScriptedSupervisor(grant=False)
    async with running(tmp_path, supervisor) as kernel, kernel.client() as client:
        await supervisor.leased.wait()
        supervisor.leases[0].events.put_nowait(None)
        await kernel.machine.settled()
        msg_id = client.execute("%vm")
        said = await outputs(client, msg_id)
    text = said[2]["content"]["data"]["text/plain"]
    assert "ended" in text
    assert "went away before there was a VM" in text


def test_a_process_that_is_gone_measures_as_nothing() -> None:
    gone = granted(pid=(1 << 22) - 1)
    assert Usage().measure(gone) == (0.0, 0)
    assert Usage().cpu_seconds(gone) == 0.0
