"""What is to be run again: a notebook's file, or the archive of a report. Everything in it is taken to be hostile."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agentvm_kernel.config import Paths
from agentvm_kernel.errors import host_error
from agentvm_kernel.report.document import Cell, Document, parse_document, parse_json, read_document
from agentvm_kernel.report.make import gather
from agentvm_kernel.report.pack import NAMES, RECORD
from agentvm_kernel.report.path import recorded
from agentvm_kernel.report.verify import examine, read_packed
from agentvm_kernel.reproduce.error import ReproduceError
from agentvm_kernel.reproduce.recorded import Record, RecordedImage, read_record
from agentvm_kernel.run.provenance import KEY

_MAGIC: Final = b"PK"


@dataclass(frozen=True)
class Source:
    """It, taken apart.

    Attributes:
        document: The notebook.
        record: What is recorded of it; None if nothing is.
        told: Where that is from, and what is known of who signed it.
        folder: Where files that belong to the notebook may be.
    """

    document: Document
    record: Record | None
    told: tuple[str, ...]
    folder: Path

    @property
    def cells(self) -> list[Cell]:
        """The code cells."""
        return [cell for cell in self.document.cells if cell.kind == "code"]

    @property
    def kept(self) -> dict[str, Any]:
        """What the notebook's metadata says of the machine that it was run in; anybody may have written it."""
        metadata = self.document.values.get("metadata")
        said = metadata.get(KEY) if isinstance(metadata, dict) else None
        return said if isinstance(said, dict) else {}


def open_source(path: Path, paths: Paths, key: str = "") -> Source:
    """Take a notebook's file or a report's archive apart.

    Of a notebook the record is in the archive beside it, if that has the same cells; else in this user's audit log.

    Args:
        path: It.
        paths: Where the audit log is, and the user's own key.
        key: Fingerprint of the key that an archive must be signed by; empty for any.

    Raises:
        ReportError: it cannot be read, is too large, or was changed after it was signed.
        ReproduceError: its record cannot be used, or another has signed it.
        HostError: the audit log cannot be read.
    """
    if _begins(path) == _MAGIC:
        return _packed(path, paths, key)
    document = read_document(path)
    beside = path.with_name(f"{path.stem}.report.zip")
    if beside.is_file():
        packed = _packed(beside, paths, key)
        if _code(packed.document) == _code(document):
            told = (f"The record is in {beside.name}, beside the notebook.", *packed.told)
            return Source(document, packed.record, told, path.absolute().parent)
    if key:
        raise ReproduceError(
            "There is no signed report of this notebook.", "Name the report's archive, or leave --key."
        )
    return Source(document, *_from_log(path, paths), path.absolute().parent)


def _begins(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise ReproduceError(f"There is no file {path}.", "Name a notebook, or the archive of a report.")
        with path.open("rb") as file:
            return file.read(len(_MAGIC))
    except OSError as error:
        raise host_error(error) from error


def _packed(path: Path, paths: Paths, key: str) -> Source:
    finding = examine(path, paths.state, key)
    if key and not finding.is_good:
        raise ReproduceError(finding.lines[1], "Do not believe what it says, or leave --key.")
    files = read_packed(path)
    notebook = next(name for name in files if name not in NAMES)
    record = read_record(parse_json(RECORD, files[RECORD]))
    return Source(parse_document(notebook, files[notebook]), record, finding.lines, path.absolute().parent)


def _code(document: Document) -> list[str]:
    return [cell.source for cell in document.cells if cell.kind == "code"]


def _from_log(path: Path, paths: Paths) -> tuple[Record | None, tuple[str, ...]]:
    if not (paths.state / "audit").is_dir():
        return None, ("Nothing is recorded of this notebook here.",)
    found = gather(path, paths)
    if not any(match.run for match in found.matches):
        return None, ("The audit log knows of no run of this notebook.",)
    whole = "whole" if not found.log.problems else f"NOT whole: {len(found.log.problems)} problems"
    return read_record(recorded(found)), (f"The record is in the audit log of this user, which is {whole}.",)


def recorded_image(source: Source, digest: str) -> RecordedImage:
    """Return what is recorded of an image; nothing if nothing is."""
    known = source.record.images.get(digest) if source.record else None
    return known or RecordedImage()
