"""What pages are answered: a part of what the supervisor and the kernels say, in a form that pages can rely on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict

from agentvm_kernel.egress.record import Connection
from agentvm_kernel.profiles import Limits
from agentvm_kernel.supervisor.network_messages import NetworkInfo
from agentvm_kernel.supervisor.operator_messages import Held
from agentvm_kernel.supervisor.snapshot_messages import RollbackPlan, SnapshotInfo
from agentvm_kernel.supervisor.stats_messages import VMStats

MOST_TEXT: Final = 10_000


class View(BaseModel):
    """Base: immutable."""

    model_config = ConfigDict(frozen=True)


class Failure(View):
    """Why something was not done.

    Attributes:
        code: Which error it is, for programs.
        message: What happened.
        hint: The remedy; empty if there is none.
    """

    code: str
    message: str
    hint: str = ""


class Done(View):
    """What came of something that was typed into a kernel.

    Attributes:
        status: Whether it was carried out.
        text: What the magic showed, as plain text.
        error: Why it was not.
        snapshot: Id of the snapshot that the VM descends from now; empty for the image's own.
        outputs: What the magic showed, as a notebook keeps it. Nothing that the guest showed meanwhile is among it.
    """

    status: Literal["ok", "error"]
    text: str = ""
    error: Failure | None = None
    snapshot: str = ""
    outputs: tuple[dict[str, Any], ...] = ()


class Finding(View):
    """What the examination of the host found lacking.

    Attributes:
        title: What was looked at.
        ok: A notebook can run nevertheless.
        detail: What was found.
        remedy: What to do about it.
    """

    title: str
    ok: bool
    detail: str
    remedy: str


class Host(View):
    """The host under all notebooks.

    Attributes:
        version: Version of this package.
        supervisor: Whether the supervisor runs.
        accelerator: ``kvm`` or ``tcg``; empty if no supervisor says so.
        findings: What the examination found lacking, if one was asked for.
    """

    version: str
    supervisor: Literal["running", "absent"]
    accelerator: Literal["kvm", "tcg", ""] = ""
    findings: tuple[Finding, ...] = ()


class Stats(View):
    """What a VM uses, as measured on the host; the units are those of ``VMStats``."""

    time: float
    cpu_percent: float
    memory: int
    memory_cost: int
    disk_read: int
    disk_written: int
    network_sent: int
    network_received: int
    connections: int
    executing: bool

    @classmethod
    def of(cls, stats: VMStats) -> Stats:
        """Return what pages are told of a measurement.

        Args:
            stats: As the supervisor tells it.
        """
        own = {name: getattr(stats, name) for name in cls.model_fields if name not in {"memory", "memory_cost"}}
        return cls(**own, memory=stats.memory_private, memory_cost=stats.memory)


class Network(View):
    """What a VM may reach.

    Attributes:
        mode: The mode.
        allow: What the session and the configuration allow.
        deny: What they refuse.
        shipped: How many hosts are allowed besides, because this package ships with them.
        allowed: Connections that were let through so far.
        refused: Connections that were refused.
    """

    mode: str
    allow: tuple[str, ...]
    deny: tuple[str, ...]
    shipped: int
    allowed: int
    refused: int

    @classmethod
    def of(cls, info: NetworkInfo) -> Network:
        """Return what pages are told of a policy.

        Args:
            info: As the supervisor tells it.
        """
        own = [rule for rule in info.rules if rule.source != "default"]
        return cls(
            mode=info.mode, allow=tuple(rule.pattern for rule in own if rule.verdict == "allow"),
            deny=tuple(rule.pattern for rule in own if rule.verdict == "deny"),
            shipped=len(info.rules) - len(own), allowed=info.allowed, refused=info.refused,
        )  # fmt: skip


MachineState = Literal["running", "starting", "restarting", "none", "foreign", "ended"]


class Machine(View):
    """The VM under a notebook; all but the state is only there while it runs.

    Attributes:
        state: ``none``: no supervisor runs, so there is none. ``foreign``: the kernel is not AgentVM's. ``restarting``:
            the kernel's process has ended, and another one comes.
        text: Why, and what to do about it.
        vm: The VM's id.
        profile: Name of its profile.
        image: Flavour of its image.
        digest: Digest of its image.
        accelerator: ``kvm`` or ``tcg``.
        age: Seconds since it was made.
        vcpus: Virtual CPUs.
        memory_mib: Guest memory, MiB.
        disk_gb: Guest disk, GB.
        executing: A cell runs in it.
        snapshot: Id of the snapshot that it descends from; empty for the image's own.
        travelling: A snapshot is taken after every cell; ``None`` if that is not known.
        held: It was slowed down or stopped because of an anomaly.
        network: What it may reach.
        limits: What holds for what runs in it, by the names in ``Limits``.
        blocked: How much of its output was not let through.
        anomalies: How many anomalies there were that are more than of note.
        stats: What it used when it was measured last.
    """

    state: MachineState
    text: str = ""
    vm: str = ""
    profile: str = ""
    image: str = ""
    digest: str = ""
    accelerator: Literal["kvm", "tcg", ""] = ""
    age: float = 0.0
    vcpus: int = 0
    memory_mib: int = 0
    disk_gb: int = 0
    executing: bool = False
    snapshot: str = ""
    travelling: bool | None = None
    held: Held = ""
    network: Network | None = None
    limits: Limits | None = None
    blocked: int = 0
    anomalies: int = 0
    stats: Stats | None = None


class Provenance(View):
    """In what a notebook's cells run.

    Attributes:
        kept: What the notebook keeps of it; see `run.provenance.of_notebook`.
    """

    kept: dict[str, Any]


class Freed(View):
    """Bytes that the removal of a snapshot gave."""

    freed: int


class Plan(View):
    """What a rollback would do; see ``RollbackPlan``.

    Attributes:
        lost: The beginnings of the cells that would be lost, as far as snapshots tell them, the latest first.
    """

    target: SnapshotInfo
    left: tuple[SnapshotInfo, ...]
    seconds: float
    written: int
    connections: tuple[Connection, ...]
    connection_count: int
    lost: tuple[str, ...]

    @classmethod
    def of(cls, plan: RollbackPlan) -> Plan:
        """Return what pages are told of a plan.

        Args:
            plan: As the supervisor tells it.
        """
        lost = dict.fromkeys(one.cell.code for one in plan.left if one.cell.code and one.cell != plan.target.cell)
        own = {name: getattr(plan, name) for name in RollbackPlan.model_fields}
        return cls(**own, lost=tuple(lost))


class Connections(View):
    """Connections of a notebook's VMs, newest last."""

    connections: tuple[Connection, ...]


