"""Signs reports: with a key of the user's own, made at its first use, that never leaves the state folder."""

from __future__ import annotations

import base64
import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from agentvm_kernel.durable import Disk
from agentvm_kernel.errors import ReportError, host_error
from agentvm_kernel.private_file import read_private

KEY: Final = "report-key"
_LENGTH: Final = 32
_PURPOSE: Final = b"AgentVM Kernel report, format 1\n"
"""Goes before what is signed, so that no signature for another purpose can be taken for one of a report."""


def own_key(state: Path) -> Ed25519PrivateKey:
    """Return the user's key, made now if there is none yet.

    Args:
        state: The user's state folder.

    Raises:
        HostError: the key's file cannot be read or written, or is open to others.
        ReportError: it is no key.
    """
    known = find_key(state)
    if known is not None:
        return known
    disk, path = Disk(), state / KEY
    new = state / f".{KEY}.{os.getpid()}"
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        new.unlink(missing_ok=True)
        disk.write(new, Ed25519PrivateKey.generate().private_bytes_raw())
        disk.sync(new)
        with suppress(FileExistsError):  # another command has just made one
            disk.link(new, path)
        disk.unlink(new)
        disk.sync(state)
    except OSError as error:
        raise host_error(error) from error
    return own_key(state)


def find_key(state: Path) -> Ed25519PrivateKey | None:
    """Return the user's key; None if there is none yet.

    Raises:
        HostError: its file cannot be read, or is open to others.
        ReportError: it is no key.
    """
    content = read_private(state / KEY, _LENGTH)
    if content is None:
        return None
    if len(content) != _LENGTH:
        raise ReportError(f"{state / KEY} is no key.", "Remove it; the next report makes another.")
    return Ed25519PrivateKey.from_private_bytes(content)


def sign(key: Ed25519PrivateKey, content: bytes) -> bytes:
    """Return the signature of what is in a report's list of files."""
    return key.sign(_PURPOSE + content)


def is_signed(public: bytes, signature: bytes, content: bytes) -> bool:
    """Return whether a signature is that of a key, and of this content.

    Args:
        public: The public key.
        signature: The signature.
        content: What was signed.
    """
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, _PURPOSE + content)
    except (InvalidSignature, ValueError):
        return False
    return True


def fingerprint(public: bytes) -> str:
    """Return by what people know a public key."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(public).digest()).decode().rstrip("=")
