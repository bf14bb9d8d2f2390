"""Which host magics a notebook may call while it is reproduced: nothing that changes the host, or lets more out.

A notebook from anywhere names them, so that what is not permitted here is refused. This is in force in the kernel
process, which alone decides what is a magic.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from agentvm_kernel.errors import AgentVMError
from agentvm_kernel.kernel.chronicle import Chronicle
from agentvm_kernel.kernel.directive import DirectiveError, allowed_hosts, is_directed
from agentvm_kernel.kernel.host import Host
from agentvm_kernel.kernel.hostcomms import HostComms
from agentvm_kernel.kernel.machine import Machine
from agentvm_kernel.kernel.magic import Magic
from agentvm_kernel.magics import limits, net, transfer
from agentvm_kernel.magics.call import Call
from agentvm_kernel.magics.registry import BoundMagic, Registry
from agentvm_kernel.profiles import Sizes
from agentvm_kernel.reproduce.error import ReproduceError
from agentvm_kernel.reproduce.terms import may_be
from agentvm_kernel.run.files import Bounds, get, put
from agentvm_kernel.supervisor.messages import NetworkMode

VARIABLE: Final = "AGENTVM_REPRODUCE"
_MOST_PULLS: Final = 1000
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_REMEDY: Final = "--allow HOST allows a host, --allow-recorded those that were allowed."
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._ -]")

_SHOWS: Final[dict[str, Callable[[tuple[str, ...]], bool]]] = {
    "vm": lambda words: not words or words[0] in {"status", "guest", "security", "restart"},
    "limits": lambda words: not words,
    "monitor": lambda _: True,
    "audit": lambda _: True,
    "snapshot": lambda _: True,
    "snapshots": lambda _: True,
    "rollback": lambda _: True,
    "timetravel": lambda _: True,
    "undo": lambda _: True,
    "%fork": lambda _: True,
    "adopt": lambda _: True,
}


class Permits(BaseModel):
    """What a notebook may do, as the command that reproduces it says.

    Attributes:
        files: The folder that what it copies out goes to.
        inputs: What it may copy in, by the name by which it calls it.
        allow: Hosts that it may reach besides those that are configured.
        size: How much it may copy out in all, bytes.
        limits: Words for `%limits` that lower the profile's to the recorded ones.
        mode: The most open mode of the network that it may ask for.
        sizes: How large its machine is, where that is less than the profile gives.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: Path
    inputs: dict[str, Path] = {}
    allow: tuple[Annotated[str, Field(max_length=300)], ...] = ()
    size: int = Field(default=4 << 30, ge=0)
    limits: tuple[Annotated[str, Field(pattern=r"^[a-z_]+=[0-9a-zA-Z.]+$")], ...] = ()
    mode: NetworkMode = "isolated"
    sizes: Sizes = Sizes()


class RefusedError(ReproduceError):
    """A notebook calls a magic that is not carried out here."""

    code = "refused"


class Refusal:
    """Stands in a magic's place, and refuses.

    Args:
        message: What is refused.
        hint: How it can be allowed.
    """

    at_once = discards = ends_waiting = False

    def __init__(self, message: str, hint: str = "") -> None:
        self._error = RefusedError(message, hint)

    async def run(self, host: Host) -> Mapping[str, object]:
        """Refuse.

        Raises:
            RefusedError: always.
        """
        raise self._error


class PermittedMagics:
    """Recognises all host magics, and carries out those that are permitted.

    Args:
        permits: What is.
    """

    def __init__(self, permits: Permits) -> None:
        self._permits = permits
        self._registry = Registry()
        self._files = _Files(permits)

    def find(self, code: str) -> Magic | None:
        """Return the magic that a cell calls, or what refuses it; None for a cell that is the guest's."""
        bound = self._registry.find(code)
        if bound is not None:
            return self._permitted(bound)
        return self._directed(code) if is_directed(code) else None

    def revive(self, notebook: Path, machine: Machine, chronicle: Chronicle, comms: HostComms) -> None:
        """Do nothing: nothing of an earlier process is shown."""

    def _directed(self, code: str) -> Magic | None:
        try:
            hosts = allowed_hosts(code)
        except DirectiveError:
            return None  # the cell is refused for it where it is run
        others = [host for host in hosts if host not in self._permits.allow]
        return _refused(f"# net: allow {' '.join(others)}", _REMEDY) if others else None

    def _permitted(self, bound: BoundMagic) -> Magic:
        call = bound.call
        if call.help:
            return bound
        if call.name == "net":
            return self._net(bound)
        if call.name in {"push", "pull"}:
            return BoundMagic(call, self._files)
        if call.name == "limits" and call.words:
            return BoundMagic(call, _Lowering(self._permits))
        shows = _SHOWS.get(call.name)
        return bound if shows and shows(call.words) else _refused(_said(call))

    def _net(self, bound: BoundMagic) -> Magic:
        match bound.call.words:
            case () | ("status" | "log" | "deny" | "inspect" | "off" | "live", *_):
                return bound
            case ("mode", mode) if may_be(mode, self._permits.mode):
                return bound
            case (("record" | "replay"), name) if _NAME.fullmatch(name):
                if Path(f"{name}.cassette.jsonl").is_file():
                    return BoundMagic(Call("net", ("replay", name), help=False, alone=bound.call.alone), net)
                return _refused(_said(bound.call), f"There is no {name}.cassette.jsonl beside the notebook.")
            case ("allow", *hosts) if set(hosts) <= set(self._permits.allow):
                return bound
            case _:
                return _refused(_said(bound.call), _REMEDY)


