"""`%vm`: the notebook's virtual machine."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from agentvm_kernel.config import Paths, load_settings
from agentvm_kernel.errors import LinkError, VMEndedError
from agentvm_kernel.firewall.context import Mode
from agentvm_kernel.firewall.firewall import Firewall
from agentvm_kernel.kernel import footer
from agentvm_kernel.kernel.facts import Facts
from agentvm_kernel.kernel.guest import Guest
from agentvm_kernel.kernel.host import Host
from agentvm_kernel.kernel.info import Usage
from agentvm_kernel.kernel.machine import Machine, State
from agentvm_kernel.magics import show, workspace
from agentvm_kernel.magics.call import Call
from agentvm_kernel.observe.description import FileSystem
from agentvm_kernel.profiles import PROFILES
from agentvm_kernel.supervisor.network_messages import NetworkInfo
from agentvm_kernel.vm.layers import examine

HELP = """%vm [status | facts [on | off] | guest | security | profile [NAME] | restart | resume | stop]

The virtual machine in which this notebook's cells run.

  %vm, %vm status   show the VM: image, profile, accelerator, age, and what it uses, measured by the host; then what
                    the guest claims of itself, for which nobody vouches
  %vm facts         say what the last cell cost, as measured by the host
  %vm facts on      say so under every cell from now on; off ends that
  %vm guest         show what QEMU's agent in the VM claims: system, file systems, who has logged in
  %vm security      show which of the five layers around it are really active on this host, and why one is not
  %vm profile       show the profiles: what a machine of each has
  %vm profile NAME  throw the VM away, with all that it has in memory and on disk, and start with one of that profile
  %vm restart       throw the VM away and start with a fresh one
  %vm resume        let the VM run on, if it was slowed down or stopped because of an anomaly; at once, also while a
                    cell runs
  %vm stop          give the VM back, or stop waiting for one; snapshots stay

Example:

  %vm profile intensive"""

_VALID: Final = (
    "%vm status, %vm facts, %vm facts on, %vm facts off, %vm guest, %vm security, %vm profile, %vm profile NAME,"
    " %vm restart, %vm resume and %vm stop"
)
_CLAIMS_SECONDS: Final = 2.0
_LAYERS: Final = ("layer", "active", "found")
_PROFILES: Final = ("profile", "vCPU", "memory", "disk", "network", "cell deadline", "")


async def run(call: Call, host: Host) -> Mapping[str, str]:
    """Carry out a call.

    Raises:
        UsageError: there is no such call.
        AgentVMError: no VM could be had, or there is no such profile.
    """
    machine = host.machine
    match call.words:
        case () | ("status",):
            rows = [*_status(machine, host.usage), *await _workspace(machine), *await _claims(machine.guest)]
            return show.facts(rows)
        case ("facts", *switch) if switch in ([], ["on"], ["off"]):
            return _cell_facts(host.facts, switch)
        case ("security",):
            return show.table(
                _LAYERS, [*_layers(machine), _network(await machine.network.status()), _output(machine.firewall)]
            )
        case ("profile",):
            return show.table(_PROFILES, _profiles(machine))
        case ("profile", name):
            return await _change_profile(machine, name)
        case ("restart" | "resume" | "stop" | "guest" as step,):
            return await {"restart": _restart, "resume": _resume, "stop": _stop, "guest": _describe}[step](machine)
        case _:
            raise call.wrong(_VALID)


async def _resume(machine: Machine) -> Mapping[str, str]:
    done = await machine.resume()
    if not done.was_paused and not done.was_slowed:
        return {"text/plain": "The VM was neither stopped nor slowed down."}
    return {"text/plain": f"The VM runs on{', at full speed' if done.was_slowed else ''}."}


async def _stop(machine: Machine) -> Mapping[str, str]:
    if machine.state is State.ENDED:
        return {"text/plain": "There is no VM to give back."}
    is_waiting = machine.state is State.STARTING
    await machine.close(VMEndedError("The VM was given back by %vm stop."))
    done = "No VM is waited for any more." if is_waiting else "The VM is given back, with all that it had."
    return {"text/plain": f"{done} %vm restart brings a fresh one."}


def _layers(machine: Machine) -> list[tuple[str, str, str]]:
    if machine.guest is None:
        raise machine.error or VMEndedError("There is no VM.")
    granted = machine.guest.granted
    try:
        return [(one.name, one.active, one.detail) for one in examine(granted.pid, granted.accelerator)]
    except OSError as error:
        raise VMEndedError(f"The VM's QEMU cannot be examined: {error.strerror}.") from error


def _network(info: NetworkInfo) -> tuple[str, str, str]:
    """Return the line that says what the VM reaches."""
    if info.card:
        found = f"a network card ({info.card}): any public address may be reached on a few ports, whatever its name"
        return ("network", "no", found)
    found = {
        "filtered": "no network card; the supervisor connects, by name, to what is allowed: %net shows it",
        "isolated": "no network card, and nothing is carried",
        "record-only": "no network card, but every public name may be reached: %net mode filtered changes that",
    }[info.mode]
    return ("network", "no" if info.mode == "record-only" else "yes", found)


def _output(firewall: Firewall) -> tuple[str, str, str]:
    """Return the line that says what becomes of the VM's output, and what of it was blocked."""
    mode = firewall.policy.mode
    counts = ", ".join(f"{reason} {count}" for reason, count in sorted(firewall.blocked.items()))
    found = f"mode {mode}; blocked so far: {counts or 'nothing'}"
    return ("output", "no" if mode is Mode.TRUSTED else "yes", found)


