"""Rules of our own in front of libvirt's filter: they refuse the same, and count and report what they refuse.

Libvirt's filter has no word for that. Only root may set them, so an ordinary user's network has the filter alone.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from typing import Final

from agentvm_kernel.errors import HypervisorError
from agentvm_kernel.vm.nat import NatNetwork
from agentvm_kernel.vm.nat_filter import NAMES_PORT, PORTS, REFUSED

REPORTS: Final = "10/second burst 20 packets"
"""Of each card; what comes faster is counted only."""

_FAMILIES: Final = ("bridge", "inet")
_HEADERS: Final = 64  # bytes of a packet that are reported


def is_possible() -> bool:
    """Return whether this process may set rules, and can."""
    return os.geteuid() == 0 and _nft() is not None


def group_of(network: NatNetwork) -> int:
    """Return the group of nfnetlink_log(8) that refused packets are reported to.

    Args:
        network: Whose packets.
    """
    return 1024 + int(network.tag[:4], 16) % 60_000


def rules(network: NatNetwork) -> str:
    """Return the rules, as nft(8) reads them.

    Args:
        network: The network that they guard.
    """
    table, gateway, names = _table(network.tag), network.gateway, NAMES_PORT
    refuse = f"""\
    counter name refused
    update @reported {{ iifname limit rate {REPORTS} }} log group {group_of(network)} snaplen {_HEADERS}
    drop"""
    refused, ports = ", ".join(map(str, REFUSED)), ", ".join(map(str, PORTS))
    return f"""\
table bridge {table} {{
  counter refused {{ }}
  set reported {{ type ifname; flags dynamic; size 4096; }}
  chain cards {{
    type filter hook prerouting priority -310;
    iifname "{network.devices}*" jump out
  }}
  chain out {{
    ether type arp return
    ip saddr != {network.subnet} counter name refused drop
    ip daddr {gateway} udp dport {names} return
    ip daddr {gateway} tcp dport {names} return
    ip daddr != {{ {refused} }} tcp dport {{ {ports} }} return
{refuse}
  }}
}}
table inet {table} {{
  counter refused {{ }}
  set reported {{ type ifname; flags dynamic; size 4096; }}
  chain host {{
    type filter hook input priority -10;
    iifname "{network.bridge}" jump in
  }}
  chain in {{
    ip daddr {gateway} udp dport {names} return
    ip daddr {gateway} tcp dport {names} return
{refuse}
  }}
}}
"""


async def set_up(network: NatNetwork) -> None:
    """Set the rules.

    Raises:
        HypervisorError: the kernel or nft(8) refused them.
    """
    await tear_down(network.tag)
    await _run("-f", "-", text=rules(network))


async def tear_down(tag: str) -> None:
    """Remove the rules of a supervisor's network, if there are some."""
    for family in _FAMILIES:
        # Declared first, so that there is something to delete.
        table = f"{family} {_table(tag)}"
        await _run("-f", "-", text=f"table {table}\ndelete table {table}\n")


async def refused(network: NatNetwork) -> int:
    """Return how many packets the rules have refused so far."""
    count = 0
    for family in _FAMILIES:
        said = json.loads(await _run("-j", "list", "counter", family, _table(network.tag), "refused"))
        count += sum(entry["counter"]["packets"] for entry in said["nftables"] if "counter" in entry)
    return count


def _table(tag: str) -> str:
    return f"agentvm_{tag}"


def _nft() -> str | None:
    return shutil.which("nft", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


async def _run(*arguments: str, text: str = "") -> str:
    process = await asyncio.create_subprocess_exec(
        _nft() or "nft", *arguments,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, errors = await process.communicate(text.encode())
    if process.returncode != 0:
        raise HypervisorError(f"nft: {errors.decode(errors='replace').strip()}")
    return output.decode()
