"""The certificates that programs trust: the system's, and an authority of the host's when it looks into connections."""

from __future__ import annotations

import os
from pathlib import Path

BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
# Where `update-ca-certificates` finds it when it makes the bundle anew.
LOCAL = Path("/usr/local/share/ca-certificates/agentvm.crt")

# Programs that bring a bundle of their own, and how they are told to take the system's.
_BUNDLE_VARIABLES = (
    "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT", "GIT_SSL_CAINFO", "CARGO_HTTP_CAINFO",
    "AWS_CA_BUNDLE", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", "DENO_CERT",
)  # fmt: skip
_EXTRA_VARIABLE = "NODE_EXTRA_CA_CERTS"


def set_authority(pem: str | None, bundle: Path = BUNDLE, local: Path = LOCAL) -> dict[str, str]:
    """Trust an authority from now on, and no other one of the host's.

    Args:
        pem: Its certificate; None for none.
        bundle: The system's bundle.
        local: Where the authority lies by itself.

    Returns:
        The variables that programs need for that.

    Raises:
        OSError: the disk is full.
    """
    old = local.read_bytes() if local.exists() else b""
    new = pem.strip().encode() + b"\n" if pem else b""
    if old != new:
        if old:
            _replace(bundle, bundle.read_bytes().replace(old, b""))
        if new:
            with bundle.open("ab") as file:
                file.write(new)
            local.write_bytes(new)
        else:
            local.unlink()
    if not new:
        return {}
    return dict.fromkeys(_BUNDLE_VARIABLES, str(bundle)) | {_EXTRA_VARIABLE: str(local)}


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_suffix(".agentvm")
    partial.write_bytes(content)
    partial.chmod(0o644)
    os.replace(partial, path)  # noqa: PTH105 - the same thing
