"""The record of a report as `agentvm reproduce` takes it: from anywhere, so that nothing in it is believed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agentvm_kernel.reproduce.error import ReproduceError

FORMAT: Final = 1
_MOST: Final = 20_000
_HOST: Final = re.compile(r"[a-zA-Z0-9.*_:,\[\]-]{1,300}", re.ASCII)
_RULES: Final = re.compile(r"[0-9]{1,6} rules, SHA-256 [0-9a-f]{64}", re.ASCII)

Digest = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
Short = Annotated[str, Field(max_length=300)]
Number = Annotated[int, Field(ge=0, lt=1 << 31)]
Packages = Annotated[dict[Annotated[str, Field(max_length=200)], Short], Field(max_length=_MOST)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class RecordedRun(_Part):
    """Something that ran.

    Attributes:
        run: Its number.
        fork: In which fork; 0 for the notebook's own VM.
        digest: Of its code.
        cell: Which of the notebook's code cells shows its outputs, from 0; None for none.
        outcome: How it ended.
        on_the_way: It lies behind the state at the end.
    """

    run: Number
    fork: Number = 0
    digest: Digest
    cell: Number | None = None
    outcome: Literal["completed", "failed", "timeout", ""] = ""
    on_the_way: bool = True


class RecordedSnapshot(_Part):
    """A snapshot; `run` is the last run before it."""

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{1,64}$")]
    label: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{0,64}$")] = ""
    kind: Literal["manual", "auto", "fork"] = "manual"
    run: Number = 0


class RecordedReturn(_Part):
    """A way back to a snapshot; `run` is the last run before it."""

    to: Short
    run: Number = 0


class RecordedForks(_Part):
    """Clones that were asked for; `run` is the last run before them."""

    run: Number = 0
    count: Number = 0
    seed: Annotated[str, Field(pattern=r"^([0-9a-f]{32})?$")] = ""


class RecordedCopy(_Part):
    """A file or folder that was copied; `run` is the run that did it, or the last before it.

    Attributes:
        way: Into the machine, or out of it.
        name: Its name.
        path: Where it was in the machine; only of what was copied out.
        sha256: Its digest.
    """

    run: Number = 0
    way: Literal["push", "pull"]
    name: Short = ""
    path: Short = ""
    sha256: Digest = ""


class RecordedSession(_Part):
    """What ran in one lease, and in what machine."""

    image: Digest = ""
    profile: Annotated[str, Field(max_length=64)] = ""
    accelerator: Annotated[str, Field(max_length=16)] = ""
    vcpus: Number = 0
    memory_mib: Number = 0
    disk_gb: Number = 0
    limits: Annotated[str, Field(max_length=4096)] = ""
    network: Annotated[str, Field(max_length=4096)] = ""
    runs: Annotated[tuple[RecordedRun, ...], Field(max_length=_MOST)] = ()
    snapshots: Annotated[tuple[RecordedSnapshot, ...], Field(max_length=_MOST)] = ()
    returns: Annotated[tuple[RecordedReturn, ...], Field(max_length=_MOST)] = ()
    forks: Annotated[tuple[RecordedForks, ...], Field(max_length=_MOST)] = ()
    copies: Annotated[tuple[RecordedCopy, ...], Field(max_length=_MOST)] = ()


class RecordedImage(_Part):
    """What an image was made of; packages by kind and name, with their versions."""

    flavour: Annotated[str, Field(pattern=r"^[a-z0-9-]{0,32}$")] = ""
    packages: Annotated[dict[Annotated[str, Field(max_length=64)], Packages], Field(max_length=4)] = {}


class Record(_Part):
    """The record."""

    format: Literal[1]
    sessions: Annotated[tuple[RecordedSession, ...], Field(max_length=200)] = ()
    images: Annotated[dict[Digest, RecordedImage], Field(max_length=200)] = {}


def read_record(values: Mapping[str, Any]) -> Record:
    """Return a record.

    Args:
        values: As JSON has it.

    Raises:
        ReproduceError: it says what no record says.
    """
    try:
        return Record.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ReproduceError(
            f"The record of the report cannot be used: {place!a:.80}: {first['msg']:.120}.",
            "Make the report again with this version of agentvm.",
        ) from error


@dataclass(frozen=True)
class RecordedNetwork:
    """What a machine could reach.

    Attributes:
        mode: The mode.
        allowed: Hosts that were allowed besides what ships.
        denied: Hosts that were refused.
        rules: How many rules there were, and their digest; empty if that is not recorded.
    """

    mode: str = ""
    allowed: tuple[str, ...] = ()
    denied: tuple[str, ...] = ()
    rules: str = ""


def network_of(session: RecordedSession | None) -> RecordedNetwork:
    """Return what a session's machine could reach, of what the supervisor has put into words."""
    if session is None:
        return RecordedNetwork()
    mode, *parts = session.network.split("; ")
    hosts: dict[str, list[str]] = {"allow": [], "deny": []}
    for verb, *named in (part.split(" ") for part in parts):
        if verb in hosts and len(named) == 1 and _HOST.fullmatch(named[0]):
            hosts[verb].append(named[0])
    return RecordedNetwork(mode, tuple(hosts["allow"]), tuple(hosts["deny"]), rules_of(session.network))


def rules_of(summary: str) -> str:
    """Return how many rules a policy has, and their digest, of what the supervisor has put into words."""
    return next((part for part in summary.split("; ") if _RULES.fullmatch(part)), "")


def as_object(text: str) -> dict[str, Any]:
    """Return what a record has as JSON within a text; nothing if it is no such object."""
    try:
        values = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def kept_session(kept: Mapping[str, Any]) -> RecordedSession | None:
    """Return what a notebook's own metadata say of the machine that it was run in; None if that makes no sense.

    Args:
        kept: What is under this project's key; anybody may have written it.
    """
    names = ("profile", "vcpus", "memory_mib", "disk_gb", "network")
    values = {name: kept[name] for name in names if name in kept}
    if isinstance(kept.get("limits"), dict):
        values["limits"] = json.dumps(kept["limits"])
    try:
        return RecordedSession.model_validate(values, strict=True) if values else None
    except ValidationError:
        return None
