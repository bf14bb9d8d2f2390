"""What a clone of a snapshot says that it holds: bounded, and checked before anything is believed to be there."""

from __future__ import annotations

import base64
import binascii
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agentvm_kernel.compare import probe
from agentvm_kernel.errors import CompareError
from agentvm_kernel.kernel.jsoncheck import is_plain, parse_object

MOST_FILES: Final = 200_000
"""Files that are looked at."""

_MOST_PACKED: Final = 16 << 20
_MOST_LINES: Final = 2 * _MOST_PACKED // probe.PIECE
_MOST_HEAD: Final = 4 << 20
_MOST_BYTES: Final = _MOST_HEAD + probe.MOST_FILES
_MOST_PATH: Final = 4096
_FILE: Final = re.compile(rb"([0-9]{1,19}) ([0-9]{1,11}\.[0-9]{1,10}) (/.*)", re.DOTALL)

# The files of the clone's own identity; on the first three other file systems are mounted.
_OF_THE_CLONE: Final = frozenset({b"/etc/hostname", b"/etc/hosts", b"/etc/machine-id"})

Part = Literal["files", "packages", "processes", "variables"]
_Text = Annotated[str, Field(max_length=probe.LONGEST)]
_Number = Annotated[int, Field(ge=0, lt=1 << 63)]


class _Head(BaseModel):
    """Everything but the files.

    Attributes:
        packages: Source, name and version of each.
        processes: Pid, start and command of each.
        variables: Name, type, summary and digest of each.
        cut: Of which parts there is more.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    packages: Annotated[
        list[tuple[Literal["python", "debian"], _Text, _Text]], Field(max_length=probe.MOST["packages"])
    ]
    processes: Annotated[list[tuple[_Number, _Number, _Text]], Field(max_length=probe.MOST["processes"])]
    variables: Annotated[list[tuple[_Text, _Text, _Text, _Text]], Field(max_length=probe.MOST["variables"])]
    cut: Annotated[list[Part], Field(max_length=4)]


@dataclass(frozen=True)
class Inventory:
    """What there is, as the guest claims.

    Attributes:
        packages: Versions by source and name.
        processes: Commands by pid and start.
        variables: Type, summary and digest by name.
        cut: Parts of which there is more.
    """

    packages: dict[tuple[str, str], str]
    processes: dict[tuple[int, int], str]
    variables: dict[str, tuple[str, str, str]]
    cut: frozenset[Part]
    _files: bytes = field(repr=False)

    def files(self) -> dict[bytes, tuple[int, bytes]]:
        """Return size and time of the last change by path; anew each time, for there are many."""
        return dict(_files(zlib.decompress(self._files)))


def read(text: str, mark: str) -> Inventory:
    """Return what a probe has printed.

    Args:
        text: What the cell put out; hostile.
        mark: How the probe's lines begin.

    Raises:
        CompareError: it is not what a probe prints.
    """
    try:
        return _read(text, mark)
    except (ValueError, binascii.Error, zlib.error, ValidationError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise CompareError(f"What the snapshot's guest says of itself cannot be read: {reason[:200]}.") from error


def _read(text: str, mark: str) -> Inventory:
    marked = re.finditer(rf"^{re.escape(mark)}([^\n]*)", text, re.MULTILINE)  # a list of all lines could be large
    lines = [line[1] for line in islice(marked, _MOST_LINES)]
    if not lines or lines.pop() != ".":
        raise ValueError("it is not complete")
    packed = "".join(lines)
    if len(packed) > _MOST_PACKED:
        raise ValueError("it is too long")
    unpacker = zlib.decompressobj()
    content = unpacker.decompress(base64.b64decode(packed, validate=True), _MOST_BYTES)
    if not unpacker.eof:
        raise ValueError("it is too long, or not complete")
    head, _, files = content.partition(b"\n")
    if not is_plain(head):
        raise ValueError("it is too long")
    found = _Head.model_validate(_tuples(parse_object(head)))
    is_cut = files.count(b"\0", 0) > MOST_FILES
    return Inventory(
        packages={(source, name): version for source, name, version in found.packages},
        processes={(pid, start): command for pid, start, command in found.processes},
        variables={name: (kind, summary, digest) for name, kind, summary, digest in found.variables},
        cut=frozenset(found.cut) | (frozenset[Part]({"files"}) if is_cut else frozenset()),
        _files=zlib.compress(files, 1),
    )


def _tuples(head: dict[str, object]) -> dict[str, object]:
    """Return a head with tuples in its lists: JSON has none."""
    return {
        key: [tuple(one) if isinstance(one, list) else one for one in value] if isinstance(value, list) else value
        for key, value in head.items()
    }


def _files(listed: bytes) -> Iterator[tuple[bytes, tuple[int, bytes]]]:
    """Yield the files of a list; what is no entry of one is left out."""
    begin = 0
    for _ in range(MOST_FILES):
        end = listed.find(b"\0", begin)
        if end < 0:
            return
        match = _FILE.fullmatch(listed, begin, end) if end - begin < _MOST_PATH + 40 else None
        if match and match[3] not in _OF_THE_CLONE:
            yield match[3], (int(match[1]), match[2])
        begin = end + 1


def cell(mark: str) -> str:
    """Return the code of a cell that prints what a snapshot holds.

    Args:
        mark: How its lines are to begin.
    """
    from inspect import getsource  # noqa: PLC0415 - takes a while to load

    source = json.dumps(getsource(probe))
    return (
        f'_agentvm = {{"__name__": "agentvm_probe"}}\nexec({source}, _agentvm)\n_agentvm["show"]({mark!r}, globals())'
    )
