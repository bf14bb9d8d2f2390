"""Packs a report: notebook, page, record and description in one file, with digests of all of it, signed."""

from __future__ import annotations

import base64
import copy
import hashlib
import io
import json
import re
import time
import zipfile
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel, ConfigDict, Field

from agentvm_kernel.report.crate import describe
from agentvm_kernel.report.make import Report
from agentvm_kernel.report.path import recorded
from agentvm_kernel.report.signature import sign
from agentvm_kernel.run.provenance import KEY

PAGE, PDF, RECORD, CRATE = "report.html", "report.pdf", "record.json", "ro-crate-metadata.json"
MANIFEST, SIGNATURE = "manifest.json", "signature.json"
FORMAT: Final = 1
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._ -]")
_EPOCH: Final = 315_532_800
"""The first moment of which archives can tell, 1980."""

NAMES: Final = frozenset({PAGE, PDF, RECORD, CRATE, MANIFEST, SIGNATURE})


class Entry(BaseModel):
    """A file of a report.

    Attributes:
        sha256: Its digest.
        size: Its length, bytes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)


class Manifest(BaseModel):
    """All files of a report, but for itself and the signature.

    Attributes:
        format: Of the report.
        files: Their digests, by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    files: dict[str, Entry] = Field(max_length=len(NAMES) + 1)


class Signature(BaseModel):
    """Of the manifest's bytes.

    Attributes:
        algorithm: Always this one.
        key: The public key, base64.
        signature: The signature, base64.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    algorithm: str = Field(pattern=r"^ed25519$")
    key: str = Field(max_length=64)
    signature: str = Field(max_length=128)


def pack(report: Report, key: Ed25519PrivateKey, *, strip: bool, author: str, pdf: bytes | None) -> bytes:
    """Return a report as one file.

    Args:
        report: The report.
        key: Signs it.
        strip: Leave what this package has written out of the notebook.
        author: Who is named in the description; empty for nobody.
        pdf: The page as a PDF, if that is wanted.
    """
    notebook = _UNSAFE.sub("_", report.document.name)
    if not notebook.endswith(".ipynb") or notebook.startswith("."):
        notebook = f"{notebook.strip('.') or 'notebook'}.ipynb"
    content = stripped(report.document.values) if strip else report.document.content
    files = {notebook: content, PAGE: report.page.encode(), RECORD: _json(recorded(report))}
    if pdf is not None:
        files[PDF] = pdf
    files[CRATE] = _json(describe(report, notebook, {name: len(data) for name, data in files.items()}, author))
    entries = {name: Entry(sha256=hashlib.sha256(data).hexdigest(), size=len(data)) for name, data in files.items()}
    manifest = _json(Manifest(format=FORMAT, files=entries).model_dump())
    signature = Signature(
        algorithm="ed25519", key=base64.b64encode(key.public_key().public_bytes_raw()).decode(),
        signature=base64.b64encode(sign(key, manifest)).decode(),
    )  # fmt: skip
    return _archive({**files, MANIFEST: manifest, SIGNATURE: _json(signature.model_dump())}, report.made)


def stripped(values: dict[str, Any]) -> bytes:
    """Return a notebook without what this package, and front ends, have written down of its runs."""
    values = copy.deepcopy(values)
    cells = values.get("cells")
    for holder in (values, *(cells if isinstance(cells, list) else ())):
        metadata = holder.get("metadata") if isinstance(holder, dict) else None
        if isinstance(metadata, dict):
            for name in (KEY, "execution"):
                metadata.pop(name, None)
    return json.dumps(values, indent=1, ensure_ascii=False).encode() + b"\n"


def _json(values: dict[str, Any]) -> bytes:
    return json.dumps(values, indent=1, sort_keys=True).encode() + b"\n"


def _archive(files: dict[str, bytes], made: float) -> bytes:
    written = io.BytesIO()
    when = time.gmtime(max(made, _EPOCH))
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name, when[:6])
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            archive.writestr(info, content)
    return written.getvalue()
