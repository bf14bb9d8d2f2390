"""From what was shown to verdicts: outputs against the saved ones, digests of files against the recorded ones."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from agentvm_kernel.report.document import Cell
from agentvm_kernel.reproduce.compare import Comparison, Rules, compare
from agentvm_kernel.reproduce.markers import Marker, markers_of
from agentvm_kernel.reproduce.normalise import DEFAULTS, OF_FORKS
from agentvm_kernel.reproduce.outputs import has_error
from agentvm_kernel.reproduce.path import Step, call_of
from agentvm_kernel.reproduce.player import Shown
from agentvm_kernel.reproduce.verdict import FileVerdict, Verdict
from agentvm_kernel.run.provenance import KEY

_COMPARED: Final = frozenset({"push", "pull", "%fork"})
_DIGEST: Final = re.compile(r"\b(?:SHA-256|digest) ([0-9a-f]{12,64})\b")
_ERROR: Final = 300


@dataclass(frozen=True)
class Judge:
    """Gives verdicts.

    Attributes:
        rules: How outputs are compared.
        is_lax: Only cells that are marked to be compared are.
        is_exact: Nothing is normalised.
    """

    rules: Rules
    is_lax: bool = False
    is_exact: bool = False

    def verdict(self, number: int, cell: Cell, shown: Shown | None) -> Verdict:
        """Return a cell's verdict.

        Args:
            number: Of the cell among the code cells, from 1.
            cell: As the notebook has it.
            shown: What it shows now; None if it was not run.
        """
        markers = markers_of(cell)
        run = shown.step.run if shown else 0
        if why := _left_out(cell):
            return Verdict(number, run, "not run", why, is_wanted=True)
        if shown is None or shown.lost or shown.refused:
            why = (shown.lost or shown.refused) if shown else "nothing in the path runs it, or the machine was gone"
            return Verdict(number, run, "not run", why)
        was, has = has_error(cell.outputs), has_error(shown.outputs)
        raises = Marker.RAISES in markers
        if has and not was and not raises:
            return self._failed(number, run, cell, shown)
        if raises and not has:
            return Verdict(number, run, "differs", "it is marked to raise an exception, and raises none")
        if Marker.IGNORE in markers or (self.is_lax and Marker.CHECK not in markers):
            return Verdict(number, run, "same", "its output is not compared", ("marker" if not self.is_lax else "lax",))
        return self._compared(number, run, cell, shown)

    def _failed(self, number: int, run: int, cell: Cell, shown: Shown) -> Verdict:
        error = next(one for one in shown.outputs if one.get("output_type") == "error")
        what = f"{error.get('ename')}: {error.get('evalue')}"[:_ERROR]
        found = compare(cell.outputs, shown.outputs, self.rules)
        return Verdict(number, run, "error", f"it raises {what!a}", diff=found.diff)

    def _compared(self, number: int, run: int, cell: Cell, shown: Shown) -> Verdict:
        call = call_of(cell.source)
        if call is not None and call.name not in _COMPARED and not call.help:
            if has_error(cell.outputs) == has_error(shown.outputs):
                return Verdict(number, run, "same", by=("host-magic",))
            return Verdict(number, run, "differs", "it failed, and does not now")
        found = self._forks(cell, shown) if call and call.name == "%fork" else None
        found = found or compare(cell.outputs, shown.outputs, self.rules)
        word = "same" if found.is_same else "differs"
        return Verdict(number, run, word, found.what, found.by, found.diff)  # type: ignore[arg-type]

    def _forks(self, cell: Cell, shown: Shown) -> Comparison:
        """Compare the table of forks, without what each of them cost."""
        own = self.rules.normalisers[len(DEFAULTS) :] if not self.is_exact else self.rules.normalisers
        rules = replace(self.rules, normalisers=(*OF_FORKS, *own))
        return compare(_tables(cell.outputs), _tables(shown.outputs), rules)


def _left_out(cell: Cell) -> str:
    """Return why a cell is not run, where that is as wanted; else nothing."""
    call = call_of(cell.source)
    if call is not None and call.name == "report":
        return "not carried out: no report is made while a notebook is reproduced"
    return "marked NBVAL_SKIP" if Marker.SKIP in markers_of(cell) else ""


def _tables(outputs: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return outputs with the text alone of those that have one."""
    found = []
    for output in outputs:
        data = output.get("data")
        if isinstance(data, Mapping) and "text/plain" in data:
            found.append({**output, "data": {"text/plain": data["text/plain"]}})
        else:
            found.append(dict(output))
    return found