class _Lowering:
    """`%limits` as far as the profile gives what is asked for.

    Args:
        permits: What is permitted.
    """

    HELP = limits.HELP

    def __init__(self, permits: Permits) -> None:
        self._permits = permits

    async def run(self, call: Call, host: Host) -> Mapping[str, object]:
        """Carry out a call.

        Raises:
            RefusedError: the profile gives less.
        """
        given = host.machine.limits.given.model_dump()
        if call.words == ("reset",):
            # To what holds at the beginning, not to more.
            words = (*self._permits.limits,)
            shown = await limits.run(call, host)
            return await limits.run(replace(call, words=words), host) if words else shown
        for word in call.words:
            name, value = limits.change(call, word, host.machine)
            if given[name] is not None and (value is None or value > given[name]):
                raise RefusedError(f"{_said(call)} is not carried out: the profile here gives less.")
        return await limits.run(call, host)


class _Files:
    """`%push` of what was named on the command line, and `%pull` into the folder of the results.

    Args:
        permits: What is permitted.
    """

    HELP = "%push LOCAL [REMOTE], %pull REMOTE [LOCAL]: see %push? and %pull? in a notebook."

    def __init__(self, permits: Permits) -> None:
        self._permits = permits
        self._left = permits.size
        self._pulls = 0

    async def run(self, call: Call, host: Host) -> Mapping[str, object]:
        """Carry out a call."""
        return await (self._push if call.name == "push" else self._pull)(call, host)

    async def _push(self, call: Call, host: Host) -> Mapping[str, object]:
        read = call.read("%push LOCAL [REMOTE] [--into] [--limit SIZE]", most=2, flags=("--into",), texts=("--limit",))
        local = self._permits.inputs.get(read.words[0]) if read.words else None
        if local is None:
            raise RefusedError(f"{_said(call)} is not carried out.", "--input NAME=PATH lets it have a file.")
        named = Path(read.words[0])
        remote = read.words[1] if len(read.words) > 1 else named.name
        sent = await put(host.machine, local, remote, bounds=transfer.bounds(read.texts), into="--into" in read.flags)
        host.note_copy("push", read.words[0], sent.digest, sent.size)
        return {"text/plain": f"{named} is in the VM as {sent.path}: {transfer.said(sent, local.is_dir())}."}

    async def _pull(self, call: Call, host: Host) -> Mapping[str, object]:
        read = call.read("%pull REMOTE [LOCAL] [--limit SIZE]", most=2, texts=("--limit",))
        if not read.words:
            raise call.wrong("%pull REMOTE [LOCAL] [--limit SIZE]")
        if self._pulls >= _MOST_PULLS:
            raise RefusedError(f"More than {_MOST_PULLS} files or folders are not copied out.")
        self._pulls += 1
        remote, named = read.words[0], Path((*read.words[1:], PurePosixPath(read.words[0]).name)[0])
        folder = self._permits.files / str(self._pulls)
        folder.mkdir(parents=True)
        local = folder / (_UNSAFE.sub("_", named.name)[-200:].lstrip(".") or "file")
        asked = transfer.bounds(read.texts)
        try:
            received = await get(host.machine, remote, local, Bounds(min(asked.size, self._left), asked.count))
        except AgentVMError:
            shutil.rmtree(folder)
            raise
        self._left -= received.size
        host.note_copy("pull", remote, received.digest, received.size)
        lines = [f"{remote} is here as {named}: {transfer.said(received, local.is_dir())}."]
        return {"text/plain": "\n".join([*lines, *transfer.left_out(received.left_out, received.left_out_count)])}


def _refused(what: str, hint: str = "") -> Refusal:
    return Refusal(f"{what} is not carried out when a notebook is reproduced.", hint)


def _said(call: Call) -> str:
    text = " ".join([f"%{call.name}", *call.words])
    return "".join(one if one.isprintable() else "?" for one in text[:80])
