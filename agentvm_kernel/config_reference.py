"""All that can be configured, as Markdown, from the models themselves."""

from __future__ import annotations

import inspect
import json
import re
from typing import Final

from pydantic import BaseModel

from agentvm_kernel.anomalies import AnomalySettings, RuleChange, shipped
from agentvm_kernel.profiles import PROFILES, Profile
from agentvm_kernel.settings import (
    Audit,
    Files,
    MetricsSettings,
    Network,
    Notebook,
    Output,
    Pool,
    Settings,
    SnapshotSettings,
)
from agentvm_kernel.validation import field, valid

_SECTIONS: Final[tuple[tuple[str, type[BaseModel]], ...]] = (
    ("", Settings),
    ("pool", Pool),
    ("snapshots", SnapshotSettings),
    ("network", Network),
    ("output", Output),
    ("notebook", Notebook),
    ("files", Files),
    ("audit", Audit),
    ("metrics", MetricsSettings),
    ("anomalies", AnomalySettings),
    ("anomalies.rules.NAME", RuleChange),
    ("profiles.NAME", Profile),
)
_TABLES: Final = frozenset(
    {
        "pool",
        "snapshots",
        "network",
        "output",
        "notebook",
        "files",
        "audit",
        "metrics",
        "anomalies",
        "rules",
        "profiles",
    }
)
_ENTRY: Final = re.compile(r"^    (\w+): (.*(?:\n {8}.*)*)", re.MULTILINE)


def reference() -> str:
    """Return the tables: every setting, what is valid, its default, what it means; built-in rules and profiles."""
    parts = [_table(name, model) for name, model in _SECTIONS]
    return "\n\n".join([*parts, _rules(), _profiles()]) + "\n"


def _table(name: str, model: type[BaseModel]) -> str:
    schema, meanings = model.model_json_schema(), _meanings(model)
    title = f"### `[{name}]`" if name else "### Beside the tables"
    lines = [title, "", "| key | valid | default | meaning |", "| --- | --- | --- | --- |"]
    for key, about in model.model_fields.items():
        if key in _TABLES:
            continue
        words = valid(field(schema, (key,))).replace("|", "\\|")
        default = "must be given" if about.is_required() else _shown(about.default)
        lines.append(f"| `{key}` | {words} | {default} | {meanings[key]} |")
    return "\n".join(lines)


def _rules() -> str:
    lines = [
        "### Built-in rules about anomalies", "",
        "| rule | severity | kind | metric | threshold | window | what it means |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for rule in shipped():
        values = (rule.severity, rule.kind, f"`{rule.metric}`", f"{rule.threshold:g}", f"{rule.window:g} s")
        lines.append(f"| {rule.name} | {' | '.join(values)} | {rule.description} |")
    return "\n".join(lines)


def _profiles() -> str:
    keys = [key for key in Profile.model_fields if len({getattr(one, key) for one in PROFILES.values()}) > 1]
    lines = [
        "### Built-in profiles", "",
        f"| profile | {' | '.join(f'`{key}`' for key in keys)} |", f"| --- |{' --- |' * len(keys)}",
    ]  # fmt: skip
    for name, profile in PROFILES.items():
        lines.append(f"| {name} | {' | '.join(_shown(getattr(profile, key)) for key in keys)} |")
    return "\n".join(lines)


def _shown(value: object) -> str:
    return "none" if value is None else f"`{json.dumps(value)}`"


def _meanings(model: type[BaseModel]) -> dict[str, str]:
    """Return what the docstrings of a model and of what it inherits from say of its fields."""
    found: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        _, _, attributes = (inspect.cleandoc(cls.__doc__ or "")).partition("Attributes:\n")
        found |= {name: " ".join(text.split()).replace("``", "`") for name, text in _ENTRY.findall(attributes)}
    return found
