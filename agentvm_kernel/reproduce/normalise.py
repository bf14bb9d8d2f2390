"""Normalisers: named rules that take out of texts what differs from run to run by nature.

Patterns are RE2's, whose time grows with the text alone: neither a notebook nor a pattern can make one hang.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final

import re2
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agentvm_kernel.report.document import read_bounded
from agentvm_kernel.reproduce.error import ReproduceError

MOST_TEXT: Final = 1 << 20
"""Characters of a text that is normalised; a longer one is compared as it is."""

_MOST_FILE: Final = 256 << 10


@dataclass(frozen=True)
class Normaliser:
    r"""A rule.

    Attributes:
        name: By which a verdict names it.
        pattern: What is replaced, as RE2 has it.
        replacement: By what; ``\1`` is the first group.
    """

    name: str
    pattern: str
    replacement: str

    def apply(self, text: str) -> str:
        """Return a text without what the rule takes out."""
        return str(_compiled(self.pattern).sub(self.replacement, text))


def _word(name: str, pattern: str, replacement: str) -> Normaliser:
    """Return a rule for what begins a word, or stands directly behind the escape sequence that gives it its colour."""
    return Normaliser(name, rf"(\b|\x1b\[[0-9;]*m){pattern}", rf"\g<1>{replacement}")


DEFAULTS: Final = (
    _word("memory-addresses", r"0x[0-9a-fA-F]{4,16}\b", "0xADDRESS"),
    _word("execution-counts", r"(In|Out) ?\[[0-9]+\]", r"\2[COUNT]"),
    _word("cell-files", r"ipykernel_[0-9]+/[0-9]+\.py", "ipykernel/CELL.py"),
    _word("machine-names", r"vm-[0-9a-f]{8}\b", "vm-NAME"),
    _word("uuids", r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", "UUID"),
    _word(
        "timestamps",
        r"[0-9]{4}-[01][0-9]-[0-3][0-9][T ][0-2][0-9]:[0-5][0-9](:[0-6][0-9](\.[0-9]+)?)?(Z|[+-][0-9]{2}:?[0-9]{2})?",
        "TIMESTAMP",
    ),
    _word("durations", r"[0-9]+(\.[0-9]+)? ?(ns|us|µs|μs|ms|s|sec|seconds|min|minutes)\b", "DURATION"),
)
"""What is tried on every text that differs; docs/reproduce.md lists them."""

OF_FORKS: Final = (
    *DEFAULTS,
    _word("sizes", r"[0-9]+(\.[0-9]+)? ?(B|kB|MB|GB|KiB|MiB|GiB)\b", "SIZE"),
    Normaliser("columns", r"[ \t]+", " "),
)
"""What is tried on the host's table of forks."""


def normalised(text: str, rules: Sequence[Normaliser]) -> str:
    """Return a text after all rules, in their order."""
    if len(text) > MOST_TEXT:
        return text
    for rule in rules:
        text = rule.apply(text)
    return text


def needed(first: str, second: str, rules: Sequence[Normaliser]) -> tuple[str, ...] | None:
    """Return the names of rules that make two texts alike; None if they are not alike even after all of them.

    Args:
        first: A text.
        second: Another.
        rules: What may be tried, in this order.
    """
    if first == second:
        return ()
    if len(first) > MOST_TEXT or len(second) > MOST_TEXT:
        return None
    used = []
    for rule in rules:
        after = rule.apply(first), rule.apply(second)
        if after != (first, second):
            used.append(rule.name)
        first, second = after
        if first == second:
            return tuple(used)
    return None


class _Rule(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,64}$")]
    pattern: Annotated[str, Field(min_length=1, max_length=1000)]
    replacement: Annotated[str, Field(max_length=64)] = ""


class _Rules(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    normaliser: Annotated[tuple[_Rule, ...], Field(max_length=50)] = ()


def read_normalisers(path: Path) -> tuple[Normaliser, ...]:
    """Read normalisers from a TOML file.

    Args:
        path: The file; each rule is a table ``[[normaliser]]`` with name, pattern and replacement.

    Raises:
        ReportError: the file cannot be read.
        ReproduceError: it is no such file, or a pattern is none.
    """
    hint = "Valid is [[normaliser]] with name, pattern (as RE2 has it) and replacement; docs/reproduce.md has examples."
    try:
        found: Any = tomllib.loads(read_bounded(path, _MOST_FILE).decode())
        rules = _Rules.model_validate(found).normaliser
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ValidationError, RecursionError) as error:
        raise ReproduceError(f"{path} has no normalisers: {str(error).splitlines()[0]:.200}.", hint) from error
    made = tuple(Normaliser(rule.name, rule.pattern, rule.replacement) for rule in rules)
    for rule in made:
        try:
            rule.apply("")
            _compiled(rule.pattern).fullmatch("")
            _check_groups(rule)
        except (re2.error, ValueError, IndexError) as error:
            said = error.args[0] if error.args else error
            text = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
            raise ReproduceError(f"The pattern of {rule.name} in {path} is none: {text!a:.200}.", hint) from error
    return made


def _check_groups(rule: Normaliser) -> None:
    """Raise `ValueError` if a replacement names a group that its pattern has not."""
    groups = _compiled(rule.pattern).groups
    digits = [int(part[0]) for part in rule.replacement.split("\\")[1:] if part[:1].isdigit()]
    if any(digit > groups for digit in digits):
        raise ValueError(f"its replacement names group {max(digits)}, and it has {groups}")


@cache
def _compiled(pattern: str) -> Any:
    options = re2.Options()
    options.log_errors = False
    return re2.compile(pattern, options)
