"""Rules about what is unusual in a VM: what they may say, the ones that ship with this package, the user's own."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from agentvm_kernel.validation import Problem, problems

Kind = Literal["above", "sum", "distinct", "regular", "deviation"]
Level = Literal["cpu_percent", "unattended_cpu_percent", "mining_cpu_percent", "memory", "connections"]
Amount = Literal[
    "network_sent", "network_received", "network_outflow", "disk_written", "disk_growth", "allowed", "refused",
    "mining_names", "output", "claimed_processes",
]  # fmt: skip
Targets = Literal["refused_targets", "targets"]
Metric = Literal[Level, Amount, Targets]
Severity = Literal["info", "warning", "critical"]
Action = Literal["audit", "note", "slow", "pause", "kill"]

RuleName = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,64}$")]
_Positive = Annotated[float, Field(gt=0, le=1e15, allow_inf_nan=False)]
_Seconds = Annotated[float, Field(ge=1, le=86_400, allow_inf_nan=False)]
_Text = Annotated[str, Field(min_length=1, max_length=300)]

_METRICS: Final[dict[Kind, frozenset[str]]] = {
    "above": frozenset(get_args(Level)),
    "sum": frozenset(get_args(Amount)),
    "distinct": frozenset(get_args(Targets)),
    "regular": frozenset(get_args(Targets)),
    "deviation": frozenset((*get_args(Level), *get_args(Amount))),
}
CLAIMED: Final = frozenset({"claimed_processes"})
"""Metrics that only the guest tells."""


class RuleChange(BaseModel):
    """A rule of the user's own, or what is different of one that ships with this package.

    Attributes:
        enabled: Whether it is looked at.
        kind: How: ``above`` (for nine tenths of the window), ``sum`` (within the window), ``distinct`` (hosts and ports
            within the window), ``regular`` (connections to one host at regular intervals) or ``deviation`` (from what
            is usual in this VM).
        metric: What is looked at; see docs/anomalies.md.
        threshold: What is too much, in the metric's unit; for ``deviation`` in standard deviations, for ``regular`` the
            coefficient of variation of the intervals that is too little.
        window: Seconds.
        severity: How bad it is, which decides what is done.
        description: What it means, in a few words.
        least: For ``deviation`` how many samples it takes to know what is usual, for ``regular`` how many intervals.
        floor: For ``deviation`` the standard deviation that is assumed at least, for ``regular`` the shortest interval,
            seconds.
        half_life: For ``deviation`` the seconds after which what was counts half.
        calm: Seconds without it after which it is over, and would be told again.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = True
    kind: Kind | None = None
    metric: Metric | None = None
    threshold: _Positive | None = None
    window: _Seconds | None = None
    severity: Severity | None = None
    description: _Text | None = None
    least: int | None = Field(default=None, ge=3, le=10_000)
    floor: float | None = Field(default=None, ge=0, le=1e15)
    half_life: _Seconds | None = None
    calm: _Seconds | None = None


class Rule(BaseModel):
    """A rule, complete; see `RuleChange`.

    Attributes:
        name: Its name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: RuleName
    enabled: bool = True
    kind: Kind
    metric: Metric
    threshold: _Positive
    window: _Seconds
    severity: Severity
    description: _Text
    least: int = Field(default=8, ge=3, le=10_000)
    floor: float = Field(default=1, ge=0, le=1e15)
    half_life: _Seconds = 120
    calm: _Seconds = 60

    @field_validator("metric")
    @classmethod
    def _of_its_kind(cls, value: str, info: ValidationInfo) -> str:
        """Take only metrics that a rule of this kind can look at."""
        known = _METRICS.get(info.data.get("kind", ""))
        if known is not None and value not in known:
            raise ValueError(f"a rule of kind {info.data['kind']} looks at one of {', '.join(sorted(known))}")
        return value

    @property
    def is_claimed(self) -> bool:
        """Whether it rests on what the guest says of itself."""
        return self.metric in CLAIMED


class AnomalySettings(BaseModel):
    """What is unusual in a VM, and what is done then; see docs/anomalies.md.

    Attributes:
        enabled: Whether anything is looked at.
        info: What is done where something is of note: ``audit`` (it is written down, as always), ``note`` (the notebook
            is told), ``slow`` (the VM gets little CPU), ``pause`` (it is kept as a snapshot and stopped) or ``kill``.
        warning: What is done where something is suspicious.
        critical: What is done where something is most likely an attack.
        slow_cpu: Share of a core that a VM gets that is slowed down.
        mining_names: Parts of hosts' names that stand for the mining of crypto-currencies.
        usual_ports: Ports of which a long connection is not remarkable.
        rules: The user's own rules, and changes to those that ship with this package, by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = True
    info: Action = "audit"
    warning: Action = "note"
    critical: Action = "note"
    slow_cpu: float = Field(default=0.1, ge=0.05, le=1024)
    mining_names: tuple[Annotated[str, Field(min_length=3, max_length=64)], ...] = (
        "xmr", "monero", "stratum", "minexmr", "supportxmr", "nicehash", "nanopool", "ethermine", "f2pool", "2miners",
        "hashvault", "miningpool", "minergate", "cryptonight", "randomx",
    )  # fmt: skip
    usual_ports: tuple[Annotated[int, Field(ge=1, le=65535)], ...] = (22, 53, 80, 443, 853, 8080, 8443, 9418)
    rules: dict[RuleName, RuleChange] = {}

    def action(self, severity: Severity) -> Action:
        """Return what is done."""
        return {"info": self.info, "warning": self.warning, "critical": self.critical}[severity]

    def effective(self) -> tuple[Rule, ...]:
        """Return the rules that are looked at.

        Raises:
            ValidationError: one is not complete; ``incomplete`` has told of it.
        """
        if not self.enabled:
            return ()
        merged = (Rule.model_validate(values) for values in self._merged().values())
        return tuple(rule for rule in merged if rule.enabled)

    def incomplete(self) -> list[Problem]:
        """Return what is wrong with rules once they are put over those that ship with this package."""
        found = []
        merged = self._merged() if self.rules else {}
        for name in self.rules:
            values = merged[name]
            try:
                Rule.model_validate(values)
            except ValidationError as error:
                path = ("anomalies", "rules", name)
                found += [Problem((*path, *one.path), f"{'.'.join(path)}.{one.text}") for one in problems(error, Rule)]
        return found

    def _merged(self) -> dict[str, dict[str, Any]]:
        merged = {rule.name: rule.model_dump() for rule in shipped()}
        for name, change in self.rules.items():
            own = change.model_dump(exclude_unset=True, exclude_none=True)
            merged[name] = {"name": name} | merged.get(name, {}) | own
        return merged


@cache
def shipped() -> tuple[Rule, ...]:
    """Return the rules that ship with this package."""
    text = (files("agentvm_kernel.observe") / "anomalies.toml").read_text()
    return tuple(Rule(name=name, **values) for name, values in tomllib.loads(text)["rules"].items())
