"""Where in a TOML file a value is: tomllib does not tell."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from typing import Any

Path = tuple[str, ...]


def lines_of(text: str) -> dict[Path, int]:
    """Return the number of the line on which each key, or table, is first named.

    It is the line at which a beginning of the file first has it: no grammar but tomllib's is needed.

    Args:
        text: A file that is valid TOML.
    """
    lines = text.split("\n")
    found: dict[Path, int] = {}
    begin = 1
    for number in range(1, len(lines) + 1):
        try:
            values = tomllib.loads("\n".join(lines[:number]))
        except tomllib.TOMLDecodeError:
            continue  # in the middle of a value of several lines
        for path in _paths(values):
            found.setdefault(path, begin)
        begin = number + 1
    return found


def _paths(values: dict[str, Any], prefix: Path = ()) -> Iterator[Path]:
    for key, value in values.items():
        yield (*prefix, key)
        if isinstance(value, dict):
            yield from _paths(value, (*prefix, key))