def _profiles(machine: Machine) -> list[tuple[str, ...]]:
    present = machine.limits.profile
    return [
        (
            name, str(one.vcpus), f"{one.memory_mib / 1024:g} GiB", f"{one.disk_gb} GB", one.network,
            f"{one.cell_deadline:g} s", "this notebook's" if name == present else "",
        )
        for name, one in (PROFILES | load_settings(Paths.of_user()).profiles).items()
    ]  # fmt: skip


async def _change_profile(machine: Machine, name: str) -> Mapping[str, str]:
    load_settings(Paths.of_user()).find_profile(name)
    said = await _restart(machine, name)
    lost = "What the old one had in memory and on disk is gone, and what %limits had changed no longer holds."
    return {"text/plain": f"{said['text/plain']} Profile {name}. {lost}"}


async def _restart(machine: Machine, profile: str = "") -> Mapping[str, str]:
    loop = asyncio.get_running_loop()
    start = loop.time()
    await machine.restart(profile=profile)
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


async def _workspace(machine: Machine) -> list[tuple[str, str]]:
    """Return the line that says which folder of the host the VM shares, if it does."""
    if machine.guest is None:
        return []
    info = await machine.workspace()
    return [("shared folder", workspace.said(info).partition("\n")[0])] if info.folder else []


def _cell_facts(facts: Facts, switch: list[str]) -> Mapping[str, str]:
    if switch:
        facts.shown = switch == ["on"]
        shown = "A line under each cell says what it cost." if facts.shown else "Cells do not say what they cost."
        return {"text/plain": shown}
    return {"text/plain": "No cell has run yet." if facts.last is None else footer.line(facts.last)}


async def _claims(guest: Guest | None) -> list[tuple[str, str]]:
    if guest is None:
        return []
    try:
        async with asyncio.timeout(_CLAIMS_SECONDS):
            claims = await guest.agent.claims()
    except (LinkError, TimeoutError):
        return [("claimed by the guest", "nothing: its agent does not answer")]
    told = (
        ("processes", claims.processes, "{}"),
        ("load", claims.load, "{:.2f}"),
        ("free memory", claims.memory_free, None),
        ("free disk", claims.filesystem_free, None),
    )
    return [
        (f"{name} (claimed by the guest)", show.size(int(value)) if form is None else form.format(value))
        for name, value, form in told
        if value is not None
    ]


async def _describe(machine: Machine) -> Mapping[str, str]:
    if machine.guest is None:
        raise machine.error or VMEndedError("There is no VM.")
    said = await machine.guest.agent.description()
    rows = [
        ("system", said.system.pretty_name),
        ("kernel", f"{said.system.kernel_release} {said.system.machine}".strip()),
        *((f"file system {one.mountpoint}", _filling(one)) for one in said.file_systems),
        ("logged in", ", ".join(dict.fromkeys(one.user for one in said.users))),
        ("QEMU's agent", said.version),
    ]
    named = [(f"{show.plain(name)} (claimed by the guest)", show.plain(text, 200)) for name, text in rows if text]
    return show.facts(named) if named else {"text/plain": "The guest claims nothing."}


def _filling(one: FileSystem) -> str:
    if one.used_bytes is None or one.total_bytes is None:
        return one.type
    return f"{one.type}, {show.size(one.used_bytes)} of {show.size(one.total_bytes)} used"


def _measures(guest: Guest, usage: Usage) -> list[tuple[str, str]]:
    cpu, memory = usage.measure(guest.granted)
    return [
        ("age", show.duration(asyncio.get_running_loop().time() - guest.since)),
        ("CPU (measured by the host)", f"{usage.cpu_seconds(guest.granted):.1f} s in all, now {cpu:.0f} % of a core"),
        ("memory (measured by the host)", f"{memory / (1 << 20):.0f} MiB"),
    ]
