"""Says whether a packed report is as it was made, and by whose key; writes nothing, whatever is in it."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import re
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from pydantic import BaseModel, ValidationError

from agentvm_kernel.errors import ReportError
from agentvm_kernel.report.document import MAX_BYTES, parse_document, parse_json, read_bounded
from agentvm_kernel.report.pack import CRATE, FORMAT, MANIFEST, NAMES, RECORD, SIGNATURE, Manifest, Signature
from agentvm_kernel.report.signature import find_key, fingerprint, is_signed

_MOST_BYTES: Final = 256 << 20
_MOST_UNPACKED: Final = 384 << 20
_LISTED: Final = b"PK\x01\x02"
_MOST_LISTED: Final = 1000
"""Files that an archive may list before its list is read, which takes fifteen times the list's room."""

_ENDED: Final = b"PK\x05\x06"
_END: Final = 22
_HEADER: Final = struct.Struct("<4sHHHHHIIIHH")
"""Of a file in an archive: its last fields are the CRC, lengths packed and unpacked, and those of its name and more."""

_NOTEBOOK: Final = re.compile(r"[A-Za-z0-9_ -][A-Za-z0-9._ -]{0,248}\.ipynb", re.ASCII)
"""What a maker of reports calls a notebook."""

_MOST_NOTES: Final = 64 << 10
_NO_REPORT: Final = "`agentvm report NOTEBOOK --zip` makes one."

_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True)
class Finding:
    """What was found.

    Attributes:
        is_good: It is as it was made, by the user's own key or the one that was asked for.
        lines: What there is to say.
    """

    is_good: bool
    lines: tuple[str, ...]


def examine(file: Path, state: Path, key: str = "") -> Finding:
    """Examine a packed report.

    Args:
        file: The report.
        state: The user's state folder, where the user's own key is.
        key: Fingerprint of the key that it must be signed by; empty for the user's own.

    Raises:
        ReportError: it is no report, or not as it was made.
    """
    files = read_packed(file)
    manifest = _parsed(Manifest, files, MANIFEST)
    if manifest.format != FORMAT:
        raise ReportError("The report is of a newer format.", "Use the version of agentvm that made it, or a newer.")
    signature = _parsed(Signature, files, SIGNATURE)
    _check_files(files, manifest)
    try:
        public, signed = (base64.b64decode(text, validate=True) for text in (signature.key, signature.signature))
    except (binascii.Error, ValueError) as error:
        raise ReportError("The report's signature is no signature.") from error
    if not is_signed(public, signed, files[MANIFEST]):
        raise ReportError(
            "The signature is wrong: the report was changed after it was signed.", "Do not believe what it says."
        )
    return _judged(public, state, key, len(manifest.files))


def _judged(public: bytes, state: Path, key: str, number: int) -> Finding:
    whole = f"The report is as it was signed: {number} files, the signature is right."
    name, own = fingerprint(public), find_key(state)
    is_own = own is not None and own.public_key().public_bytes_raw() == public
    if key:
        if key == name:
            return Finding(True, (whole, f"It was signed by the key that you named, {name}."))
        return Finding(False, (whole, f"It was signed by another key than you named: {name}."))
    if is_own:
        return Finding(True, (whole, f"It was signed by your own key, {name}."))
    return Finding(
        False,
        (
            whole, f"It was signed by a key that is not yours: {name}.",
            "Whoever has that key can have made up all of it. If its owner tells you this fingerprint, use --key.",
        ),
    )  # fmt: skip


def read_packed(file: Path) -> dict[str, bytes]:
    """Return the files of a packed report, of which nothing is believed yet.

    Raises:
        ReportError: it is no report, or something in it is too large, or does not belong there.
    """
    content = read_bounded(file, _MOST_BYTES)
    if content.count(_LISTED) > _MOST_LISTED:
        raise _others()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            infos = archive.infolist()
            names = [info.filename for info in infos]
            _check_names(names)
            if not _is_dense(content, archive):
                raise _others()
            if sum(info.file_size for info in infos) > _MOST_UNPACKED:
                raise ReportError(f"What is in the report is larger than {_MOST_UNPACKED >> 20} MiB.")
            files = {info.filename: _read(archive, info) for info in infos}
    except (
        zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError, ValueError
    ) as error:  # fmt: skip
        raise ReportError("That is no report: it is no archive that can be read.", _NO_REPORT) from error
    for name in (MANIFEST, SIGNATURE):
        if len(files[name]) > _MOST_NOTES:
            raise ReportError(f"That is no report: its {name} is too large.", _NO_REPORT)
    for name in (CRATE, RECORD):
        parse_json(name, files[name])
    notebook = next(name for name in names if name not in NAMES)
    parse_document(notebook, files[notebook])
    return files


def _check_names(names: list[str]) -> None:
    others = [name for name in names if name not in NAMES]
    if len(names) != len(set(names)) or len(others) != 1 or not _NOTEBOOK.fullmatch(others[0]):
        raise _others()
    missing = {MANIFEST, SIGNATURE, CRATE, RECORD} - set(names)
    if missing:
        raise ReportError(f"That is no report: it has no {min(missing)}.", _NO_REPORT)


def _others() -> ReportError:
    return ReportError("That is no report: there are files in it that do not belong there.", _NO_REPORT)


def _is_dense(content: bytes, archive: zipfile.ZipFile) -> bool:
    """Return whether there is nothing between the files or around them, where other programs would find other files."""
    place = 0
    for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
        if info.header_offset != place or info.extra or info.comment or not _is_plain(content, info):
            return False
        place += _HEADER.size + len(info.filename) + info.compress_size
    number, listed = len(archive.infolist()), len(content) - _END - place
    ended = struct.pack("<4sHHHHIIH", _ENDED, 0, 0, number, number, listed, place, 0)
    return place == archive.start_dir and content[-_END:] == ended


def _is_plain(content: bytes, info: zipfile.ZipInfo) -> bool:
    """Return whether a file is kept in a usual way, and the archive says the same of it where it is and in its list."""
    _, _, flags, method, _, _, *sizes, extra = _HEADER.unpack_from(content, info.header_offset)
    told = [info.CRC, info.compress_size, info.file_size, len(info.filename)]
    is_same = (flags, method, sizes, extra) == (info.flag_bits, info.compress_type, told, 0)
    return is_same and info.flag_bits == 0 and info.compress_type in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    with archive.open(info) as packed:
        content = packed.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ReportError(f"A file in the report is larger than {MAX_BYTES >> 20} MiB.")
    return content


def _check_files(files: dict[str, bytes], manifest: Manifest) -> None:
    told = set(manifest.files)
    if told != set(files) - {MANIFEST, SIGNATURE}:
        raise ReportError("The report has other files than were signed.", "Do not believe what it says.")
    for name, entry in manifest.files.items():
        if hashlib.sha256(files[name]).hexdigest() != entry.sha256 or len(files[name]) != entry.size:
            raise ReportError(f"{name!a:.80} was changed after the report was signed.", "Do not believe what it says.")


def _parsed(model: type[_Model], files: dict[str, bytes], name: str) -> _Model:
    try:
        return model.model_validate(parse_json(name, files[name]))
    except ValidationError as error:
        raise ReportError(f"That is no report: its {name} says nothing that it could have said.", _NO_REPORT) from error
