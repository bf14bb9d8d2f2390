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
from agentvm_kernel.supervisor.operator_messages import PoolInfo, VMInfo
from agentvm_kernel.terminal import add_row, plain, readable_time, table

_QUIT = {b"q", b"Q"}
_MOVED = ("disk_read", "disk_written", "network_sent", "network_received")


def vm_table(vms: Iterable[VMInfo], before: Mapping[str, VMInfo] | None = None) -> Table:
    """Return a table of VMs.

    Args:
        vms: The VMs.
        before: The same a while ago, by id; if given, the table has what each has moved a second since, else in all.
    """
    rate = "" if before is None else "/s"
    shown = table(
        "id", "state", "cell", "for", "profile", ">vCPUs", ">CPU", ">CPU time", ">memory", ">of", ">disk",
        f">read{rate}", f">written{rate}", f">sent{rate}", f">received{rate}", ">age",
    )  # fmt: skip
    for vm in vms:
        add_row(
            shown, vm.id, vm.state, "runs" if vm.executing else "idle" if vm.lease else "", vm.notebook or vm.owner,
            vm.profile, str(vm.vcpus), f"{vm.cpu_percent:.0f}%", f"{vm.cpu_seconds:.1f} s",
            readable_size(vm.memory_cost), f"{vm.memory_mib} MiB", readable_size(vm.disk),
            *(_moved(name, vm, before) for name in _MOVED), readable_time(vm.age),
        )  # fmt: skip
    return shown


def _moved(name: str, now: VMInfo, before: Mapping[str, VMInfo] | None) -> str:
    """Return how many bytes a VM has moved, a second if it is known how many they were; empty as long as it is not."""
    moved: int = getattr(now, name)
    if before is None:
        return readable_size(moved)
    then = before.get(now.id)
    if then is None or now.age <= then.age:
        return ""
    return readable_size(round((moved - getattr(then, name)) / (now.age - then.age)))


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
        console.print(await _look(client, None))
        return
    seen = _Seen()
    with _leaving() as leave, Live(console=console, screen=True, auto_refresh=False) as live:
        while not leave.is_set():
            live.update(await _look(client, seen), refresh=True)
            with suppress(TimeoutError):
                await asyncio.wait_for(leave.wait(), every)


class _Seen:
    """The VMs at earlier looks; they may be looked at more often than they are measured.

    Attributes:
        before: Each VM as it was before it was measured last, by id.
    """

    def __init__(self) -> None:
        self.before: dict[str, VMInfo] = {}
        self._newest: dict[str, VMInfo] = {}

    def note(self, vms: Iterable[VMInfo]) -> None:
        """Take note of how they are now."""
        newest, self._newest = self._newest, {vm.id: vm for vm in vms}
        for vm in self._newest.values():
            if (known := newest.get(vm.id)) is not None and known.age < vm.age:
                self.before[vm.id] = known
        self.before = {key: vm for key, vm in self.before.items() if key in self._newest}


async def _look(client: SupervisorClient, seen: _Seen | None) -> Group:
    """Return what there is to show, and note the VMs for the next look."""
    vms, pool = (await client.vms()).vms, await client.pool()
    if seen is not None:
        seen.note(vms)
    return Group(Text(pool_line(pool)), vm_table(vms, None if seen is None else seen.before))


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
