"""`%rollback`: go back to a snapshot."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Final

from agentvm_kernel.errors import SnapshotError
from agentvm_kernel.kernel.host import Host
from agentvm_kernel.magics import show
from agentvm_kernel.magics.call import Call, UsageError
from agentvm_kernel.snapshots.label import RULE, check_label
from agentvm_kernel.snapshots.notes import Cell
from agentvm_kernel.supervisor.snapshot_messages import Replaced, RollbackPlan, SnapshotInfo

HELP = """%rollback [LABEL | ID | ~N] [--dry-run]

Go back to a snapshot: the notebook gets a fresh VM that is as the old one was then. Without a name: to the newest
snapshot on the present branch. The snapshots that are left stay in the tree.

  LABEL      as given to %snapshot
  ID         as shown by %snapshots, or its beginning
  ~N         N snapshots before the present one; ~ is ~1
  --dry-run  only say what would be lost

Example:

  %rollback before-training --dry-run"""

_VALID: Final = "%rollback [LABEL | ID | ~N] [--dry-run]"
_STEPS: Final = re.compile(r"~[0-9]{0,6}", re.ASCII)
_ID: Final = re.compile(r"[0-9a-f]{1,12}", re.ASCII)
_SHOWN: Final = 20
_LASTING: Final = "what the notebook shows already, and files that were pulled out of the VM"


async def run(call: Call, host: Host) -> Mapping[str, str]:
    """Carry out a call.

    Raises:
        UsageError: there is no such call, or no such name can be.
        AgentVMError: the supervisor refused, and the VM goes on; or the new VM cannot be reached.
    """
    read = call.read(_VALID, most=1, flags={"--dry-run"})
    to = _target(read.words[0]) if read.words else ""
    if "--dry-run" in read.flags:
        plan = await host.machine.plan_rollback(to)
        return {"text/plain": "\n".join(_planned(plan, host.timeline.lost(plan.target.id)))}
    return {"text/plain": await go_back(host, to)}


async def go_back(host: Host, to: str) -> str:
    """Go back, and return the line that says so.

    Args:
        host: Goes.
        to: See `RollbackRequest`.

    Raises:
        AgentVMError: see `run`.
    """
    loop = asyncio.get_running_loop()
    start = loop.time()
    replaced = await host.rollback(to)
    said = f"Back at {show.name(replaced.snapshot)} in {loop.time() - start:.2f} s.{running_on(replaced.snapshot)}"
    return said + unshared(replaced)


def unshared(replaced: Replaced) -> str:
    """Return what is to be said where the new VM does not have the folder that the old one shared."""
    if not replaced.unshared:
        return ""
    # The remedy first: JupyterLab cuts what it shows of it.
    why = show.plain(replaced.unshared, 300)
    return f"\nThe VM does not have the shared folder; %workspace PATH shares it again. {why}"


def running_on(snapshot: SnapshotInfo) -> str:
    """Return what is to be said of a snapshot that was taken in the middle of a cell."""
    if not snapshot.busy:
        return ""
    return f" It froze a running cell ({show.cell(snapshot.cell)}), which runs on now: its output appears here."


def _target(text: str) -> str:
    if _STEPS.fullmatch(text) or _ID.fullmatch(text):
        return text
    try:
        return check_label(text)
    except SnapshotError:
        shown = show.plain(text, 32)
        raise UsageError(f"There can be no snapshot {shown!a}: give a label, an id or ~N. {RULE}.") from None


def _planned(plan: RollbackPlan, lost: list[Cell]) -> list[str]:
    ran = show.cell(plan.target.cell)
    lines = [
        f"To {show.name(plan.target)}, taken {show.duration(plan.seconds)} ago{f' after {ran}' if ran else ''}.",
        f"Lost: {show.size(plan.written)} of memory written since the present snapshot, and what"
        f" {_number(lost, 'cell')} did since the target{':' if lost else '.'}",
        *_shortened([f"  {show.cell(ran) or f'run {ran.run}'}" for ran in lost]),
    ]
    if plan.left:
        lines.append(f"Left, on a branch of the tree: {_number(plan.left, 'snapshot')}:")
        lines += _shortened([f"  {show.name(one)}" for one in plan.left])
    if plan.target.busy:
        lines.append(f"It froze a running cell, which would run on: {ran}")
    return [*lines, *_sent(plan), f"Not undone: {_LASTING}."]


def _sent(plan: RollbackPlan) -> list[str]:
    """Say what went over the network, by host."""
    if not plan.connections:
        return ["Not undone: nothing went over the network since."]
    count = plan.connection_count
    lines = [f"Not undone: what went over the network, in {count} connection{'' if count == 1 else 's'}:"]
    shown = [
        f"  {show.plain(one.name, 253)}:{one.port}  {show.size(one.bytes_sent)} sent,"
        f" {show.size(one.bytes_received)} received" + (f"  ({show.plain(one.cell)})" if one.cell else "")
        for one in plan.connections
    ]
    return [*lines, *shown, *([f"  and {count - len(shown)} earlier ones"] if count > len(shown) else [])]


def _number(things: list[Cell] | tuple[SnapshotInfo, ...], noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


def _shortened(lines: list[str]) -> list[str]:
    return lines if len(lines) <= _SHOWN else [*lines[:_SHOWN], f"  and {len(lines) - _SHOWN} more"]
