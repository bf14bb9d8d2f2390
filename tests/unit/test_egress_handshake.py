"""Real TLS handshakes through the gateway, end to end between the guest's program and the host."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from gateway_bed import NAME, GuestChannel, bed


def certificate(folder: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = folder / "host.pem"
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    file.write_bytes(
        key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain) + made.public_bytes(encoding)
    )
    return file


async def shake(channel: GuestChannel, context: ssl.SSLContext) -> tuple[str | None, bytes]:
    """Shake hands over a guest's connection, say hello, and return the version and what came back."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    program = context.wrap_bio(incoming, outgoing, server_hostname=NAME)
    taken = 0
    for step in (program.do_handshake, lambda: program.write(b"hello"), lambda: program.read(100)):
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                if data := outgoing.read():
                    channel.say(data)
                async with asyncio.timeout(20):
                    while len(channel.to_guest) == taken:
                        channel.changed.clear()
                        await channel.changed.wait()
                incoming.write(bytes(channel.to_guest[taken:]))
                taken = len(channel.to_guest)
            else:
                break
    assert isinstance(result, bytes)
    return program.version(), result


@pytest.mark.parametrize(
    ("newest", "curve", "version"),
    [
        (ssl.TLSVersion.TLSv1_3, "prime256v1", "1.3"),
        (ssl.TLSVersion.TLSv1_3, "secp521r1", "1.3"),  # which no client offers at first: it is asked for again
        (ssl.TLSVersion.TLSv1_2, "prime256v1", "1.2"),
    ],
)
async def test_a_real_handshake_passes_and_its_version_is_noted(
    tmp_path: Path, newest: ssl.TLSVersion, curve: str, version: str
) -> None:
    file = certificate(tmp_path)
    host = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    host.load_cert_chain(file)
    host.maximum_version = newest
    host.set_ecdh_curve(curve)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await writer.start_tls(host)
        writer.write((await reader.read(100)).upper())
        await writer.drain()
        await reader.read(100)

    async with bed(tmp_path, serve) as made:
        channel = made.open(443)
        spoken, answer = await shake(channel, ssl.create_default_context(cafile=str(file)))
        assert answer == b"HELLO"
        assert spoken == f"TLSv{version}"
        channel.reset()
        connection = await made.only()
        assert (connection.verdict, connection.tls_version) == ("allowed", version)
