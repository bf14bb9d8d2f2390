"""`%limits`: what it shows, what it understands, and for how long a change holds."""

from __future__ import annotations

from pathlib import Path

import pytest
from jupyter_client.asynchronous import AsyncKernelClient
from kernel_harness import (
    TIMEOUT,
    InProcessKernel,
    ScriptedSupervisor,
    cell,
    granted,
    outputs,
    running,
    shown,
    told,
    within,
)

from agentvm_kernel.errors import ApiError
from agentvm_kernel.kernel.limits import HeldLimits
from agentvm_kernel.profiles import Limits


@pytest.mark.parametrize(
    ("said", "changes"),
    [
        ("timeout=60", {"cell_deadline": 60.0}),
        ("timeout=1.5min lifetime=2h", {"cell_deadline": 90.0, "lifetime": 7200.0}),
        ("cpu=1.5", {"cpu": 1.5}),
        ("memory=256MiB", {"user_memory_mib": 256}),
        ("memory=300MB", {"user_memory_mib": 286}),
        ("disk_rate=50MB disk_iops=none", {"disk_mb_per_second": 50, "disk_iops": None}),
        ("disk_rate=0.5GB/s", {"disk_mb_per_second": 500}),
        ("processes=200 open_files=100", {"processes": 200, "open_files": 100}),
        ("output=1GiB output_rate=8MiB/s", {"output_mib": 1024, "output_mib_per_second": 8}),
    ],
)
async def test_names_and_units_are_understood(tmp_path: Path, said: str, changes: dict[str, object]) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        await told(client, await kernel.guest(), f"%limits {said}")
        assert kernel.machine.limits.changes == changes
        assert len(kernel.supervisor.asked) == 1


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("timeout=soon", "timeout=soon cannot be understood. Valid is, for example, 90s, 5min or 2h."),
        ("timeout=10GB", "timeout=10GB cannot be understood."),
        ("timeout=none", "timeout cannot be no limit. Valid is at least 1 s."),
        ("timeout=0.5", "timeout cannot be 0.5 s. Valid is at least 1 s."),
        ("memory=300", "memory=300 cannot be understood. Valid is, for example, 512MiB or 1GiB."),
        ("memory=64MiB", "memory cannot be 64 MiB. Valid is at least 128 MiB, at most 1024 GiB."),
        ("memory=4GiB", "memory=4GiB is more than the VM has: 512 MiB. %vm profile lists profiles with more"),
        (
            "disk=5GB",
            "%limits cannot change disk: that is the profile's (1 vCPU, 512 MiB, 4 GB disk). %vm profile NAME",
        ),
        ("vcpus=3", "%limits cannot change vcpus"),
        ("speed=3", "There is no limit 'speed'. There are: timeout, lifetime, cpu, memory,"),
        ("timeout", "%limits timeout: valid is %limits, %limits NAME=VALUE … and %limits reset"),
        ("timeout=", "valid is %limits"),
    ],
)
async def test_what_is_not_valid_is_one_clear_line(tmp_path: Path, said: str, error: str) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        assert error in await told(client, await kernel.guest(), f"%limits {said}")
        assert kernel.supervisor.asked == []
        assert kernel.machine.limits.now == Limits()


