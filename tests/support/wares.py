"""What the servers of the tests' internet give away: a wheel, an npm package, a git repository, a Debian archive."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import os
import random
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

WHEEL = "tinywheel-1.0-py3-none-any.whl"
BIG = 200 * 10**6
_BLOCK = random.Random(5).randbytes(1 << 20)

Shelf = dict[tuple[str, str], tuple[str, bytes]]
"""Type and content by host and path."""


def shelf() -> Shelf:
    """All that lies ready."""
    return {**_python(), **_npm(), **_debian()}


def many_bytes(size: int) -> Iterator[bytes]:
    """So many bytes, always the same ones, in blocks of 1 MiB."""
    for start in range(0, size, len(_BLOCK)):
        yield _BLOCK[: size - start]


def digest_of(size: int) -> str:
    """The SHA-256 of `many_bytes`."""
    digest = hashlib.sha256()
    for block in many_bytes(size):
        digest.update(block)
    return digest.hexdigest()


def make_repository(folder: Path) -> None:
    """Make `acme/tiny.git` in a folder, with one file."""
    target = folder / "acme" / "tiny.git"
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@example.org",
        "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@example.org",
    }  # fmt: skip
    content = "blob\nmark :1\ndata 5\ntiny\n\ncommit refs/heads/main\ncommitter a <a@example.org> 1 +0000\n"
    script = f"{content}data 5\nfirst\nM 100644 :1 README\n\n"
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(target)], check=True, env=environment)
    subprocess.run(
        ["git", "-C", str(target), "fast-import", "--quiet"], input=script.encode(), check=True, env=environment
    )


def _python() -> Shelf:
    name = "tinywheel-1.0.dist-info"
    files = {
        "tinywheel.py": b"ANSWER = 42\n",
        f"{name}/METADATA": b"Metadata-Version: 2.1\nName: tinywheel\nVersion: 1.0\n",
        f"{name}/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip('=')},{len(data)}\n"
        for path, data in files.items()
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, data in {**files, f"{name}/RECORD": f"{record}{name}/RECORD,,\n".encode()}.items():
            archive.writestr(path, data)
    wheel = buffer.getvalue()
    digest = hashlib.sha256(wheel).hexdigest()
    link = f'<a href="https://files.pythonhosted.org/packages/{WHEEL}#sha256={digest}">{WHEEL}</a>'
    return {
        ("pypi.org", "/simple/tinywheel/"): ("text/html", f"<!DOCTYPE html><html><body>{link}</body></html>".encode()),
        ("files.pythonhosted.org", f"/packages/{WHEEL}"): ("application/octet-stream", wheel),
    }


def _npm() -> Shelf:
    manifest = {"name": "tinypackage", "version": "1.0.0", "main": "index.js"}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for path, text in {"package.json": json.dumps(manifest), "index.js": "module.exports = 42\n"}.items():
            entry = tarfile.TarInfo(f"package/{path}")
            entry.size, entry.mode = len(text), 0o644
            archive.addfile(entry, io.BytesIO(text.encode()))
    package = buffer.getvalue()
    path = "/tinypackage/-/tinypackage-1.0.0.tgz"
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(package).digest()).decode()
    told = {
        "name": "tinypackage",
        "dist-tags": {"latest": "1.0.0"},
        "versions": {
            "1.0.0": {**manifest, "dist": {"tarball": f"https://registry.npmjs.org{path}", "integrity": integrity}}
        },
    }
    return {
        ("registry.npmjs.org", "/tinypackage"): ("application/json", json.dumps(told).encode()),
        ("registry.npmjs.org", path): ("application/octet-stream", package),
    }


def _debian() -> Shelf:
    """An archive of the suite `tiny` with one package that nobody fetches."""
    packages = (
        b"Package: tiny\nVersion: 1.0\nArchitecture: all\nMaintainer: a <a@example.org>\nDescription: tiny\n"
        b"Filename: pool/tiny.deb\nSize: 1\nSHA256: " + b"0" * 64 + b"\n"
    )
    files = {"main/binary-amd64/Packages": packages, "main/binary-amd64/Packages.gz": gzip.compress(packages, mtime=0)}
    sums = "".join(f" {hashlib.sha256(data).hexdigest()} {len(data)} {path}\n" for path, data in files.items())
    release = f"Suite: tiny\nCodename: tiny\nArchitectures: amd64\nComponents: main\nSHA256:\n{sums}"
    return {
        ("deb.debian.org", f"/debian/dists/tiny/{path}"): ("application/octet-stream", data)
        for path, data in {**files, "Release": release.encode()}.items()
    }