def file_verdicts(cells: Sequence[Cell], shown: Mapping[int, Shown]) -> list[FileVerdict]:
    """Return verdicts on what cells copied out of the VM.

    The recorded digest is in the cell's metadata; where that is not kept, the beginning of it is in the cell's output.

    Args:
        cells: The code cells.
        shown: What they show now.
    """
    found = []
    for number, cell in enumerate(cells):
        call = call_of(cell.source)
        if call is None or call.name != "pull" or call.help or Marker.SKIP in markers_of(cell):
            continue
        saved = _recorded(cell)
        now = _copied(shown[number].reply).get("sha256", "") if number in shown else ""
        if not saved and not now:
            continue
        word = "same" if saved and now and now.startswith(saved) else "differs" if now else "not run"
        path = call.words[0] if call.words else ""
        found.append(FileVerdict(number + 1, f"{path!a:.200}", word, saved, now))  # type: ignore[arg-type]
    return found


def loose_verdicts(steps: Iterable[Step], shown: Iterable[Shown]) -> list[FileVerdict]:
    """Return verdicts on what was copied out of the VM though no cell of the notebook does it.

    Args:
        steps: All that was to be run.
        shown: What they show now, as far as they were.
    """
    by_step = {id(one.step): one for one in shown}
    found = []
    for step in steps:
        call = call_of(step.source) if step.digest else None
        if call is None or call.name != "pull":
            continue
        now = _copied(by_step[id(step)].reply).get("sha256", "") if id(step) in by_step else ""
        word = "same" if now == step.digest else "differs" if now else "not run"
        found.append(FileVerdict(0, f"{call.words[0]!a:.200}", word, step.digest, now))  # type: ignore[arg-type]
    return found


def undone(shown: Iterable[Shown]) -> Iterator[str]:
    """Yield what came of magics that no cell of the notebook stands for, where it is not what it was.

    Args:
        shown: What all steps show.
    """
    for one in shown:
        if one.step.cell is not None or call_of(one.step.source) is None:
            continue
        failed = next((out for out in one.outputs if out.get("output_type") == "error"), None)
        why = one.refused or one.lost or (f"{failed.get('evalue')!a:.200}" if failed else "")
        now = _copied(one.reply).get("sha256", "")
        if why:
            yield f"Not done: {one.step.source.splitlines()[0]:.80}: {why}"
        elif one.step.digest and now != one.step.digest and one.step.source.startswith("%push"):
            yield f"Another file than then: {one.step.source:.80} (recorded {one.step.digest}, now {now})"


def _recorded(cell: Cell) -> str:
    kept = cell.metadata.get(KEY)
    digest = str(_copied(kept).get("sha256", "")) if isinstance(kept, Mapping) else ""
    if re.fullmatch(r"[0-9a-f]{64}", digest):
        return digest
    for output in cell.outputs:
        data = output.get("data")
        text = data.get("text/plain", "") if isinstance(data, Mapping) else ""
        text = "".join(map(str, text)) if isinstance(text, list) else str(text)
        if match := _DIGEST.search(text[:4096]):
            return match[1]
    return ""


def _copied(said: Mapping[str, Any]) -> Mapping[str, Any]:
    copied = said.get("copied")
    return copied if isinstance(copied, Mapping) else {}
