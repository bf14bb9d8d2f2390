"""Reads a notebook's file, of which nothing is believed: sizes, depth and form are checked before it is taken apart."""

from __future__ import annotations

import json
import os
import re
import stat
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import nbformat
from nbformat.validator import ValidationError

from agentvm_kernel.errors import ReportError
from agentvm_kernel.firewall.bundles import joined
from agentvm_kernel.firewall.text import sound

MAX_BYTES: Final = 128 << 20
MAX_DEPTH: Final = 100
MAX_CELLS: Final = 10_000
MAX_ELEMENTS: Final = 2_000_000

# One that does not end takes all the rest with it: else the search would begin anew at each quote in it.
_TEXT: Final = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_FORMATS: Final = (3, 4)
_UNEXPECTED: Final = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
_UNSTRUCTURED: Final = bytes(byte for byte in range(256) if byte not in b"[]{}")

Output = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        kind: What it is.
        id: As the notebook's file has it; empty without one.
        source: Its text.
        count: The execution count that the file shows.
        outputs: As the file has them: not cleaned.
        tags: What it is tagged with.
        metadata: What is written down beside it.
    """

    kind: Literal["code", "markdown", "raw"]
    id: str
    source: str
    count: int | None = None
    outputs: tuple[Output, ...] = ()
    tags: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Document:
    """A notebook.

    Attributes:
        name: The file's name.
        cells: Its cells.
        content: The file.
        values: What it holds, as JSON has it.
    """

    name: str
    cells: tuple[Cell, ...]
    content: bytes
    values: dict[str, Any]


def read_document(path: Path) -> Document:
    """Read a notebook's file.

    Args:
        path: The file.

    Raises:
        ReportError: it cannot be read, is too large or too deep, or no notebook.
    """
    return parse_document(path.name, read_bounded(path, MAX_BYTES))


def parse_document(name: str, content: bytes) -> Document:
    """Take a notebook apart.

    Args:
        name: The file's name.
        content: What is in it.

    Raises:
        ReportError: it is too deep, has too many parts, or is no notebook.
    """
    values = parse_json(name, content)
    node = _as_nbformat_4(name, values)
    if len(node["cells"]) > MAX_CELLS:
        raise ReportError(f"{name!a:.80} has more than {MAX_CELLS} cells.", "Split it.")
    return Document(name, tuple(_cell(one) for one in node["cells"]), content, values)


def read_bounded(path: Path, most: int) -> bytes:
    """Return what is in a regular file.

    Args:
        path: The file.
        most: The most that it may hold, bytes.

    Raises:
        ReportError: it cannot be read, or is larger.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ReportError(f"{path} cannot be read: {error.strerror}.") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ReportError(f"{path} is no file.")
    with os.fdopen(descriptor, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ReportError(f"{path} is larger than {most >> 20} MiB.", "Clear outputs that need not be in it.")
    return content


def parse_json(name: str, content: bytes) -> dict[str, Any]:
    """Return an object that was written as JSON.

    Args:
        name: What it is called in an error.
        content: The JSON.

    Raises:
        ReportError: it is too deep, has too many parts, or is no such object.
    """
    if _depth(content) > MAX_DEPTH or sum(map(content.count, (b"[", b"{", b","))) > MAX_ELEMENTS:
        raise ReportError(f"{name!a:.80} is nested too deeply, or has too many parts.")
    try:
        values = json.loads(content.decode(), parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:
        raise ReportError(f"{name!a:.80} is no JSON.") from error
    if not isinstance(values, dict):
        raise ReportError(f"{name!a:.80} is no JSON object.")
    return {str(sound(key)): sound(value) for key, value in values.items()}


def _depth(content: bytes) -> int:
    """Return how deeply JSON is nested."""
    deepest = depth = 0
    for byte in _TEXT.sub(b"", content).translate(None, _UNSTRUCTURED):
        depth += 1 if byte in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _as_nbformat_4(name: str, values: dict[str, Any]) -> dict[str, Any]:
    if values.get("nbformat") not in _FORMATS:
        raise ReportError(f"{name!a:.80} is no notebook of format 3 or 4.", "Open it in Jupyter, and save it.")
    try:
        node = nbformat.from_dict(values)  # type: ignore[no-untyped-call]
        if values.get("nbformat") != 4:
            node = nbformat.convert(node, 4)  # type: ignore[no-untyped-call]
        with warnings.catch_warnings(action="ignore"):  # of ids that are missing or doubled, which it repairs
            nbformat.validate(node, relax_add_props=True)
    except (ValidationError, AssertionError, *_UNEXPECTED) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ReportError(f"{name!a:.80} is no valid notebook: {said!a:.200}.") from error
    return dict(node)


def _cell(one: dict[str, Any]) -> Cell:
    kind = one["cell_type"]
    source, name = joined(one["source"]) or "", str(one.get("id", ""))
    if kind != "code":
        return Cell("markdown" if kind == "markdown" else "raw", name, source)
    count = one.get("execution_count")
    outputs = tuple(dict(output) for output in one.get("outputs", ()))
    metadata = dict(one.get("metadata", {}))
    tags = metadata.get("tags")
    words = tuple(str(tag) for tag in tags) if isinstance(tags, list) else ()
    return Cell("code", name, source, count if isinstance(count, int) else None, outputs, words, metadata)
