"""`%net`: what the notebook's VM reaches of the network."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Final

from agentvm_kernel.egress.record import Connection
from agentvm_kernel.kernel.host import Host
from agentvm_kernel.kernel.network import NotebookNetwork
from agentvm_kernel.magics import show
from agentvm_kernel.magics.call import Call
from agentvm_kernel.supervisor.messages import NetworkMode
from agentvm_kernel.supervisor.network_messages import NetworkInfo, RuleInfo

HELP = """%net [status | allow HOST… | deny HOST… | log [N] | mode MODE | off]
%net [inspect HOST… | record NAME | replay NAME | live]

What this notebook's VM may reach of the network. What is changed holds at once, for this notebook only, and outlives
rollbacks and restarts of the VM.

  %net, %net status       show what is allowed, and what was sent and received
  %net allow HOST[:PORT]… allow hosts, on ports 80, 443, 22 and 9418 or those that are named (:PORT,PORT);
                          *.HOST is any name with one label more, **.HOST with any number of them
  %net deny HOST…         refuse hosts, whatever allows them
  %net log [N]            show the newest connections (20, or N)
  %net mode MODE          filtered: what is allowed; isolated: nothing; record-only: every public name
  %net off                nothing any more: the same as %net mode isolated
  %net inspect HOST…      let the gateway look into the TLS of hosts that are allowed (more in docs/cassettes.md)
  %net record NAME        write down, beside the notebook, what inspected hosts and plain http say
  %net replay NAME        answer from that, and fail where it has no answer, instead of asking the hosts
  %net live               neither record nor replay any more

A comment at the top of a cell allows hosts while that cell runs: # net: allow HOST[:PORT]…

Example:

  %net allow data.example.org *.example.net:8443"""

_VALID: Final = (
    "%net status, %net allow HOST…, %net deny HOST…, %net log [N], %net mode MODE, %net off, %net inspect HOST…,"
    " %net record NAME, %net replay NAME and %net live"
)
_LOG: Final = 20
_NUMBER: Final = re.compile(r"[1-9][0-9]{0,3}", re.ASCII)
_HEAD: Final = ("time", "cell", "host", "port", "verdict", "sent", "received", "duration", "protocol", "why")
_WHY: Final = 80
_MEANINGS: Final = {
    "filtered": "what is allowed",
    "isolated": "nothing, not even names",
    "record-only": "every public name; it is written down",
}


async def run(call: Call, host: Host) -> Mapping[str, str]:
    """Carry out a call.

    Raises:
        UsageError: there is no such call.
        AgentVMError: the supervisor refused; what held holds on.
    """
    network = host.machine.network
    said: Mapping[str, str]
    match call.words:
        case () | ("status",):
            said = show.facts(_status(await network.status()))
        case ("allow", *hosts) if hosts:
            said = await _change(network, allow=hosts)
        case ("deny", *hosts) if hosts:
            said = await _change(network, deny=hosts)
        case ("inspect", *hosts) if hosts:
            said = await _inspect(network, hosts)
        case (("record" | "replay") as action, name):
            said = {"text/plain": f"Cassette: {(await network.play(action, name)).cassette}."}
        case ("log", *number) if len(number) < 2 and all(map(_NUMBER.fullmatch, number)):
            said = _log(await network.connections(), int(number[0]) if number else _LOG)
        case ("mode", ("filtered" | "isolated" | "record-only") as mode):
            said = await _set_mode(network, mode)
        case ("off",):
            said = await _set_mode(network, "isolated")
        case ("live",):
            await network.play("off")
            said = {"text/plain": "Hosts are asked, and nothing is recorded."}
        case _:
            raise call.wrong(_VALID)
    return said


async def _change(network: NotebookNetwork, allow: Sequence[str] = (), deny: Sequence[str] = ()) -> Mapping[str, str]:
    info = await network.amend(allow, deny)
    lines = [f"{'Allowed' if allow else 'Denied'}: {', '.join(show.plain(host) for host in (*allow, *deny))}."]
    if info.mode != "filtered":
        lines.append(f"The mode is {info.mode} ({_MEANINGS[info.mode]}); %net mode filtered changes that.")
    elsewhere = [rule for rule in info.rules if rule.verdict == "deny" and rule.source == "configuration"]
    if allow and elsewhere:
        lines.append(f"What the configuration denies stays denied: {_listed(elsewhere)}.")
    return {"text/plain": "\n".join(lines)}


async def _inspect(network: NotebookNetwork, hosts: Sequence[str]) -> Mapping[str, str]:
    own = network.wanted
    info = await network.change(own.model_copy(update={"inspect": tuple(dict.fromkeys([*own.inspect, *hosts]))}))
    return {"text/plain": f"Inspected: {_listed([rule for rule in info.rules if rule.inspect]) or 'none is allowed'}."}


async def _set_mode(network: NotebookNetwork, mode: NetworkMode) -> Mapping[str, str]:
    info = await network.change(network.wanted.model_copy(update={"mode": mode}))
    return {"text/plain": f"Mode {info.mode}: {_MEANINGS[info.mode]}."}


def _status(info: NetworkInfo) -> list[tuple[str, str]]:
    def of(source: str, verdict: str) -> str:
        return _listed([rule for rule in info.rules if (rule.source, rule.verdict) == (source, verdict)])

    shipped = sum(rule.source == "default" for rule in info.rules)
    rows = [
        ("mode", f"{info.mode}: {_MEANINGS[info.mode]}" + (" (the profile's)" if info.profile == "none" else "")),
        ("carried", "yes" if info.connected else "no: the VM's tunnel is not up"),
        ("allowed by %net", of("session", "allow")),
        ("denied by %net", of("session", "deny")),
        ("allowed by the configuration", of("configuration", "allow")),
        ("denied by the configuration", of("configuration", "deny")),
        ("allowed besides", f"{shipped} hosts that ship with AgentVM: registries, code hosts, model APIs"),
        ("inspected", _listed([rule for rule in info.rules if rule.inspect])),
        ("cassette", info.cassette),
        ("connections", f"{info.open} open (at most {info.max_connections}), {info.allowed} allowed in all,"
         f" {info.refused} refused, {info.failed} failed"),
        ("sent, received", f"{show.size(info.bytes_sent)}, {show.size(info.bytes_received)}"
         + ("" if info.max_bytes is None else f" of {show.size(info.max_bytes)} together")),
        ("network card", info.card and f"{info.card}: any public address may be reached, names are not checked"),
        ("cells may change this", "yes" if info.directives else "no: directives = false in [network]"),
    ]  # fmt: skip
    return [row for row in rows if row[1] not in {"", "0 hosts"} and not (row[0] == "allowed besides" and not shipped)]


def _listed(rules: Sequence[RuleInfo]) -> str:
    return ", ".join(show.plain(rule.pattern, 300) for rule in rules)


def _log(connections: Sequence[Connection], most: int) -> Mapping[str, str]:
    if not connections:
        return {"text/plain": "Nothing was asked for yet."}
    return show.table(_HEAD, [_row(one) for one in connections[-most:]])


def _row(one: Connection) -> tuple[str, ...]:
    host = show.plain(one.name or one.address, 253)
    return (
        time.strftime("%H:%M:%S", time.localtime(one.time)), show.plain(one.cell, 30), host, str(one.port),
        one.verdict if one.count == 1 else f"{one.verdict} ({one.count} times)",
        show.size(one.bytes_sent), show.size(one.bytes_received),
        "open" if one.duration is None else f"{one.duration:.2f} s",
        f"{one.protocol} {one.tls_version}".strip(), show.plain(one.reason, _WHY),
    )  # fmt: skip
