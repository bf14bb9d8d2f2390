"""The certificate authority: private, kept over restarts, and good enough for the strictest client."""

from __future__ import annotations

import datetime
import os
import ssl
from pathlib import Path

import pytest
from cryptography import x509

from agentvm_kernel.egress import authority as module
from agentvm_kernel.egress.authority import FILE, Authority
from agentvm_kernel.errors import HostError


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Shake hands in memory and return both ends, the client's first."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for end in ends * 3:
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    return ends[0], ends[1]


def strict_client(pem: str) -> ssl.SSLContext:
    client = ssl.create_default_context(cadata=pem)
    client.verify_flags |= ssl.VERIFY_X509_STRICT  # what Python 3.13, the guest's, asks for
    client.set_alpn_protocols(["h2", "http/1.1"])
    return client


def test_a_strict_client_that_trusts_it_takes_a_certificate_of_the_right_name_only(tmp_path: Path) -> None:
    authority = Authority.of(tmp_path)
    context = authority.context("api.example.org")
    client, _ = shake_hands(context, strict_client(authority.pem), "api.example.org")
    assert client.selected_alpn_protocol() == "http/1.1"
    assert client.version() == "TLSv1.3"
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        shake_hands(context, strict_client(authority.pem), "other.example.org")
    stranger = ssl.create_default_context()
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(context, stranger, "api.example.org")


def test_it_is_private_and_stays_the_same_over_restarts(tmp_path: Path) -> None:
    first = Authority.of(tmp_path)
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
    assert Authority.of(tmp_path).pem == first.pem
    assert "PRIVATE" not in first.pem


def test_no_certificate_of_it_can_sign_others(tmp_path: Path) -> None:
    certificate = x509.load_pem_x509_certificate(Authority.of(tmp_path).pem.encode())
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0


def test_one_that_is_about_to_expire_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = Authority.of(tmp_path).pem
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=3640)
    monkeypatch.setattr(module, "_now", lambda: later)
    assert Authority.of(tmp_path).pem != old


def test_certificates_are_made_once_a_name_and_anew_before_they_expire(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority.of(tmp_path)
    first = authority.context("a.example.org")
    assert authority.context("a.example.org") is first
    for number in range(300):
        authority.context(f"n{number}.example.org")
    assert len(authority._leaves) == 256
    again = authority.context("a.example.org")
    assert again is not first
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=4)
    monkeypatch.setattr(module, "_now", lambda: later)
    assert authority.context("a.example.org") is not again


@pytest.mark.parametrize(
    "content", [b"", b"nonsense", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_a_file_that_holds_none_is_refused_with_a_remedy(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    (tmp_path / FILE).chmod(0o600)
    with pytest.raises(HostError, match="no certificate authority") as caught:
        Authority.of(tmp_path)
    assert "Remove it" in caught.value.hint


def test_a_key_beside_another_ones_certificate_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    Authority.of(tmp_path)
    other = Authority.of(tmp_path / "other").pem
    key = (tmp_path / FILE).read_text().partition("-----BEGIN CERTIFICATE")[0]
    (tmp_path / FILE).write_text(key + other)
    with pytest.raises(HostError, match="no certificate authority"):
        Authority.of(tmp_path)


@pytest.mark.parametrize("how", ["readable", "link", "fifo", "long"])
def test_a_file_that_is_not_private_or_not_a_plain_one_is_refused(tmp_path: Path, how: str) -> None:
    Authority.of(tmp_path)
    path = tmp_path / FILE
    if how == "readable":
        path.chmod(0o640)
    elif how == "long":
        path.write_bytes(b"x" * (64 * 1024 + 1))
    else:
        moved = path.rename(tmp_path / "moved")
        path.symlink_to(moved) if how == "link" else os.mkfifo(path, 0o600)
    with pytest.raises(HostError, match=FILE):
        Authority.of(tmp_path)
