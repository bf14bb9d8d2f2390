"""The first messages of TLS, real ones and made-up ones, however they are split."""

from __future__ import annotations

import contextlib
import itertools
import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentvm_kernel.egress.tls import LONGEST_HELLO, ClientHello, ClientHelloReader, ServerHelloReader, TlsError


def real_hello(name: str | None, alpn: tuple[str, ...] = ()) -> bytes:
    context = ssl.create_default_context()
    context.check_hostname = False
    if alpn:
        context.set_alpn_protocols(list(alpn))
    out = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name).do_handshake()
    return out.read()


def vector(size: int, content: bytes) -> bytes:
    return len(content).to_bytes(size) + content


def extension(kind: int, content: bytes) -> bytes:
    return kind.to_bytes(2) + vector(2, content)


def server_name(name: bytes) -> bytes:
    return extension(0, vector(2, b"\0" + vector(2, name)))


def message(*extensions: bytes) -> bytes:
    body = b"\3\3" + bytes(32) + vector(1, b"") + vector(2, b"\x13\x01") + vector(1, b"\0")
    return b"\1" + vector(3, body + vector(2, b"".join(extensions)))


def records(data: bytes, size: int = 1 << 14) -> bytes:
    return b"".join(b"\x16\3\1" + vector(2, data[at : at + size]) for at in range(0, len(data), size))


def read(data: bytes) -> ClientHello | None:
    return ClientHelloReader().feed(data)


HELLO = real_hello("good.example", ("h2", "http/1.1"))


@given(st.lists(st.integers(1, len(HELLO) - 1), unique=True, max_size=8))
def test_a_hello_is_read_however_it_is_split(cuts: list[int]) -> None:
    reader = ClientHelloReader()
    edges = [0, *sorted(cuts), len(HELLO)]
    answers = [reader.feed(HELLO[start:end]) for start, end in itertools.pairwise(edges)]
    assert answers[:-1] == [None] * (len(answers) - 1)
    assert answers[-1] == ClientHello("good.example", ("h2", "http/1.1"), False)
    assert reader.wire == HELLO


@given(st.integers(1, 300))
def test_a_hello_is_read_from_many_records(size: int) -> None:
    assert read(records(message(server_name(b"good.example")), size)) == ClientHello("good.example", (), False)


def test_a_hello_without_a_name_has_none() -> None:
    assert read(real_hello(None)) == ClientHello(None, (), False)


@pytest.mark.parametrize("kind", [0xFE0D, 0xFFCE])
def test_an_encrypted_hello_is_seen(kind: int) -> None:
    hello = read(records(message(server_name(b"good.example"), extension(kind, b"x" * 100))))
    assert hello is not None
    assert hello.hidden


@pytest.mark.parametrize(
    "data",
    [
        records(message(server_name(b"good.example"), server_name(b"evil.example"))),
        records(message(extension(0, vector(2, b"\0" + vector(2, b"a.example") + b"\0" + vector(2, b"b.example"))))),
        records(message(server_name("gööd.example".encode()))),
        records(message(extension(0, b""))),
        records(message(server_name(b"good.example")) + b"\1"),
        records(b"\2" + message()[1:]),
        b"\x16\3\1\0\0",
        b"\x16\3\1\x40\1",
        b"\x16\2\1\0\5",
        b"\x14\3\3\0\1\1" + HELLO,
        b"GET / HTTP/1.1\r\n",
    ],
)
def test_what_contradicts_itself_is_refused(data: bytes) -> None:
    with pytest.raises(TlsError):
        read(data)


def test_an_endless_hello_is_refused() -> None:
    reader = ClientHelloReader()
    assert reader.feed(b"\x16\3\1" + vector(2, b"\1\xff\xff\xff" + bytes(1000))) is None
    with pytest.raises(TlsError, match="longer"):
        all(reader.feed(b"\x16\3\1" + vector(2, bytes(1000))) is None for _ in itertools.count())
    assert len(reader.wire) <= LONGEST_HELLO + 2000


@given(st.binary(max_size=400), st.integers(0, len(HELLO)))
def test_garbage_is_refused_or_waited_for_and_nothing_else(garbage: bytes, kept: int) -> None:
    for data in (garbage, HELLO[:kept] + garbage, records(b"\1" + vector(3, garbage))):
        reader = ClientHelloReader()
        with contextlib.suppress(TlsError):
            assert isinstance(reader.feed(data), ClientHello | None)


@given(st.integers(0, len(HELLO) - 1), st.integers(0, 255))
def test_a_changed_byte_never_makes_a_hello_crash(at: int, value: int) -> None:
    changed = bytearray(HELLO)
    changed[at] = value
    try:
        hello = read(bytes(changed))
    except TlsError:
        return
    assert hello is None or isinstance(hello, ClientHello)


def test_the_second_hello_may_follow_early_data() -> None:
    reader = ClientHelloReader(again=True)
    before = b"\x14\3\3\0\1\1" + b"\x17\3\3" + vector(2, b"early")
    assert reader.feed(before + HELLO) == ClientHello("good.example", ("h2", "http/1.1"), False)


def server_hello(random: bytes, version: bytes) -> bytes:
    body = b"\3\3" + random + vector(1, b"") + b"\x13\x01\0" + vector(2, extension(43, version) if version else b"")
    return records(b"\2" + vector(3, body))


def test_a_servers_answer_tells_the_version_and_whether_it_asks_again() -> None:
    retry = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
    for random, version, wanted in ((bytes(32), b"\3\4", "1.3"), (retry, b"\3\4", "1.3"), (bytes(32), b"", "1.2")):
        reader = ServerHelloReader()
        data = server_hello(random, version)
        for at in range(len(data)):
            reader.feed(data[at : at + 1])
        assert reader.done
        assert reader.hello is not None
        assert (reader.hello.version, reader.hello.retry) == (wanted, random == retry)


@given(st.binary(max_size=200))
def test_a_server_may_say_anything(data: bytes) -> None:
    ServerHelloReader().feed(data)
    ServerHelloReader().feed(records(b"\2" + vector(3, data)))
