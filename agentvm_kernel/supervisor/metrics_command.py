"""``agentvm metrics``: what Prometheus is told, and the files that tell Prometheus and Grafana what to make of it."""

from __future__ import annotations

from importlib.resources import files
from typing import Annotated

import typer

from agentvm_kernel.supervisor.sync_client import SyncSupervisorClient

_FOLDER = files("agentvm_kernel.observe") / "prometheus"


def metrics(
    rules: Annotated[bool, typer.Option("--rules", help="Print recording and alert rules for Prometheus.")] = False,
    dashboard: Annotated[bool, typer.Option("--dashboard", help="Print a dashboard for Grafana.")] = False,
) -> None:
    """Print the supervisor's metrics as Prometheus reads them, or one of the files that go with them."""
    if rules and dashboard:
        raise typer.BadParameter("One of the files at a time.")
    if rules or dashboard:
        typer.echo((_FOLDER / ("rules.yml" if rules else "dashboard.json")).read_text(), nl=False)
        return
    with SyncSupervisorClient(start=False) as client:
        typer.echo(client.metrics(), nl=False)
