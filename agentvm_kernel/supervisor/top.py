"""The VMs as a table, once or live."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import termios
import tty
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from agentvm_kernel.snapshots.quota import readable_size
from agentvm_kernel.supervisor.client import SupervisorClient
from agentvm_kernel.supervisor.messages import PoolInfo, VMInfo
from agentvm_kernel.terminal import add_row, plain, readable_time, table

_QUIT = {b"q", b"Q"}


def vm_table(vms: Iterable[VMInfo], before: Mapping[str, VMInfo] | None = None) -> Table:
    """Return a table of VMs.

    Args:
        vms: The VMs.
        before: The same a while ago, by id; if given, the table has the share of a CPU that each has used since.
    """
    shown = table(
        "id", "state", "for", "profile", ">vCPUs", ">memory", ">of", ">disk", ">CPU time",
        *(() if before is None else (">CPU",)), ">age",
    )  # fmt: skip
    for vm in vms:
        load = () if before is None else (_load(vm, before.get(vm.id)),)
        add_row(
            shown, vm.id, vm.state, vm.notebook or vm.owner, vm.profile, str(vm.vcpus), readable_size(vm.memory),
            f"{vm.memory_mib} MiB", readable_size(vm.disk), f"{vm.cpu_seconds:.1f} s", *load, readable_time(vm.age),
        )  # fmt: skip
    return shown


def _load(now: VMInfo, before: VMInfo | None) -> str:
    if before is None or now.age <= before.age:
        return ""
    return f"{(now.cpu_seconds - before.cpu_seconds) / (now.age - before.age):.0%}"


def pool_line(pool: PoolInfo) -> str:
    """Return what there is to say of the pool in one line."""
    parts = [
        f"{pool.out} of {pool.max_vms} VMs out",
        f"room for {pool.room} more",
        f"{sum(one.warm for one in pool.stocks)} warm",
        f"{sum(one.blanks for one in pool.stocks)} blanks",
    ]
    if pool.drained:
        parts.append("drained: nothing is kept ready")
    if pool.waiting:
        parts.append(f"{len(pool.waiting)} waiting: {plain(pool.waiting[0].reason)}")
    return ", ".join(parts)


async def watch(client: SupervisorClient, console: Console, every: float) -> None:
    """Show the VMs until q or Ctrl-C is pressed; once, where there is no terminal.

    Args:
        client: Whom to ask.
        console: Where to show them.
        every: Seconds between two looks.
    """
    if not console.is_terminal:
        console.print(await _look(client, {}))
        return
    seen: dict[str, VMInfo] = {}
    with _leaving() as leave, Live(console=console, screen=True, auto_refresh=False) as live:
        while not leave.is_set():
            live.update(await _look(client, seen), refresh=True)
            with suppress(TimeoutError):
                await asyncio.wait_for(leave.wait(), every)


async def _look(client: SupervisorClient, seen: dict[str, VMInfo]) -> Group:
    """Return what there is to show, and note the VMs for the next look."""
    vms, pool = (await client.vms()).vms, await client.pool()
    shown = Group(Text(pool_line(pool)), vm_table(vms, dict(seen) if seen else None))
    seen.clear()
    seen.update((vm.id, vm) for vm in vms)
    return shown


@contextmanager
def _leaving() -> Iterator[asyncio.Event]:
    """Provide what is set when q or Ctrl-C is pressed."""
    leave = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, leave.set)
    try:
        with _keys(loop, leave) if sys.stdin.isatty() else nullcontext():
            yield leave
    finally:
        loop.remove_signal_handler(signal.SIGINT)


@contextmanager
def _keys(loop: asyncio.AbstractEventLoop, leave: asyncio.Event) -> Iterator[None]:
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)

    def pressed() -> None:
        key = os.read(terminal, 1)
        if key in _QUIT or not key:
            leave.set()

    tty.setcbreak(terminal)  # a key at a time, not echoed
    loop.add_reader(terminal, pressed)
    try:
        yield
    finally:
        loop.remove_reader(terminal)
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
