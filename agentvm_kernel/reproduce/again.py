"""Runs a notebook again as it was run: opens it, finds its machine, goes its path, and keeps what came of it."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import nbformat

from agentvm_kernel.config import Paths, load_settings
from agentvm_kernel.errors import host_error
from agentvm_kernel.image.store import ImageStore
from agentvm_kernel.report.document import Cell, read_bounded
from agentvm_kernel.report.record import REPRODUCTION
from agentvm_kernel.reproduce.environment import Used, find_image
from agentvm_kernel.reproduce.error import ReproduceError
from agentvm_kernel.reproduce.judge import Judge, file_verdicts, loose_verdicts, undone
from agentvm_kernel.reproduce.leftovers import remove_snapshots
from agentvm_kernel.reproduce.markers import Marker, markers_of
from agentvm_kernel.reproduce.path import Leg, call_of, plan
from agentvm_kernel.reproduce.path import Path as Way
from agentvm_kernel.reproduce.permits import Permits
from agentvm_kernel.reproduce.player import Shown, Stage, play
from agentvm_kernel.reproduce.recorded import RecordedImage, kept_session
from agentvm_kernel.reproduce.source import Source
from agentvm_kernel.reproduce.terms import Terms, terms_of
from agentvm_kernel.reproduce.verdict import Outcome, Verdict
from agentvm_kernel.run.files import placed

_MOST_CASSETTE: Final = 64 << 20
_FILES: Final = "files"
_VERDICT: Final = "verdict.json"

OnProgress = Callable[[str, float | None], None]


@dataclass(frozen=True)
class Order:
    """What is wanted.

    Attributes:
        judge: Gives verdicts.
        out: The folder that the results become.
        image: Flavour of the image, where none is recorded.
        profile: Name of the profile, where none is recorded.
        allow: Hosts that the notebook may reach besides those that are configured.
        inputs: Files that it may copy into the VM, by the name by which it calls them.
        size: How much it may copy out, bytes.
        timeout: Seconds for each machine; None for no limit.
        is_any_image: Go on where the recorded image cannot be had.
    """

    judge: Judge
    out: Path
    image: str = ""
    profile: str = ""
    allow: tuple[str, ...] = ()
    inputs: Mapping[str, Path] = field(default_factory=dict)
    size: int = 4 << 30
    timeout: float | None = None
    is_any_image: bool = False


def reproduce(source: Source, order: Order, paths: Paths, on_progress: OnProgress) -> Outcome:
    """Run a notebook again; blocks.

    Args:
        source: It.
        order: What is wanted.
        paths: The user's folders.
        on_progress: Called with what is going on.

    Raises:
        ReproduceError: it cannot be run as it was.
        AgentVMError: there is no machine for it.
    """
    if os.path.lexists(order.out):
        raise ReproduceError(f"{order.out}, where the results are to go, is there already.", "Name another with --out.")
    cells = source.cells
    way = _without_skipped(plan(cells, source.record), cells)
    on_progress("looking for the recorded image", None)
    images = [_image(source, leg, order, paths, on_progress) for leg in way.legs]
    _check_images(images, order)
    notes = _notes(way)
    try:
        with placed(order.out) as place:
            place.mkdir(mode=0o700)
            shown: list[Shown] = []
            for leg, image in zip(way.legs, images, strict=True):
                stage, said = _stage(source, leg, image, order, paths, place)
                played, left = _played(leg, stage, on_progress)
                shown += played
                notes += [*said, *left]
            notes += undone(shown)
            used = next((one for one in images if not one.is_exact), images[-1])
            outcome = _outcome(source, way, used, tuple(dict.fromkeys(notes)), shown, order)
            _write(place, source, shown, outcome)
    except OSError as error:
        raise host_error(error) from error
    return outcome


def _played(leg: Leg, stage: Stage, on_progress: OnProgress) -> tuple[list[Shown], list[str]]:
    """Go a leg, and leave nothing of its machine; return what it has shown, and what there is to say."""
    try:
        shown = asyncio.run(play(leg, stage, _told(on_progress)))
    finally:
        left = remove_snapshots(stage.owner)
        shutil.rmtree(stage.folder)
    return shown, [f"{left} snapshots of {stage.owner} are left; `agentvm snapshot rm` removes them."] if left else []


def _without_skipped(way: Way, cells: Sequence[Cell]) -> Way:
    """Leave out what is marked not to be run."""
    skipped = {place for place, cell in enumerate(cells) if Marker.SKIP in markers_of(cell)}
    legs = (replace(leg, steps=tuple(step for step in leg.steps if step.cell not in skipped)) for leg in way.legs)
    return replace(way, legs=tuple(legs))


def _told(on_progress: OnProgress) -> Callable[[int, int], None]:
    return lambda number, count: on_progress(f"running step {number + 1} of {count}", number / count)


def _image(source: Source, leg: Leg, order: Order, paths: Paths, on_progress: OnProgress) -> Used:
    digest = leg.session.image if leg.session else str(source.kept.get("image", ""))
    known = source.record.images.get(digest) if source.record else None
    flavour = order.image or str(source.kept.get("flavour", ""))
    return find_image(digest, known or _kept_image(source), flavour, ImageStore(paths.cache), on_progress)


def _kept_image(source: Source) -> RecordedImage:
    """Return what the notebook's metadata says of its image."""
    packages = source.kept.get("python_packages")
    if not isinstance(packages, dict) or not all(isinstance(one, str) for one in packages.values()):
        return RecordedImage()
    return RecordedImage.model_construct(flavour="", packages={"python_packages": dict(packages)})


