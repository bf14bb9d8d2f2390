"""What sessions tell the supervisor of what ran in their VMs, for its audit log."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field

from agentvm_kernel.firewall.reasons import Reason
from agentvm_kernel.supervisor.messages import Message

MAX_CODE: Final = 8192
MAX_PATH: Final = 1024
_MAX_BLOCKED: Final = 1 << 31

MEASURED: Final = ("cpu_seconds", "memory_grown", "network_sent", "network_received")
"""What is told of what an execution cost."""

_Bytes = Annotated[int, Field(ge=0)]

Outcome = Literal["completed", "failed", "timeout"]
Happened = Literal["started", "going on", "shown"] | Outcome


class Execution(Message):
    """One thing that happened to one execution.

    Attributes:
        happened: It began, ended in some way, has shown all that it shows, or there is only something to add.
        kind: A cell, or a program.
        vm: The VM that it runs in; empty for the lease's own.
        run: Number of the run within the session.
        fork: Number of the fork that it runs in; 0 for the session's VM.
        digest: SHA-256 of what runs; see `digest_of`.
        code: Its beginning, if the audit log is to have it.
        allow: Hosts that only it may reach.
        cell: Id of the notebook's cell, if it is known.
        seconds: How long it took, by the host's clock.
        cpu_seconds: CPU time that it took, as measured on the host; ``None`` where it was not.
        memory_grown: By how many bytes the VM's memory has grown, likewise.
        network_sent: Bytes that were sent, likewise.
        network_received: Bytes that were received, likewise.
        count: The execution count that the guest gave.
        reason: Why it ended so, as the host knows it.
        error: The exception's name, as the guest says.
        limits: Limits that it exceeded, by the names in ``Limits``.
        outputs: Digest of what it has shown, see `agentvm_kernel.observe.outputs`.
        blocked: How much of its output was not let through since the last report, by reason.
    """

    happened: Happened
    kind: Literal["cell", "program"] = "cell"
    vm: str = Field(default="", max_length=64)
    run: int = Field(default=0, ge=0)
    fork: int = Field(default=0, ge=0)
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    code: str = Field(default="", max_length=MAX_CODE)
    allow: Annotated[tuple[Annotated[str, Field(max_length=300)], ...], Field(max_length=256)] = ()
    cell: str = Field(default="", max_length=64)
    seconds: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    cpu_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    memory_grown: _Bytes | None = None
    network_sent: _Bytes | None = None
    network_received: _Bytes | None = None
    count: int | None = Field(default=None, ge=0)
    reason: str = Field(default="", max_length=500)
    error: str = Field(default="", max_length=500)
    limits: Annotated[tuple[Literal["output_mib", "cell_deadline"], ...], Field(max_length=2)] = ()
    outputs: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    blocked: dict[Reason, Annotated[int, Field(ge=1, lt=_MAX_BLOCKED)]] = Field(default_factory=dict)


class Copied(Message):
    """A file or a folder was copied.

    Attributes:
        happened: Always this.
        way: Into the VM, or out of it.
        vm: The VM; empty for the lease's own.
        path: What was copied, as it was named.
        digest: See `agentvm_kernel.run.files.Sent`.
        size: Bytes of content.
        run: Number of the run that did it; 0 where it was none.
    """

    happened: Literal["copied"] = "copied"
    way: Literal["push", "pull"]
    vm: str = Field(default="", max_length=64)
    path: str = Field(default="", max_length=MAX_PATH)
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: _Bytes = 0
    run: int = Field(default=0, ge=0)


Report = Execution | Copied
"""What a session tells."""


@lru_cache(maxsize=8)
def digest_of(code: str) -> str:
    """Return the digest by which the audit log calls a cell; remembered from its beginning to its reply."""
    return hashlib.sha256(code.encode(errors="surrogatepass")).hexdigest()


def digest_of_file(path: Path) -> str:
    """Return the digest of a program's file.

    Args:
        path: The file.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
