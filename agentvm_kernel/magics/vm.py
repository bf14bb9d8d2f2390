"""`%vm`: the notebook's virtual machine."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from agentvm_kernel.kernel.guest import Guest
from agentvm_kernel.kernel.host import Host
from agentvm_kernel.kernel.info import Usage
from agentvm_kernel.kernel.machine import Machine, State
from agentvm_kernel.magics import show
from agentvm_kernel.magics.call import Call

HELP = """%vm [status | restart]

The virtual machine in which this notebook's cells run.

  %vm, %vm status   show the VM: image, profile, accelerator, age, and what it uses, measured by the host
  %vm restart       throw the VM away, with all that it has in memory and on disk, and start with a fresh one

Example:

  %vm restart"""


async def run(call: Call, host: Host) -> Mapping[str, str]:
    """Carry out a call.

    Raises:
        UsageError: there is no such call.
        AgentVMError: no VM could be had.
    """
    match call.words:
        case () | ("status",):
            return show.facts(_status(host.machine, host.usage))
        case ("restart",):
            return await _restart(host.machine)
        case _:
            raise call.wrong("%vm status and %vm restart")


async def _restart(machine: Machine) -> Mapping[str, str]:
    loop = asyncio.get_running_loop()
    start = loop.time()
    await machine.restart()
    await machine.settled()
    if machine.error:
        raise machine.error
    return {"text/plain": f"A fresh virtual machine is running ({loop.time() - start:.1f} s)."}


def _status(machine: Machine, usage: Usage) -> list[tuple[str, str]]:
    guest = machine.guest
    if guest is None:
        rows = [("state", machine.state.value)]
        if machine.state is State.STARTING:
            rows.append(("stage", machine.stage))
        if machine.error:
            rows += [("reason", machine.error.message), ("remedy", machine.error.hint or "%vm restart")]
        return rows
    return [("state", "running"), *_facts(guest), *_measures(guest, usage)]


def _facts(guest: Guest) -> list[tuple[str, str]]:
    granted = guest.granted
    accelerator = "KVM (hardware virtualisation)"
    if granted.accelerator == "tcg":
        accelerator = "TCG (software emulation): QEMU gives no isolation guarantee for it"
    transport = "vsock" if granted.link.kind == "vsock" else "virtio-serial"
    return [
        ("VM", granted.vm),
        ("accelerator", accelerator),
        ("image", f"{granted.flavour} ({granted.image[:12]})"),
        ("profile", f"{granted.profile}: {granted.vcpus} vCPU, {granted.memory_mib} MiB, {granted.disk_gb} GB disk"),
        ("link", f"{transport}, epoch {granted.epoch}"),
        ("acquired in", f"{granted.acquire_ms:.0f} ms"),
    ]


def _measures(guest: Guest, usage: Usage) -> list[tuple[str, str]]:
    cpu, memory = usage.measure(guest.granted)
    return [
        ("age", show.duration(asyncio.get_running_loop().time() - guest.since)),
        ("CPU (measured by the host)", f"{usage.cpu_seconds(guest.granted):.1f} s in all, now {cpu:.0f} % of a core"),
        ("memory (measured by the host)", f"{memory / (1 << 20):.0f} MiB"),
    ]
