"""nbval's markers: what a cell's author says of comparing it, as a comment in the cell or as a tag of it."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from agentvm_kernel.report.document import Cell


class Marker(Enum):
    """What there is to say; the values are the comments, tags have dashes in place of underscores."""

    IGNORE = "NBVAL_IGNORE_OUTPUT"
    CHECK = "NBVAL_CHECK_OUTPUT"
    SKIP = "NBVAL_SKIP"
    RAISES = "NBVAL_RAISES_EXCEPTION"


_WORDS = {marker.value: marker for marker in Marker}
_TAGS = {marker.value.lower().replace("_", "-"): marker for marker in Marker} | {"raises-exception": Marker.RAISES}


def markers_of(cell: Cell) -> frozenset[Marker]:
    """Return the markers of a cell."""
    return frozenset([*_in_comments(cell.source), *_in_tags(cell.tags)])


def _in_comments(source: str) -> Iterable[Marker]:
    for line in source.splitlines():
        text = line.strip()
        if text.startswith("#") and (marker := _WORDS.get(text.lstrip("#").strip())):
            yield marker


def _in_tags(tags: Iterable[str]) -> Iterable[Marker]:
    for tag in tags:
        if marker := _TAGS.get(tag.lower().replace("_", "-")):
            yield marker
