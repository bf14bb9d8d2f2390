"""`%limits`: what holds for what runs in the notebook's VM, and changing it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError

from agentvm_kernel.errors import LimitError
from agentvm_kernel.kernel.host import Host
from agentvm_kernel.kernel.machine import Machine
from agentvm_kernel.magics import show
from agentvm_kernel.magics.call import Call
from agentvm_kernel.profiles import Limits
from agentvm_kernel.supervisor.messages import Granted

HELP = """%limits [NAME=VALUE …] | reset

Show what holds for what runs in this notebook's VM: each limit, where it comes from, and who enforces it. With names
and values: change it from now on, up or down; that outlives rollbacks and restarts of the VM. reset takes all changes
back.

  timeout=60           a cell that runs longer is interrupted, then ended with its VM; also 90s, 5min, 2h
  lifetime=8h          the VM is given back after that time; none for no limit
  cpu=1.5              share of the host's CPUs, in cores; none for as many as the VM has
  memory=1GiB          what all processes of the user in the VM may use together; none for all that it has
  processes=200        processes and threads of the user in the VM
  open_files=1024      for each of them
  disk_rate=50MB       bytes read and written in a second, together; none for no limit
  disk_iops=1000       reads and writes in a second, together; none for no limit
  output=64MiB         output of a cell; the rest is left out
  output_rate=8MiB     of it in a second; what comes faster waits

The sizes of the machine and of its disk are the profile's: %vm profile NAME starts with another.