async def test_all_limits_are_shown_with_their_values_sources_and_enforcers(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        assert await told(client, guest, "%limits timeout=90s") == "timeout: 90 s (was 300 s)"
        rows = {line.split("  ")[0]: line for line in (await told(client, guest, "%limits")).splitlines()}
        assert "90 s" in rows["timeout"]
        assert "set by %limits" in rows["timeout"]
        assert "of profile test" in rows["memory"]
        assert "no limit" in rows["cpu"]
        assert "the test" in rows["cpu"]
        assert "4 GB" in rows["disk"]


async def test_reset_takes_all_changes_back(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        await told(client, guest, "%limits timeout=90s disk_iops=none")
        assert await told(client, guest, "%limits reset") == "timeout: 300 s (was 90 s)\ndisk_iops: 5000 (was no limit)"
        assert kernel.machine.limits.now == Limits()
        assert await told(client, guest, "%limits reset") == "Nothing was changed."


async def test_a_change_that_the_supervisor_refuses_does_not_hold(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        guest = await kernel.guest()
        kernel.supervisor.fails = ApiError("link", "The guest did not confirm.")
        assert "did not confirm" in await told(client, guest, "%limits timeout=90s")
        assert kernel.machine.limits.now == Limits()


async def ready_again(kernel: InProcessKernel, client: AsyncKernelClient, magic: str) -> None:
    """Run a magic that brings another VM."""
    links = len(kernel.links)
    msg_id = client.execute(magic)
    await (await kernel.guest()).execute()
    await within(lambda: len(kernel.links) > links)
    await kernel.guest()
    await outputs(client, msg_id)


async def test_changes_hold_in_the_vms_that_follow(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        await told(client, await kernel.guest(), "%limits timeout=90s")
        await told(client, await kernel.guest(), "%snapshot")
        await ready_again(kernel, client, "%vm restart")
        assert kernel.supervisor.asked[-1] == "limits {'cell_deadline': 90.0}"
        assert kernel.machine.limits.now.cell_deadline == 90
        await ready_again(kernel, client, "%rollback 000000000001")
        assert kernel.machine.limits.now.cell_deadline == 90


async def test_another_profile_brings_its_own_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTVM_CONFIG", str(tmp_path / "none.toml"))
    async with running(tmp_path) as kernel, kernel.client() as client:
        await told(client, await kernel.guest(), "%limits timeout=90s")
        await ready_again(kernel, client, "%vm profile light")
        assert kernel.supervisor.requests[-1].profile == "light"
        assert kernel.machine.limits.now == Limits()
        assert kernel.machine.limits.changes == {}


async def test_an_unknown_profile_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTVM_CONFIG", str(tmp_path / "none.toml"))
    async with running(tmp_path) as kernel, kernel.client() as client:
        said = await told(client, await kernel.guest(), "%vm profile lavish")
        assert said == "There is no profile 'lavish'. Known profiles: intensive, isolated, light, standard."
        assert kernel.supervisor.vms == 1


async def test_profiles_are_listed_with_what_they_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "config.toml"
    config.write_text("[profiles.test]\nvcpus = 3\nmemory_mib = 512\ndisk_gb = 7\n")
    monkeypatch.setenv("AGENTVM_CONFIG", str(config))
    async with running(tmp_path) as kernel, kernel.client() as client:
        lines = (await told(client, await kernel.guest(), "%vm profile")).splitlines()
        assert {line.split()[0] for line in lines[1:]} == {"light", "standard", "intensive", "isolated", "test"}
        (own,) = [line for line in lines if "this notebook's" in line]
        assert own.split()[:4] == ["test", "3", "0.5", "GiB"]


async def test_stop_gives_the_vm_back(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        said = await told(client, await kernel.guest(), "%vm stop")
        assert said == "The VM is given back, with all that it had. %vm restart brings a fresh one."
        assert kernel.supervisor.released == 1
        assert "was given back by %vm stop" in shown(await outputs(client, client.execute("1")))
        assert shown(await outputs(client, client.execute("%vm stop"))) == "There is no VM to give back."
        client.execute("%vm restart")
        await within(lambda: len(kernel.links) == 2)
        assert (await cell(client, await kernel.guest(), "2"))["content"]["status"] == "ok"  # type: ignore[index]


async def test_stop_ends_the_waiting_for_a_vm(tmp_path: Path) -> None:
    supervisor = ScriptedSupervisor(grant=False)
    async with running(tmp_path, supervisor) as kernel, kernel.client() as client:
        await supervisor.leased.wait()
        msg_id = client.execute("1")
        await kernel.held(1)
        client.control_channel.send(client.session.msg("interrupt_request", {}))
        await outputs(client, msg_id)
        said = shown(await outputs(client, client.execute("%vm stop")))
        assert said == "No VM is waited for any more. %vm restart brings a fresh one."
        assert supervisor.released == 1


async def test_a_stop_behind_cells_waits_for_them(tmp_path: Path) -> None:
    supervisor = ScriptedSupervisor(grant=False)
    async with running(tmp_path, supervisor) as kernel, kernel.client() as client:
        await supervisor.leased.wait()
        client.execute("1")
        stop = client.execute("%vm stop")
        await kernel.held(2)
        supervisor.leases[0].events.put_nowait(granted())
        guest = await kernel.guest()
        await guest.execute()
        assert (await client.get_shell_msg(timeout=TIMEOUT))["content"]["status"] == "ok"
        await guest.execute()
        assert "given back" in shown(await outputs(client, stop))


async def test_security_names_every_layer(tmp_path: Path) -> None:
    async with running(tmp_path) as kernel, kernel.client() as client:
        lines = (await told(client, await kernel.guest(), "%vm security")).splitlines()
        rows = {line.split("  ")[0]: line for line in lines}
        layers = ["hardware virtualisation", "seccomp sandbox", "namespaces", "cgroup limits", "AppArmor or SELinux"]
        assert list(rows) == ["layer", *layers, "a user of its own", "network", "output"]
        assert "needs KVM" in rows["hardware virtualisation"]
        # The scripted VM's process is this one.
        assert " no " in rows["namespaces"]
        assert " no " in rows["a user of its own"]


def test_a_value_as_the_profile_has_it_is_no_change() -> None:
    held = HeldLimits()
    held.granted(granted())
    held.changed({"cell_deadline": 60}, Limits(cell_deadline=60))
    assert held.source("cell_deadline") == "set by %limits"
    held.changed({"cell_deadline": 300}, Limits())
    assert held.source("cell_deadline") == "of profile test"
    assert held.back() == {}