def _check_images(images: Sequence[Used], order: Order) -> None:
    for image in images:
        if not image.is_exact and image.recorded and not order.is_any_image:
            raise ReproduceError(
                "\n".join([f"The recorded image {image.recorded[:12]} cannot be had; that of now differs:",
                           *(f"  {line}" for line in image.differences)]),
                "--anyway runs the notebook in the image of now, and the verdict says so.",
            )  # fmt: skip


def _notes(way: Way) -> list[str]:
    notes = [f"Not followed: {line}." for leg in way.legs for line in leg.missing]
    notes += [f"{step.note}: {step.source.splitlines()[0]:.80}" for leg in way.legs for step in leg.steps if step.note]
    return notes[:100]


def _stage(source: Source, leg: Leg, image: Used, order: Order, paths: Paths, place: Path) -> tuple[Stage, list[str]]:
    session = leg.session or kept_session(source.kept)
    recorded = session.profile if session else ""
    terms = terms_of(session, order.profile or recorded, load_settings(paths), order.allow, paths.config)
    folder = place / ".kernel"
    folder.mkdir(mode=0o700)
    notes = [*terms.notes, *_copy_cassettes(source, leg, folder)]
    permits = Permits(
        files=place / _FILES, inputs=dict(order.inputs), allow=order.allow, size=order.size, limits=terms.limits,
        mode=terms.most, sizes=terms.sizes,
    )  # fmt: skip
    used = image.digest if image.is_exact else image.flavour
    owner = f"{REPRODUCTION}{secrets.token_hex(8)}"
    return Stage(used, terms.profile, tuple(_asked(terms)), permits, folder, owner, order.timeout), notes


def _asked(terms: Terms) -> Iterator[str]:
    """Yield the magics that put terms in force before anything of the notebook runs."""
    if terms.limits:
        yield f"%limits {' '.join(terms.limits)}"
    if terms.deny:
        yield f"%net deny {' '.join(terms.deny)}"
    if terms.mode:
        yield f"%net mode {terms.mode}"


def _copy_cassettes(source: Source, leg: Leg, folder: Path) -> list[str]:
    """Put the recordings that the notebook names where its kernel process looks for them."""
    names = dict.fromkeys(
        call.words[1]
        for step in leg.steps
        if (call := call_of(step.source)) and call.name == "net" and len(call.words) == 2
        and call.words[0] in {"record", "replay"} and call.words[1].replace("-", "").replace("_", "").isalnum()
        and call.words[1].isascii() and len(call.words[1]) <= 64
    )  # fmt: skip
    notes = []
    for name in list(names)[:20]:
        file = source.folder / f"{name}.cassette.jsonl"
        if file.is_file():
            (folder / file.name).write_bytes(read_bounded(file, _MOST_CASSETTE))
            notes.append(f"Hosts are answered for by {file.name}, beside the notebook.")
    return notes


def _outcome(
    source: Source, way: Way, image: Used, notes: tuple[str, ...], shown: Sequence[Shown], order: Order
) -> Outcome:
    by_cell = {one.step.cell: one for one in shown if one.step.cell is not None}
    cells = source.cells
    verdicts: list[Verdict] = []
    for number, cell in enumerate(cells):
        if cell.source.strip():
            verdicts.append(order.judge.verdict(number + 1, cell, by_cell.get(number)))
    steps = (step for leg in way.legs for step in leg.steps)
    signature = source.told
    if not image.is_exact:
        what = "; ".join(image.differences)
        notes = (*notes, f"The machine is of the image {image.digest[:12]}, not of the recorded one: {what}.")
    return Outcome(
        source.document.name, f"by {_ORDERS[way.order]}", signature, image.as_json(), image.is_exact, notes,
        tuple(verdicts), (*file_verdicts(cells, by_cell), *loose_verdicts(steps, shown)),
    )  # fmt: skip


_ORDERS: Final = {
    "record": "the record",
    "numbers of runs": "the numbers of runs that the notebook keeps",
    "document": "the order of the document, since no other is recorded",
}


def _write(place: Path, source: Source, shown: Sequence[Shown], outcome: Outcome) -> None:
    """Write the notebook as it is now, and the verdict."""
    node = nbformat.v4.new_notebook()  # type: ignore[no-untyped-call]
    by_cell = {one.step.cell: one for one in shown if one.step.cell is not None}
    number = -1
    for cell in source.document.cells:
        if cell.kind == "code":
            number += 1
            one = by_cell.get(number)
            made = nbformat.v4.new_code_cell(  # type: ignore[no-untyped-call]
                cell.source, metadata={"tags": list(cell.tags)} if cell.tags else {}
            )
            if one:  # put in later, since they need not be as they should be
                made.outputs = [nbformat.from_dict(output) for output in one.outputs]  # type: ignore[no-untyped-call]
                made.execution_count = one.count
        elif cell.kind == "markdown":
            made = nbformat.v4.new_markdown_cell(cell.source)  # type: ignore[no-untyped-call]
        else:
            made = nbformat.v4.new_raw_cell(cell.source)  # type: ignore[no-untyped-call]
        node.cells.append(made)
    (place / "notebook.ipynb").write_text(nbformat.writes(node), encoding="utf-8")  # type: ignore[no-untyped-call]
    (place / _VERDICT).write_text(json.dumps(outcome.as_json(), indent=1) + "\n", encoding="utf-8")