Example:

  %limits timeout=10min memory=1GiB"""

_VALID: Final = "%limits, %limits NAME=VALUE … and %limits reset"
_HEAD: Final = ("limit", "value", "from", "enforced by")
_NUMBER: Final = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)\s*([a-zA-Z]*)(/s)?", re.ASCII)
_SECONDS: Final = {"": 1, "s": 1, "min": 60, "h": 3600, "d": 86400}
BYTES: Final = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
}
_NONE: Final = "no limit"


@dataclass(frozen=True)
class _Kind:
    """A kind of value.

    Attributes:
        units: What one of each unit is.
        step: What one of the limit's own units is.
        example: How a value is written.
        text: Shows a value.
        whole: Only whole numbers of the limit's own units are valid.
    """

    units: Mapping[str, float]
    step: float
    example: str
    text: Callable[[float], str]
    whole: bool = True


def _size(mib: float) -> str:
    return f"{mib / 1024:g} GiB" if mib >= 1024 and mib % 256 == 0 else f"{mib:g} MiB"


_TIME: Final = _Kind(_SECONDS, 1, "90s, 5min or 2h", lambda seconds: f"{seconds:g} s", whole=False)
_CORES: Final = _Kind({"": 1}, 1, "1.5", lambda cores: f"{cores:g} cores", whole=False)
_COUNT: Final = _Kind({"": 1}, 1, "1000", lambda count: f"{count:g}")
_MIB: Final = _Kind(BYTES, 1 << 20, "512MiB or 1GiB", _size)
_MIB_RATE: Final = _Kind(BYTES, 1 << 20, "8MiB", lambda mib: f"{_size(mib)}/s")
_MB_RATE: Final = _Kind(BYTES, 10**6, "50MB", lambda megabytes: f"{megabytes:g} MB/s")

_LIMITS: Final = {
    "timeout": ("cell_deadline", _TIME),
    "lifetime": ("lifetime", _TIME),
    "cpu": ("cpu", _CORES),
    "memory": ("user_memory_mib", _MIB),
    "processes": ("processes", _COUNT),
    "open_files": ("open_files", _COUNT),
    "disk_rate": ("disk_mb_per_second", _MB_RATE),
    "disk_iops": ("disk_iops", _COUNT),
    "output": ("output_mib", _MIB),
    "output_rate": ("output_mib_per_second", _MIB_RATE),
}
_OF_PROFILE: Final = frozenset({"disk", "vcpus", "vcpu", "network"})


async def run(call: Call, host: Host) -> Mapping[str, str]:
    """Carry out a call.

    Raises:
        UsageError: there is no such call.
        LimitError: there is no such limit, or it cannot have this value.
        AgentVMError: the supervisor refused; what held holds on.
    """
    machine = host.machine
    if not call.words:
        return show.table(_HEAD, await _rows(machine))
    if call.words == ("reset",):
        changes = machine.limits.back()
        if not changes:
            return {"text/plain": "Nothing was changed."}
    else:
        changes = dict(change(call, word, machine) for word in call.words)
    before = machine.limits.now
    await machine.set_limits(changes)
    lines = [_changed(name, before, machine.limits.now) for name in _LIMITS if _LIMITS[name][0] in changes]
    return {"text/plain": "\n".join(lines)}


def change(call: Call, word: str, machine: Machine) -> tuple[str, float | None]:
    """Read one NAME=VALUE; return the limit's name in `Limits` and its value.

    Args:
        call: The call.
        word: NAME=VALUE.
        machine: Whose limit it is to be.

    Raises:
        UsageError: it is no such word.
        LimitError: there is no such limit, or it cannot have this value.
    """
    name, equals, text = word.partition("=")
    granted = machine.guest.granted if machine.guest else None
    if equals and name in _OF_PROFILE:
        gives = _machine(granted)
        raise LimitError(
            f"%limits cannot change {name}: that is the profile's{f' ({gives})' if gives else ''}.",
            "%vm profile NAME starts with another one; %vm profile lists them.",
        )
    if not equals or not text:
        raise call.wrong(_VALID)
    if name not in _LIMITS:
        raise LimitError(f"There is no limit {show.plain(name, 32)!r}.", f"There are: {', '.join(_LIMITS)}.")
    field, kind = _LIMITS[name]
    value = None if text == "none" else _number(name, text, kind)
    _check(name, field, value, kind)
    if name == "memory" and granted and value is not None and value > granted.memory_mib:
        raise LimitError(
            f"memory={text} is more than the VM has: {_size(granted.memory_mib)}.",
            "%vm profile lists profiles with more; %vm profile NAME starts with one.",
        )
    return field, value


def _number(name: str, text: str, kind: _Kind) -> float:
    match = _NUMBER.fullmatch(text)
    if match is None or match[2] not in kind.units:
        raise LimitError(
            f"{name}={show.plain(text, 32)} cannot be understood.", f"Valid is, for example, {kind.example}."
        )
    value = float(match[1]) * kind.units[match[2]] / kind.step
    return math.floor(value) if kind.whole else value


def _check(name: str, field: str, value: float | None, kind: _Kind) -> None:
    try:
        Limits.model_validate({field: value})
    except ValidationError as error:
        bounds = Limits.model_fields[field].metadata
        least, most = (next((getattr(one, key) for one in bounds if hasattr(one, key)), None) for key in ("ge", "le"))
        valid = f"at least {kind.text(least)}" if least is not None else "a value"
        valid += f", at most {kind.text(most)}" if most is not None else ""
        shown = _NONE if value is None else kind.text(value)
        raise LimitError(f"{name} cannot be {shown}.", f"Valid is {valid}.") from error


async def _rows(machine: Machine) -> list[tuple[str, ...]]:
    held = machine.limits
    who = await machine.enforced_by() if machine.guest else {}
    rows: list[tuple[str, ...]] = [
        (name, _shown(field, kind, held.now), held.source(field), who.get(field, ""))
        for name, (field, kind) in _LIMITS.items()
    ]
    if machine.guest:
        granted, profile = machine.guest.granted, f"of profile {held.profile}"
        rows += [
            ("vcpus", str(granted.vcpus), profile, who.get("memory", "")),
            ("machine's memory", _size(granted.memory_mib), profile, who.get("memory", "")),
            ("disk", f"{granted.disk_gb} GB", profile, who.get("disk", "")),
            ("QEMU's memory", "more than the machine's", "fixed", who.get("qemu_memory", "")),
            ("priority", "behind the host's work", "fixed", who.get("nice", "")),
        ]
    return rows


def _machine(granted: Granted | None) -> str:
    return f"{granted.vcpus} vCPU, {_size(granted.memory_mib)}, {granted.disk_gb} GB disk" if granted else ""


def _shown(field: str, kind: _Kind, limits: Limits) -> str:
    value = getattr(limits, field)
    return _NONE if value is None else kind.text(value)


def _changed(name: str, before: Limits, now: Limits) -> str:
    field, kind = _LIMITS[name]
    old, new = _shown(field, kind, before), _shown(field, kind, now)
    return f"{name}: {new}" + (f" (was {old})" if old != new else "")
