"""The certificate authority with which the gateway ends TLS of inspected hosts: known to this user's VMs alone."""

from __future__ import annotations

import datetime
import os
import ssl
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from agentvm_kernel.durable import Disk
from agentvm_kernel.errors import HostError
from agentvm_kernel.private_file import read_private

FILE: Final = "authority.pem"
"""The authority's name in the state folder."""

_LARGEST: Final = 64 * 1024
_DAY: Final = datetime.timedelta(days=1)
_LIFE: Final = 3650 * _DAY
_RENEW_BEFORE: Final = 30 * _DAY
_LEAF_LIFE: Final = 7 * _DAY
_LEAF_USE: Final = 3 * _DAY
_LEAVES: Final = 256
"""Names whose certificates are kept in memory: one is made anew in less than a millisecond."""


@dataclass(frozen=True)
class _Leaf:
    context: ssl.SSLContext
    replace_at: datetime.datetime


class Authority:
    """Signs certificates for names that the gateway has decided to inspect.

    Args:
        key: The authority's key.
        certificate: Its own certificate.
    """

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key = key
        self._certificate = certificate
        # One key for all names, in memory only: whoever could read it could read the authority's, too.
        self._leaf_key = ec.generate_private_key(ec.SECP256R1())
        self._leaves: OrderedDict[str, _Leaf] = OrderedDict()

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Return a state folder's authority; it is made when there is none, or when it is about to expire.

        Args:
            folder: The state folder.

        Raises:
            HostError: the file is not private, or is none of ours.
        """
        path = folder / FILE
        content = read_private(path, _LARGEST)
        if content is not None:
            made = cls(*_parse(content, path))
            if made._certificate.not_valid_after_utc - _now() > _RENEW_BEFORE:
                return made
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _sign_authority(key)
        Disk().replace(path, _private_pem(key) + certificate.public_bytes(serialization.Encoding.PEM))
        return cls(key, certificate)

    @property
    def pem(self) -> str:
        """The certificate that guests are to trust."""
        return self._certificate.public_bytes(serialization.Encoding.PEM).decode()

    def context(self, name: str) -> ssl.SSLContext:
        """Return the server side of TLS for a name; it speaks HTTP/1.1 only.

        Args:
            name: The host's name, normalised.
        """
        found = self._leaves.get(name)
        if found is None or found.replace_at < _now():
            found = self._leaves[name] = _Leaf(self._make_context(name), _now() + _LEAF_USE)
        self._leaves.move_to_end(name)
        if len(self._leaves) > _LEAVES:
            self._leaves.popitem(last=False)
        return found.context

    def _make_context(self, name: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        context.num_tickets = 0  # a ticket is of no use once the VM was rolled back
        content = _private_pem(self._leaf_key) + self._sign_leaf(name).public_bytes(serialization.Encoding.PEM)
        # OpenSSL's binding reads files only; this one is in memory and has no name.
        descriptor = os.memfd_create("agentvm-leaf", os.MFD_CLOEXEC)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            context.load_cert_chain(f"/proc/self/fd/{descriptor}")
        return context

    def _sign_leaf(self, name: str) -> x509.Certificate:
        issuer = self._certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        return (
            _builder(_subject("agentvm gateway"), self._certificate.subject, self._leaf_key, _LEAF_LIFE)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer), critical=False)
            .sign(self._key, hashes.SHA256())
        )


def _sign_authority(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    subject = _subject("agentvm authority of this host's user, for their VMs only")
    return (
        _builder(subject, subject, key, _LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, life: datetime.timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_now() - _DAY)  # clocks of guests are set, but not to the second
        .not_valid_after(_now() + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _parse(content: bytes, path: Path) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    try:
        key = serialization.load_pem_private_key(content, password=None)
        certificate = x509.load_pem_x509_certificate(content)
    except ValueError as error:
        raise _no_authority(path) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or certificate.public_key() != key.public_key():
        raise _no_authority(path)
    return key, certificate


def _no_authority(path: Path) -> HostError:
    return HostError(f"{path} holds no certificate authority.", "Remove it: a new one is made then.")


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _subject(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