class BlockedOutput(View):
    """Output that was not let through.

    Attributes:
        time: When that was written down, seconds since 1970.
        reason: Why, for programs.
        detail: Why, in a few words.
        count: How often.
        cell: Number of the run; 0 if it is not known.
    """

    time: float
    reason: str
    detail: str
    count: int
    cell: int


class Blocked(View):
    """Output of a VM that was not let through, oldest first."""

    blocked: tuple[BlockedOutput, ...]

    @property
    def count(self) -> int:
        """How much it is."""
        return count(self.blocked)


class Anomaly(View):
    """Something unusual that was seen in a VM.

    Attributes:
        time: When, seconds since 1970.
        vm: In which VM: the notebook's, one before it, or a fork.
        rule: Name of the rule.
        severity: How bad that is.
        text: What the VM did, as the rule says.
        about: What it is about, such as a host, as the guest named it.
        claimed: Only the guest says so.
        value: What was seen.
        threshold: From what on it is unusual.
        response: What is done.
        outcome: What came of that; empty if nothing is known of it.
        is_over: It was taken back.
    """

    time: float
    vm: str
    rule: str
    severity: str
    text: str
    about: str
    claimed: bool
    value: float
    threshold: float
    response: str
    outcome: str = ""
    is_over: bool = False


class Anomalies(View):
    """What was unusual in the VMs of a notebook's session, oldest first."""

    anomalies: tuple[Anomaly, ...]

    @property
    def count(self) -> int:
        """How many are more than of note."""
        return sum(one.severity != "info" for one in self.anomalies)


def count(blocked: Iterable[BlockedOutput]) -> int:
    """Return how much output that is.

    Args:
        blocked: What was blocked.
    """
    return sum(one.count for one in blocked)
