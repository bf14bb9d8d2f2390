"""Compares what a cell shows with what it showed."""

from __future__ import annotations

import difflib
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from agentvm_kernel.reproduce import pictures
from agentvm_kernel.reproduce.normalise import DEFAULTS, MOST_TEXT, Normaliser, needed, normalised
from agentvm_kernel.reproduce.outputs import Part, chances, is_footer, parts_of
from agentvm_kernel.reproduce.pictures import PictureError, Tolerance, compare_pictures

_NUMBER: Final = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,4})?")
_DIFFED: Final = 300
_LINE: Final = 500
_SHOWN: Final = 400


@dataclass(frozen=True)
class Rules:
    """How outputs are compared.

    Attributes:
        normalisers: What is tried on texts that differ, in this order.
        relative: By what share numbers in texts may differ.
        absolute: By how much, whatever their size.
        pictures: How much pictures may differ.
    """

    normalisers: tuple[Normaliser, ...] = DEFAULTS
    relative: float = 0.0
    absolute: float = 0.0
    pictures: Tolerance = field(default_factory=Tolerance)


@dataclass(frozen=True)
class Comparison:
    """What came of it.

    Attributes:
        is_same: They are alike.
        by: What made them so, where they are not the same to the letter: names of rules.
        what: In what they differ, in a few words.
        diff: A unified diff of what differs, line by line.
    """

    is_same: bool
    by: tuple[str, ...] = ()
    what: str = ""
    diff: tuple[str, ...] = ()


def compare(saved: Sequence[Mapping[str, Any]], shown: Sequence[Mapping[str, Any]], rules: Rules) -> Comparison:
    """Compare outputs.

    Args:
        saved: As the notebook's file has them.
        shown: As they are now.
        rules: How.
    """
    before, now = parts_of(saved), parts_of(shown)
    if [part.kind for part in before] != [part.kind for part in now]:
        return _other_parts(before, now, rules)
    used: dict[str, None] = {"costs": None} if any(map(is_footer, saved)) else {}
    chance = chances(shown)
    used |= dict.fromkeys(name for name, said in chances(saved).items() if said != chance[name])
    for first, second in zip(before, now, strict=True):
        found = _compare_parts(first, second, rules)
        if not found.is_same:
            return found
        used |= dict.fromkeys(found.by)
    return Comparison(True, tuple(used))


def _other_parts(before: Sequence[Part], now: Sequence[Part], rules: Rules) -> Comparison:
    what = f"it showed {_named(before)}, and shows {_named(now)}"
    texts = ["\n".join(line for part in parts for line in _lines(part)) for parts in (before, now)]
    return Comparison(False, what=what, diff=diff(*(normalised(text, rules.normalisers) for text in texts)))


def _named(parts: Sequence[Part]) -> str:
    names = [part.kind for part in parts]
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "") if names else "nothing"


def _compare_parts(first: Part, second: Part, rules: Rules) -> Comparison:
    if set(first.data) != set(second.data):
        kinds = [", ".join(sorted(part.data)) or "nothing" for part in (first, second)]
        return Comparison(False, what=f"a display had {kinds[0]:.300}, and has {kinds[1]:.300}")
    used: dict[str, None] = {}
    for mime in sorted(first.data):
        saved, shown = first.data[mime], second.data[mime]
        is_picture = mime in pictures.FORMATS
        found = _compare_pictures(mime, saved, shown, rules) if is_picture else compare_texts(saved, shown, rules)
        if not found.is_same:
            title = first.kind if first.kind != "display" else mime
            return Comparison(False, what=f"{title:.100}: {found.what}", diff=found.diff)
        used |= dict.fromkeys(found.by)
    return Comparison(True, tuple(used))


def _compare_pictures(mime: str, saved: str, shown: str, rules: Rules) -> Comparison:
    if saved == shown:
        return Comparison(True)
    try:
        what = compare_pictures(mime, saved, shown, rules.pictures)
    except PictureError as error:
        what = str(error)
    return Comparison(not what, ("pixels",) if not what else (), what)


def compare_texts(saved: str, shown: str, rules: Rules) -> Comparison:
    """Compare two texts; their numbers within the tolerance."""
    names = needed(saved, shown, rules.normalisers)
    if names is not None:
        return Comparison(True, names)
    first, second = (normalised(text, rules.normalisers) for text in (saved, shown))
    if (rules.relative or rules.absolute) and _is_close(first, second, rules):
        used = tuple(rule.name for rule in rules.normalisers if _changes(rule, saved) or _changes(rule, shown))
        return Comparison(True, (*used, "tolerance"))
    return Comparison(False, what=_where(first, second), diff=diff(first, second))


def _changes(rule: Normaliser, text: str) -> bool:
    return len(text) <= MOST_TEXT and rule.apply(text) != text


def _is_close(first: str, second: str, rules: Rules) -> bool:
    if _NUMBER.sub("#", first) != _NUMBER.sub("#", second):
        return False
    pairs = zip(_NUMBER.findall(first), _NUMBER.findall(second), strict=True)
    return all(one == other or _are_close(float(one), float(other), rules) for one, other in pairs)


def _are_close(one: float, other: float, rules: Rules) -> bool:
    both = math.isfinite(one) and math.isfinite(other)
    return both and math.isclose(one, other, rel_tol=rules.relative, abs_tol=rules.absolute)


def _where(first: str, second: str) -> str:
    before, now = first.split("\n"), second.split("\n")
    for number, (one, other) in enumerate(zip(before, now, strict=False), 1):
        if one != other:
            return f"line {number} differs"
    return f"it had {len(before)} lines, and has {len(now)}"


def diff(first: str, second: str) -> tuple[str, ...]:
    """Return a unified diff of two texts, from where they begin to differ, and not more than can be read."""
    before, now = first.split("\n"), second.split("\n")
    same = 0
    while same < min(len(before), len(now)) and before[same] == now[same]:
        same += 1
    start = max(0, same - 3)
    cut = [[line[:_LINE] for line in lines[start : start + _DIFFED]] for lines in (before, now)]
    found = list(difflib.unified_diff(cut[0], cut[1], "saved", "now", lineterm=""))
    if not found and first != second:
        found = ["(the difference stands in long lines, behind what is shown)"]
    return tuple(found[:_SHOWN])


def _lines(part: Part) -> list[str]:
    lines = [f"[{part.kind}]"]
    for mime, text in sorted(part.data.items()):
        if mime.startswith("image/"):
            lines.append(f"{mime:.100}, SHA-256 {hashlib.sha256(text.encode(errors='replace')).hexdigest()}")
        else:
            lines += text.split("\n")
    return lines
