"""``agentvm net``: what sessions reach of the network, and what they have."""

from __future__ import annotations

import time
from typing import Annotated, Final

import typer
from rich.text import Text

from agentvm_kernel.egress.record import Connection
from agentvm_kernel.errors import SupervisorError
from agentvm_kernel.snapshots.quota import readable_size
from agentvm_kernel.supervisor.status import LeaseInfo
from agentvm_kernel.supervisor.sync_client import SyncSupervisorClient
from agentvm_kernel.terminal import add_row, console, plain, table

net_app = typer.Typer(help="The network of VMs: status, log.", no_args_is_help=True)

_COLUMNS: Final = "{:<19}  {:<30}  {:<40}  {:<8}  {}"

_out = console()

_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@net_app.command()
def status(as_json: _Json = False) -> None:
    """Show what each session may reach, and how much went to and fro."""
    with SyncSupervisorClient(start=False) as client:
        infos = [(lease, client.network(lease.lease)) for lease in client.status().leases]
    if as_json:
        for lease, info in infos:
            print(info.model_dump_json().replace("{", f'{{"lease":"{lease.lease}",', 1))
        return
    shown = table("notebook", "VM", "mode", "carried", ">open", ">allowed", ">refused", ">sent", ">received")
    for lease, info in infos:
        add_row(
            shown, lease.notebook or lease.owner, lease.vm, info.mode, "yes" if info.connected else "no",
            str(info.open), str(info.allowed), str(info.refused), readable_size(info.bytes_sent),
            readable_size(info.bytes_received),
        )  # fmt: skip
    _out.print(shown)


@net_app.command()
def log(
    notebook: Annotated[str, typer.Argument(help="Only of this notebook, or of the VM with this id.")] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes; Ctrl-C ends it.")] = False,
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="How many of the newest.")] = 50,
    as_json: _Json = False,
) -> None:
    """Show the newest connections, those that were refused among them."""
    with SyncSupervisorClient(start=False) as client:
        leases = client.status().leases
        lease = _find(leases, notebook) if notebook else ""
        names = {one.lease: one.notebook or one.owner for one in leases}
        with client.connections(lease) as events:
            known = list(events)
        for connection in known[-number:]:
            _print(connection, names, as_json)
        if follow:
            newest = known[-1].id if known else 0
            with client.connections(lease, follow=True) as events:
                for connection in events:
                    if connection.id > newest:
                        _print(connection, names, as_json)


def _find(leases: tuple[LeaseInfo, ...], wanted: str) -> str:
    found = [one.lease for one in leases if wanted in (one.notebook, one.owner, one.vm, one.lease)]
    if len(found) != 1:
        raise SupervisorError(f"{len(found)} sessions are {wanted!a:.80}.", "See `agentvm net status`.")
    return found[0]


def _print(one: Connection, names: dict[str, str], as_json: bool) -> None:
    if as_json:
        print(one.model_dump_json(), flush=True)
        return
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.time))
    whose = names.get(one.session, one.session)[-30:]
    target = f"{one.name or one.address}:{one.port}"
    sizes = f"{readable_size(one.bytes_sent)} sent, {readable_size(one.bytes_received)} received"
    why = one.reason if one.verdict != "allowed" else sizes
    _out.print(Text(plain(_COLUMNS.format(when, whose, target, one.verdict, why))), soft_wrap=True)
