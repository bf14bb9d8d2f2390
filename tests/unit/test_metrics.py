"""Metrics for Prometheus: names, types and labels, where they are served, and what the supervisor counts itself."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from fake_hypervisor import FakeHypervisor, FakeMachine
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError
from supervisor_bed import SETTINGS, first_grant, make_paths, serving
from typer.testing import CliRunner

from agentvm_kernel import cli
from agentvm_kernel.egress.record import Connection
from agentvm_kernel.firewall.reasons import Reason
from agentvm_kernel.observe.metrics import Labelled, Metrics
from agentvm_kernel.observe.sample import Sample
from agentvm_kernel.settings import MetricsSettings, Settings, parse_listen
from agentvm_kernel.supervisor.client import SupervisorClient
from agentvm_kernel.supervisor.core import Supervisor
from agentvm_kernel.supervisor.execution_messages import Execution, digest_of
from agentvm_kernel.supervisor.messages import LeaseRequest
from agentvm_kernel.supervisor.network_messages import CellRequest
from agentvm_kernel.vm.hypervisor import DiskTraffic
from agentvm_kernel.vm.spec import DomainSpec

TYPES = {
    "agent_vm_cpu_usage_percent": "gauge",
    "agent_vm_memory_usage_bytes": "gauge",
    "agent_vm_disk_read_bytes_total": "counter",
    "agent_vm_disk_write_bytes_total": "counter",
    "agent_vm_network_rx_bytes_total": "counter",
    "agent_vm_network_tx_bytes_total": "counter",
    "agent_vm_boot_duration_seconds": "histogram",
    "agent_vm_snapshot_duration_seconds": "histogram",
    "agent_vm_snapshot_restore_duration_seconds": "histogram",
    "agent_vm_pool_size": "gauge",
    "agent_vm_pool_acquire_duration_seconds": "histogram",
    "agent_execution_duration_seconds": "histogram",
    "agent_execution_total": "counter",
    "agent_execution_timeout_total": "counter",
    "agent_resource_limit_violations_total": "counter",
    "agent_network_connection_attempts_total": "counter",
    "agent_output_blocked_total": "counter",
}
FOLDER = Path(__file__).parents[2] / "agentvm_kernel" / "observe" / "prometheus"
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (package prometheus) is missing")


def parsed(text: str) -> dict[str, Metric]:
    """Return the families by the names that Prometheus knows them by."""
    families = list(text_string_to_metric_families(text))
    return {f"{one.name}_total" if one.type == "counter" else one.name: one for one in families}


def value(text: str, name: str, **labels: str) -> float:
    family = next(one for key, one in parsed(text).items() if name.startswith(key))
    return next(one.value for one in family.samples if one.name == name and labels.items() <= one.labels.items())


def text_of(metrics: Metrics) -> str:
    return metrics.exposition().decode()


class OwnHypervisor(FakeHypervisor):
    """Its machines are this very process, so that there is something to measure."""

    def make_machine(self, spec: DomainSpec, pid: int) -> FakeMachine:
        machine = FakeMachine(spec, os.getpid())
        machine.traffic = DiskTraffic(1000, 2000)
        return machine


@asynccontextmanager
async def supervised(folder: Path, settings: Settings = SETTINGS) -> AsyncIterator[tuple[Supervisor, SupervisorClient]]:
    paths = make_paths(folder)
    async with serving(paths, OwnHypervisor(), settings) as supervisor, SupervisorClient(paths, start=False) as client:
        yield supervisor, client


@pytest.fixture
def port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def at(port: int) -> Settings:
    return SETTINGS.model_copy(update={"metrics": MetricsSettings(listen=f"127.0.0.1:{port}")})


async def fetch(port: int, path: str = "/metrics", **headers: str) -> tuple[int, str, str]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}{path}", headers=headers) as answer,
    ):
        return answer.status, await answer.text(), answer.headers["Content-Type"]


# What is exposed


async def test_every_metric_is_there_with_its_type_and_help(short_tmp: Path) -> None:
    async with supervised(short_tmp) as (supervisor, client), client.lease(LeaseRequest(owner="x")) as lease:
        granted = await first_grant(lease)
        await supervisor.stats.now()
        text = await client.metrics()
        families = parsed(text)
        assert {name: one.type for name, one in families.items()} == TYPES
        assert all(one.documentation.endswith(".") for one in families.values())
        assert "_created" not in text
        labels = {"vm": granted.vm, "profile": "tiny", "image": "minimal"}
        assert value(text, "agent_vm_memory_usage_bytes", **labels) > 1 << 20
        assert value(text, "agent_vm_disk_read_bytes_total", **labels) == 1000
        assert value(text, "agent_vm_disk_write_bytes_total", **labels) == 2000
        assert value(text, "agent_vm_pool_size", kind="leased") == 1
        assert value(text, "agent_vm_pool_acquire_duration_seconds_count") == 1
        assert value(text, "agent_vm_boot_duration_seconds_count", kind="cold") == 1
        assert value(text, "agent_vm_boot_duration_seconds_count", kind="clone") >= 1


async def test_the_series_of_a_vm_end_with_it(short_tmp: Path) -> None:
    async with supervised(short_tmp) as (supervisor, client):
        async with client.lease(LeaseRequest(owner="x")) as lease:
            granted = await first_grant(lease)
            await supervisor.stats.now()
            assert granted.vm in await client.metrics()
        async with supervisor.released:
            await supervisor.released.wait_for(lambda: not supervisor.leases)
        assert granted.vm not in await client.metrics()
        assert value(await client.metrics(), "agent_vm_pool_size", kind="leased") == 0


def test_no_label_takes_more_than_a_few_values_from_outside() -> None:
    metrics = Metrics(["script", "mime"])
    for number in range(500):
        metrics.output_blocked(f"made_up_{number}")
        metrics.limit_violation(f"made_up_{number}")
    metrics.output_blocked("script", 7)
    few = Metrics()
    for word in ('x"} 1\nevil', "", "A", "a" * 100, "\u00fc"):
        few.output_blocked(word)
    assert [one.labels for one in parsed(text_of(few))["agent_output_blocked_total"].samples] == [{"reason": "other"}]
    families = parsed(text_of(metrics))
    for name in ("agent_output_blocked_total", "agent_resource_limit_violations_total"):
        assert 30 < len(families[name].samples) <= 33
    assert value(text_of(metrics), "agent_output_blocked_total", reason="script") == 7
    assert value(text_of(metrics), "agent_output_blocked_total", reason="other") == 500 - 30
    known = {label for family in families.values() for sample in family.samples for label in sample.labels}
    assert known == {"le", "kind", "phase", "outcome", "limit", "allowed", "reason"}


def test_executions_are_counted_by_what_came_of_them() -> None:
    metrics = Metrics()
    metrics.execution("completed", 0.2)
    metrics.execution("failed", 3)
    metrics.execution("timeout", 60)
    text = text_of(metrics)
    outcomes = ("completed", "failed", "timeout")
    assert [value(text, "agent_execution_total", outcome=one) for one in outcomes] == [1, 1, 1]
    assert value(text, "agent_execution_timeout_total") == 1
    assert value(text, "agent_execution_duration_seconds_sum") == pytest.approx(63.2)
    assert value(text, "agent_execution_duration_seconds_bucket", le="5.0") == 2


async def test_what_the_supervisor_decides_is_counted(short_tmp: Path) -> None:
    async with supervised(short_tmp) as (supervisor, client), client.lease(LeaseRequest(owner="x")) as lease:
        granted = await first_grant(lease)
        one = Connection(
            id=1, time=1, session=granted.lease, vm=granted.vm, cell="", name="a.example", address="", port=443,
            verdict="refused", rule="", reason="no", duration=0, count=40,
        )  # fmt: skip
        supervisor.networks._log.put(one)
        supervisor.networks._log.put(one.model_copy(update={"id": 2, "verdict": "allowed", "count": 1}))
        supervisor.networks._log.put(one.model_copy(update={"id": 3, "verdict": "failed", "count": 1}))
        text = await client.metrics()
        assert value(text, "agent_network_connection_attempts_total", allowed="false") == 40
        assert value(text, "agent_network_connection_attempts_total", allowed="true") == 2
        vm = supervisor.leases[granted.lease].vm
        access = supervisor.leases[granted.lease].network._accesses[vm]
        access.on_limit("connections")
        access.account(None, 10, 20)
        access.count("allowed")
        text = await client.metrics()
        assert value(text, "agent_resource_limit_violations_total", limit="connections") == 1
        await supervisor.stats.sampler.look()
        text = await client.metrics()
        assert value(text, "agent_vm_network_tx_bytes_total", vm=granted.vm) == 10
        assert value(text, "agent_vm_network_rx_bytes_total", vm=granted.vm) == 20
        ours = supervisor.leases[granted.lease]
        ours.limits = ours.limits.model_copy(update={"lifetime": 60})
        ours._expire()
        assert value(await client.metrics(), "agent_resource_limit_violations_total", limit="lifetime") == 1


async def test_what_sessions_tell_of_executions_is_counted(short_tmp: Path) -> None:
    async with supervised(short_tmp) as (supervisor, client), client.lease(LeaseRequest(owner="x")) as lease:
        granted = await first_grant(lease)
        begun = Execution(happened="started", run=1, digest=digest_of("x"))
        await client.set_cell(granted.lease, CellRequest(executions=(begun,)))
        await supervisor.stats.sampler.look()
        assert [one.executing for one in (await client.vms()).vms if one.id == granted.vm] == [True]
        over = {"happened": "timeout", "seconds": 3.5, "limits": ("cell_deadline",), "blocked": {Reason.SCRIPT: 2}}
        await client.set_cell(granted.lease, CellRequest(executions=(begun.model_copy(update=over),)))
        await supervisor.stats.sampler.look()
        assert [one.executing for one in (await client.vms()).vms if one.id == granted.vm] == [False]
        text = await client.metrics()
        assert value(text, "agent_execution_total", outcome="timeout") == 1
        assert value(text, "agent_execution_timeout_total") == 1
        assert value(text, "agent_execution_duration_seconds_sum") == pytest.approx(3.5)
        assert value(text, "agent_output_blocked_total", reason="script") == 2
        assert value(text, "agent_resource_limit_violations_total", limit="cell_deadline") == 1


# What clients are told


async def test_a_leases_stats_are_its_history_and_then_what_comes(short_tmp: Path) -> None:
    settings = SETTINGS.model_copy(update={"metrics": MetricsSettings(interval=0.1)})
    async with supervised(short_tmp, settings) as (supervisor, client):
        async with client.lease(LeaseRequest(owner="x", notebook="n")) as lease:
            granted = await first_grant(lease)
            for _ in range(3):
                await supervisor.stats.sampler.next_look()
            async with client.stats(granted.lease) as events:
                seen = [one async for one in events]
            assert len(seen) >= 2
            assert {(one.vm, one.lease, one.state) for one in seen} == {(granted.vm, granted.lease, "leased")}
            assert [one.time for one in seen] == sorted({one.time for one in seen})
            assert (seen[-1].disk_read, seen[-1].executing, seen[-1].stale) == (1000, False, False)
            begun = Execution(happened="started", run=1, digest=digest_of("x"))
            await client.set_cell(granted.lease, CellRequest(executions=(begun,)))
            async with client.stats(granted.lease, follow=True) as events:
                assert await anext(one async for one in events if one.executing)
        async with client.stats() as events:
            assert [one.state async for one in events if one.lease] == []


async def test_to_follow_a_lease_ends_with_it(short_tmp: Path) -> None:
    settings = SETTINGS.model_copy(update={"metrics": MetricsSettings(interval=0.1)})
    async with supervised(short_tmp, settings) as (_, client):
        leasing = client.lease(LeaseRequest(owner="x"))
        granted = await first_grant(await leasing.__aenter__())
        async with client.stats(granted.lease, follow=True) as events:
            await anext(events)
            await leasing.__aexit__(None, None, None)
            async for one in events:
                assert one.vm == granted.vm


async def test_all_vms_are_told_of_and_listed_alike(short_tmp: Path) -> None:
    async with supervised(short_tmp) as (supervisor, client), client.lease(LeaseRequest(owner="x")) as lease:
        granted = await first_grant(lease)
        await supervisor.pool.filled()
        async with client.stats() as events:
            seen = {one.vm: one async for one in events}
        listed = {one.id: one for one in (await client.vms()).vms}
        assert seen.keys() == listed.keys()
        assert {one.state for one in seen.values()} == {"leased", "warm", "blank"}
        assert listed[granted.vm].disk_written == seen[granted.vm].disk_written == 2000
        assert listed[granted.vm].memory > 1 << 20
        assert listed[granted.vm].cpu_seconds > 0
        text = await client.metrics()
        for kind in ("leased", "warm", "blank"):
            assert value(text, "agent_vm_pool_size", kind=kind) == 1


# Where it is served


async def test_metrics_are_on_a_port_if_configured(short_tmp: Path, port: int) -> None:
    async with supervised(short_tmp, at(port)) as (_, client):
        status, text, kind = await fetch(port)
        assert (status, kind.partition(";")[0]) == (200, "text/plain")
        assert parsed(text).keys() == TYPES.keys() == parsed(await client.metrics()).keys()
        assert (await fetch(port, "/v1/status"))[0] == 404


@pytest.mark.parametrize(
    ("host", "status"),
    [("evil.example", 403), ("evil.example:9177", 403), ("localhost:9", 200), ("[::1]:9", 200), ("127.0.0.1", 200)],
)
async def test_a_page_whose_name_leads_here_learns_nothing(short_tmp: Path, port: int, host: str, status: int) -> None:
    async with supervised(short_tmp, at(port)):
        assert (await fetch(port, Host=host))[0] == status


async def test_a_port_in_use_is_one_line_and_the_supervisor_goes_on(
    short_tmp: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = int(taken.getsockname()[1])
        async with supervised(short_tmp, at(port)) as (_, client):
            lines = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
            assert len(lines) == 1
            assert f"127.0.0.1:{port}" in lines[0]
            assert "in use" in lines[0]
            assert (await client.status()).pid == os.getpid()


async def test_the_port_changes_when_the_configuration_is_read_again(short_tmp: Path, port: int) -> None:
    async with supervised(short_tmp) as (supervisor, client):
        config = 'image = "minimal"\nprofile = "tiny"\n[profiles.tiny]\nvcpus = 1\nmemory_mib = 256\ndisk_gb = 4\n'
        supervisor.paths.config.write_text(f'{config}[metrics]\ninterval = 0.5\nlisten = "127.0.0.1:{port}"\n')
        assert "metrics" in (await client.reload()).changed
        await supervisor.exposition.settled()
        assert (await fetch(port))[0] == 200
        assert supervisor.stats.sampler.every == 0.5
        supervisor.paths.config.write_text(config)
        await client.reload()
        await supervisor.exposition.settled()
        with pytest.raises(aiohttp.ClientConnectorError):
            await fetch(port)


@pytest.mark.parametrize(
    "listen",
    ["0.0.0.0:9177", "192.0.2.1:9177", "[::]:9177", "[2001:db8::1]:9177", "localhost:9177", "127.0.0.1", ":9177",
     "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:http", "127.0.0.1:9177/metrics", "[127.0.0.1]:9177", "::1:9177"],
)  # fmt: skip
def test_other_than_loopback_addresses_are_refused(listen: str) -> None:
    with pytest.raises(ValidationError, match="loopback interface, such as"):
        MetricsSettings(listen=listen)


def test_loopback_addresses_are_taken() -> None:
    assert parse_listen("127.0.0.1:9177") == ("127.0.0.1", 9177)
    assert parse_listen("127.9.9.9:1") == ("127.9.9.9", 1)
    assert parse_listen("[::1]:9177") == ("::1", 9177)
    assert MetricsSettings().listen == ""


# The files


def test_the_commands_print_the_files() -> None:
    rules = CliRunner().invoke(cli.app, ["metrics", "--rules"])
    dashboard = CliRunner().invoke(cli.app, ["metrics", "--dashboard"])
    assert rules.stdout == (FOLDER / "rules.yml").read_text()
    assert json.loads(dashboard.stdout)["title"] == "AgentVM Kernel"
    assert CliRunner().invoke(cli.app, ["metrics", "--rules", "--dashboard"]).exit_code == 2


async def test_the_command_prints_the_metrics(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with supervised(short_tmp) as (supervisor, _):
        monkeypatch.setenv("AGENTVM_STATE_DIR", str(supervisor.paths.state))
        result = await asyncio.to_thread(CliRunner().invoke, cli.app, ["metrics"])
        assert parsed(result.stdout).keys() == TYPES.keys()


def expressions() -> list[str]:
    dashboard = json.loads((FOLDER / "dashboard.json").read_text())
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]


def test_rules_and_dashboard_name_only_metrics_that_there_are() -> None:
    text = " ".join([(FOLDER / "rules.yml").read_text(), *expressions()])
    named = {re.sub("_(bucket|count|sum)$", "", name) for name in re.findall(r"\bagent_\w+", text)}
    assert named <= TYPES.keys()
    assert {
        re.sub("_(bucket|count|sum)$", "", name) for name in re.findall(r"\bagent_\w+", " ".join(expressions()))
    } == (TYPES.keys())


@needs_promtool
def test_promtool_finds_nothing_wrong(tmp_path: Path) -> None:
    metrics = Metrics(["script"])
    metrics.observe(lambda: [Labelled("vm-1", "light", "minimal", Sample(*range(18)))], lambda: {"warm": 1})
    metrics.execution("timeout", 1)
    promtool("check", "metrics", given=text_of(metrics))
    promtool("check", "rules", str(FOLDER / "rules.yml"))
    rules = [
        {"record": f"panel_{number}", "expr": one.replace("$__rate_interval", "5m").replace("$instance", ".*")}
        for number, one in enumerate(expressions())
    ]
    panels = tmp_path / "panels.yml"
    panels.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", str(panels))


@needs_promtool
def test_alerts_are_raised_when_they_should_be(tmp_path: Path) -> None:
    series = {
        'up{job="agentvm", instance="a"}': "0x120",
        'agent_vm_pool_size{instance="a", kind="warm"}': "0x120",
        'agent_vm_pool_size{instance="b", kind="warm"}': "1x120",
        'agent_network_connection_attempts_total{instance="a", allowed="false"}': "0+120x120",
        'agent_network_connection_attempts_total{instance="b", allowed="true"}': "0+120x120",
        'agent_output_blocked_total{instance="a", reason="script"}': "0+10x120",
        'agent_vm_pool_acquire_duration_seconds_bucket{instance="a", le="5.0"}': "0x120",
        'agent_vm_pool_acquire_duration_seconds_bucket{instance="a", le="10.0"}': "0+1x120",
        'agent_vm_pool_acquire_duration_seconds_bucket{instance="a", le="+Inf"}': "0+1x120",
    }
    raised = ("SupervisorDown", "PoolEmpty", "ConnectionsRefused", "OutputBlocked", "AcquireSlow")
    tests = {
        "rule_files": [str(FOLDER / "rules.yml")],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "promql_expr_test": [
                    {
                        "expr": 'count by (alertname, instance) (ALERTS{alertstate="firing"})',
                        "eval_time": "60m",
                        "exp_samples": [
                            {"labels": f'{{alertname="AgentVM{name}", instance="a"}}', "value": 1} for name in raised
                        ],
                    }
                ],
            }
        ],
    }
    file = tmp_path / "tests.yml"
    file.write_text(json.dumps(tests))
    promtool("test", "rules", str(file))


def promtool(*arguments: str, given: str = "") -> None:
    done = subprocess.run(["promtool", *arguments], input=given, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
