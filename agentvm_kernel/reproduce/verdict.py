"""What became of it: a verdict for each cell and each file, and an exit code for all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

Word = Literal["same", "differs", "error", "not run"]

SAME: Final = 0
OTHER: Final = 1
OTHER_IMAGE: Final = 3
_FORMAT: Final = 1


@dataclass(frozen=True)
class Verdict:
    """What became of a cell.

    Attributes:
        cell: Its number among the code cells, from 1.
        run: The number of the recorded run; 0 where none is known.
        word: The verdict.
        what: What there is to say of it.
        by: Rules that made it the same where it is not so to the letter.
        diff: A unified diff, line by line.
        is_wanted: The notebook's author wants it so: the cell is marked.
    """

    cell: int
    run: int
    word: Word
    what: str = ""
    by: tuple[str, ...] = ()
    diff: tuple[str, ...] = ()
    is_wanted: bool = False


@dataclass(frozen=True)
class FileVerdict:
    """What became of a file or folder that was copied out of the VM.

    Attributes:
        cell: Number of the cell that copied it; 0 where none did.
        path: Where it was in the VM.
        word: The verdict.
        saved: Its recorded digest, or the beginning of it.
        now: Its digest now.
    """

    cell: int
    path: str
    word: Word
    saved: str = ""
    now: str = ""


@dataclass(frozen=True)
class Outcome:
    """All of it.

    Attributes:
        notebook: The notebook's name.
        order: Where the path is from.
        signature: What is known of who signed the record.
        image: The recorded image, that which was used, and in what they differ.
        is_exact: The machine was of the recorded image.
        notes: What else there is to say.
        cells: The cells, in the document's order.
        files: The files.
    """

    notebook: str
    order: str
    signature: tuple[str, ...]
    image: dict[str, Any]
    is_exact: bool
    notes: tuple[str, ...]
    cells: tuple[Verdict, ...]
    files: tuple[FileVerdict, ...]

    @property
    def counts(self) -> dict[str, int]:
        """How many cells there are of each verdict."""
        return dict(Counter(one.word for one in self.cells))

    @property
    def is_same(self) -> bool:
        """Whether all is the same, but for what is marked not to be compared."""
        cells = all(one.word == "same" or one.is_wanted for one in self.cells)
        return cells and all(one.word == "same" for one in self.files)

    @property
    def status(self) -> int:
        """The exit code: 0 all the same, 1 not, 3 the same but in a machine of another image than the recorded one."""
        if not self.is_same:
            return OTHER
        return SAME if self.is_exact else OTHER_IMAGE

    def as_json(self) -> dict[str, Any]:
        """Return it for programs."""
        return {
            "format": _FORMAT, "notebook": self.notebook, "same": self.is_same, "status": self.status,
            "order": self.order, "signature": list(self.signature), "image": self.image | {"exact": self.is_exact},
            "notes": list(self.notes), "counts": self.counts,
            "cells": [_verdict(one) for one in self.cells], "files": [_file(one) for one in self.files],
        }  # fmt: skip


def _verdict(one: Verdict) -> dict[str, Any]:
    return {("verdict" if name == "word" else name): value for name, value in asdict(one).items()}


def _file(one: FileVerdict) -> dict[str, Any]:
    return {("verdict" if name == "word" else name): value for name, value in asdict(one).items()}


def lines_of(outcome: Outcome, most: int = 40) -> Iterator[str]:
    """Yield what is printed.

    Args:
        outcome: What became of it.
        most: Lines of a diff that are shown.
    """
    yield from outcome.signature
    yield f"Path: {outcome.order}."
    yield from outcome.notes
    for one in outcome.cells:
        yield from _cell_lines(one, most)
    for file in outcome.files:
        digests = "" if file.word == "same" else f" (recorded {file.saved or 'nothing'}, now {file.now or 'nothing'})"
        by = f" of cell {file.cell}" if file.cell else ""
        yield f"file {file.path}{by}: {file.word}{digests}"
    yield _sum(outcome)


def _cell_lines(one: Verdict, most: int) -> Iterable[str]:
    run = f" (run {one.run})" if one.run else ""
    said = "; ".join(filter(None, (one.what, f"after {', '.join(one.by)}" if one.by else "")))
    yield f"cell {one.cell}{run}: {one.word}{f': {said}' if said else ''}"
    for line in one.diff[:most]:
        yield f"    {line}"
    if len(one.diff) > most:
        yield f"    … {len(one.diff) - most} more lines: see verdict.json"


def _sum(outcome: Outcome) -> str:
    counts = ", ".join(f"{number} {word}" for word, number in outcome.counts.items()) or "no code cells"
    magics = sum("host-magic" in one.by for one in outcome.cells)
    marked = sum(one.is_wanted for one in outcome.cells)
    words = [counts] + ([f"{marked} marked not to be compared"] if marked else [])
    words += [f"of {magics} with magics of the host only that they worked"] if magics else []
    if not outcome.is_exact:
        words.append("in a machine of ANOTHER IMAGE than the recorded one")
    return f"{'All the same' if outcome.is_same else 'Not the same'}: {'; '.join(words)}."
