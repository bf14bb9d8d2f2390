"""``agentvm vm``, ``agentvm pool`` and ``agentvm supervisor``: look at the supervisor and steer it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.text import Text

from agentvm_kernel.config import Paths
from agentvm_kernel.errors import AgentVMError, SupervisorError
from agentvm_kernel.snapshots.quota import readable_size
from agentvm_kernel.supervisor.client import SupervisorClient
from agentvm_kernel.supervisor.operator_messages import DiskRequest, PoolInfo, VMInfo
from agentvm_kernel.supervisor.sync_client import SyncSupervisorClient
from agentvm_kernel.supervisor.top import pool_line, vm_table, watch
from agentvm_kernel.terminal import add_row, console, plain, readable_time, table
from agentvm_kernel.validation import checked

vm_app = typer.Typer(help="Virtual machines: list, show, watch, end.", no_args_is_help=True)
pool_app = typer.Typer(help="What is kept ready: list, show, drain, fill.", no_args_is_help=True)

_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_Vm = Annotated[str, typer.Argument(metavar="ID", help="Id of the VM, or its beginning.")]

_SIZES: Final = (
    "memory", "memory_cost", "disk", "disk_read", "disk_written", "network_sent", "network_received",
)  # fmt: skip

_out = console()
_err = Console(stderr=True)


def _client() -> SyncSupervisorClient:
    return SyncSupervisorClient(start=False)


def _find(vms: tuple[VMInfo, ...], wanted: str) -> VMInfo:
    found = [vm for vm in vms if vm.id == wanted] or [vm for vm in vms if wanted and vm.id.startswith(wanted)]
    if len(found) != 1:
        which = "There is no VM" if not found else f"{len(found)} VMs begin with"
        raise SupervisorError(f"{which} {wanted!a:.40}.", "See `agentvm vm list`.")
    return found[0]


@vm_app.command("list")
def list_vms(as_json: _Json = False) -> None:
    """List the VMs, those that are out first."""
    with _client() as client:
        vms = client.vms()
    if as_json:
        print(vms.model_dump_json(indent=2))
    else:
        _out.print(vm_table(vms.vms))


@vm_app.command()
def top(
    every: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds between two looks.")] = 2.0,
) -> None:
    """Watch the VMs; q or Ctrl-C leaves. Prints them once where there is no terminal."""
    asyncio.run(_top(every))


async def _top(every: float) -> None:
    async with SupervisorClient(Paths.of_user(), start=False) as client:
        await watch(client, _out, every)


@vm_app.command()
def show(vm: _Vm, as_json: _Json = False) -> None:
    """Show one VM."""
    with _client() as client:
        found = _find(client.vms().vms, vm)
    if as_json:
        print(found.model_dump_json(indent=2))
        return
    readable = {
        **{name: readable_size(getattr(found, name)) for name in _SIZES},
        "cpu_percent": f"{found.cpu_percent:.0f}",
        "age": readable_time(found.age),
    }
    for name, value in (found.model_dump() | readable).items():
        _out.print(Text.assemble((name, "bold"), " ", plain(str(value))))


@vm_app.command()
def kill(vms: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of VMs, or their beginnings.")]) -> None:
    """End VMs; their sessions are told. What was in them is lost, but for their snapshots."""
    failed = False
    with _client() as client:
        for wanted in vms:
            try:
                vm = _find(client.vms().vms, wanted)
                client.kill(vm.id)
            except AgentVMError as error:
                failed = True
                _err.print(Text(plain(f"{error.message} {error.hint}")))
            else:
                _out.print(Text(plain(f"Ended {vm.id} ({vm.state}, {vm.notebook or vm.owner or 'kept ready'}).")))
    raise typer.Exit(int(failed))


@vm_app.command()
def resume(vm: _Vm) -> None:
    """Let a VM run on that was slowed down or stopped because of an anomaly."""
    with _client() as client:
        found = _find(client.vms().vms, vm)
        done = client.resume(found.id)
    if done.was_paused or done.was_slowed:
        _out.print(Text(plain(f"{found.id} runs on{', at full speed' if done.was_slowed else ''}.")))
    else:
        _out.print(Text(plain(f"{found.id} was neither stopped nor slowed down.")))


@vm_app.command()
def disk(vm: _Vm, file: Annotated[Path, typer.Argument(help="The file to create: qcow2.")]) -> None:
    """Copy a VM's disk into a file, while it runs. What is in it is the VM's: open it only in a virtual machine."""
    with _client() as client:
        found = _find(client.vms().vms, vm)
        copied = client.copy_disk(found.id, checked(DiskRequest, file=str(file.absolute())))
    print(f"{file}: {readable_size(copied.size)}.")
    if copied.unfrozen:
        said = f"Its file systems were not frozen, so that it is as after a power cut: {copied.unfrozen}"
        _err.print(Text(plain(said)))


@pool_app.command("list")
def list_stocks(as_json: _Json = False) -> None:
    """List what is kept ready, of each snapshot."""
    with _client() as client:
        pool = client.pool()
    if as_json:
        print(pool.model_dump_json(indent=2, include={"stocks"}))
    else:
        _print_stocks(pool)


@pool_app.command("show")
def show_pool(as_json: _Json = False) -> None:
    """Show what is out, how much room there is, who waits, and what is kept ready."""
    with _client() as client:
        pool = client.pool()
    if as_json:
        print(pool.model_dump_json(indent=2))
        return
    _out.print(Text(pool_line(pool)))
    for one in pool.waiting:
        said = f"{one.place}. {one.owner or 'somebody'} waits for {readable_time(one.seconds)}: {one.reason}"
        _out.print(Text(plain(said)))
    _print_stocks(pool)


def _print_stocks(pool: PoolInfo) -> None:
    shown = table("snapshot", "image", ">vCPUs", ">memory", ">warm", ">blanks", ">acquires/s")
    for one in pool.stocks:
        add_row(
            shown, one.snapshot, one.image[:12], str(one.vcpus), f"{one.memory_mib} MiB",
            f"{one.warm}/{one.warm_wanted}", f"{one.blanks}/{one.blanks_wanted}", f"{one.rate:.2f}",
        )  # fmt: skip
    _out.print(shown)


@pool_app.command()
def drain() -> None:
    """End what is kept ready, and keep nothing ready until `agentvm pool fill`."""
    with _client() as client:
        client.drain()
    print("Nothing is kept ready any more; `agentvm pool fill` changes that.")


@pool_app.command()
def fill() -> None:
    """Keep VMs ready again."""
    with _client() as client:
        client.fill()
        _out.print(Text(pool_line(client.pool())))


def supervisor(
    foreground: Annotated[bool, typer.Option("--foreground", help="Log to standard error, stay when idle.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Let the running supervisor leave.")] = False,
    reload: Annotated[bool, typer.Option("--reload", help="Let it read the configuration again.")] = False,
    install: Annotated[bool, typer.Option("--install-unit", help="Write a systemd unit that runs it.")] = False,
) -> None:
    """Run the supervisor here, or tell the one that runs to leave or to read its configuration."""
    if stop or reload:
        with _client() as client:
            if reload:
                print(", ".join(client.reload().changed) or "Nothing has changed.")
            if stop:
                client.shutdown()
        return
    if install:
        _install_unit()
        return
    from agentvm_kernel.supervisor.daemon import run  # noqa: PLC0415 - loads libvirt

    raise typer.Exit(run(foreground=foreground))


def _install_unit() -> None:
    from agentvm_kernel.supervisor.systemd import UNIT, install_unit  # noqa: PLC0415 - not needed by other commands

    written = install_unit()
    systemctl = "systemctl" if os.geteuid() == 0 else "systemctl --user"
    print(f"Wrote {written}. Now:\n  {systemctl} daemon-reload\n  {systemctl} enable --now {UNIT}")
    if os.geteuid() != 0:
        print("and, if it is to run while you are not logged in:\n  loginctl enable-linger")


def status(as_json: _Json = False) -> None:
    """Show the supervisor: what is leased, what is ready."""
    with _client() as client:
        shown = client.status()
    if as_json:
        print(shown.model_dump_json(indent=2))
        return
    for name, value in shown.model_dump(exclude={"ready", "leases", "enforced_by"}).items():
        said = readable_time(value) if name == "uptime" else str(value)
        _out.print(Text.assemble((name, "bold"), " ", plain(said)))
    for lease in shown.leases:
        _out.print(Text(plain(f"leased: {lease.vm} ({lease.profile}) to {lease.notebook or lease.owner}")))
    for snapshot, ready in shown.ready.items():
        counts = ", ".join(f"{number} {kind}" for kind, number in ready.items())
        _out.print(Text(plain(f"ready: {counts} of {snapshot}")))
