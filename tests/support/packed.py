"""Archives of reports, taken apart and put together again: also such as nobody would make who means well."""

from __future__ import annotations

import base64
import hashlib
import json
import zipfile
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agentvm_kernel.report.signature import sign

Files = dict[str, bytes]


def files_of(file: Path) -> Files:
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(file: Path, files: Files) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def signed(files: Files, key: Ed25519PrivateKey) -> Files:
    """Return files with the digests and the signature that a maker of reports gives them, whatever is in them."""
    others = {name: one for name, one in files.items() if name not in {"manifest.json", "signature.json"}}
    entries = {name: {"sha256": hashlib.sha256(one).hexdigest(), "size": len(one)} for name, one in others.items()}
    manifest = json.dumps({"format": 1, "files": entries}).encode()
    public = base64.b64encode(key.public_key().public_bytes_raw()).decode()
    signature = base64.b64encode(sign(key, manifest)).decode()
    said = {"algorithm": "ed25519", "key": public, "signature": signature}
    return {**others, "manifest.json": manifest, "signature.json": json.dumps(said).encode()}


def everything_below(folder: Path) -> Files:
    """What is in a folder, with what is no file as an empty one."""
    return {
        str(one.relative_to(folder)): one.read_bytes() if one.is_file() and not one.is_fifo() else b""
        for one in sorted(folder.rglob("*"))
    }
