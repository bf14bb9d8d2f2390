"""HTTP through the gateway: every request is for the decided host, and both ends agree on its length."""

from __future__ import annotations

import asyncio
from pathlib import Path

import h11
import pytest
from gateway_bed import NAME, Bed, bed
from hypothesis import given
from hypothesis import strategies as st

from agentvm_kernel.egress.firstwords import Protocol, SpeechError, check_git, recognize
from agentvm_kernel.egress.http1 import HttpRefusedError, checked

GET = b"GET /a HTTP/1.1\r\nHost: good.example\r\n\r\n"


class Site:
    """Answers requests with their targets and keeps what came, byte for byte."""

    def __init__(self, response: bytes = b"") -> None:
        self.heard = bytearray()
        self._response = response

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER)
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                data = await reader.read(65536)
                self.heard += data
                connection.receive_data(data)
            elif isinstance(event, h11.Request):
                target = event.target
            elif isinstance(event, h11.EndOfMessage):
                if self._response:
                    writer.write(self._response)
                    break
                length = str(len(target)).encode()
                writer.write(
                    connection.send(h11.Response(status_code=200, headers=[("Content-Length", length)])) or b""
                )
                writer.write(connection.send(h11.Data(target)) or b"")
                writer.write(connection.send(h11.EndOfMessage()) or b"")
                connection.start_next_cycle()
            elif isinstance(event, h11.ConnectionClosed):
                break
        if b" 101 " in self._response:
            while data := await reader.read(65536):
                self.heard += data
                writer.write(data)
        if self._response:
            writer.write_eof()


async def refused(made: Bed, said: bytes) -> bytes:
    channel = made.open(80, said=said)
    text = await channel.ended()
    channel.end()
    await made.tasks[-1]
    assert made.verdicts[-1].verdict == "refused"
    assert channel.orderly
    return text


async def test_requests_over_one_connection_pass(tmp_path: Path) -> None:
    site = Site()
    async with bed(tmp_path, site) as made:
        channel = made.open(80, said=GET)
        await channel.heard(b"/a")
        channel.say(GET.replace(b"/a", b"http://GOOD.example:80/b") + GET.replace(b"/a", b"/c"))
        await channel.heard(b"/b")
        await channel.heard(b"/c")
        channel.end()
        connection = await made.only()
        assert (connection.protocol, connection.verdict, made.accepted) == ("http", "allowed", 1)
        assert channel.orderly
        assert bytes(site.heard).count(b"Host: good.example\r\n") == 3
        assert b"GET /b HTTP/1.1" in site.heard


@pytest.mark.parametrize(
    "second",
    [
        b"GET /x HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"GET http://evil.example/ HTTP/1.1\r\nHost: good.example\r\n\r\n",
        b"CONNECT evil.example:443 HTTP/1.1\r\nHost: good.example\r\n\r\n",
        b"CONNECT / HTTP/1.1\r\nHost: good.example\r\n\r\n",
        b"GET /x HTTP/1.1\r\n\r\n",
        b"GET /x HTTP/1.0\r\n\r\n",
        b"GET /x HTTP/1.1\r\nHost: good.example\r\nHost: evil.example\r\n\r\n",
        b"GET /x HTTP/1.1\r\nHost: good.example:81\r\n\r\n",
        b"GET /x HTTP/1.1\r\nHost: good.example, evil.example\r\n\r\n",
        b"GET /x HTTP/1.1\r\nHost: good.example@evil.example\r\n\r\n",
        b"GET /x HTTP/1.1\r\nHost : evil.example\r\n\r\n",
        b"GET /x HTTP/1.1\r\nHost: good.example\r\nConnection: Host\r\n\r\n",
        b"GET evil.example HTTP/1.1\r\nHost: good.example\r\n\r\n",
        b"POST /x HTTP/1.1\r\nHost: good.example\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /x HTTP/1.1\r\nHost: good.example\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\n",
        b"POST /x HTTP/1.1\r\nHost: good.example\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"POST /x HTTP/1.1\r\nHost: good.example\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /x\r\n\r\n",
        b"\0\r\n\r\n",
    ],
)
async def test_no_request_for_another_host_or_of_two_lengths_passes(tmp_path: Path, second: bytes) -> None:
    site = Site()
    async with bed(tmp_path, site) as made:
        channel = made.open(80, said=GET)
        await channel.heard(b"/a")
        seen = bytes(site.heard)
        channel.say(second)
        await channel.heard(b"HTTP/1.1 403 Forbidden")
        channel.end()
        await made.done()
        assert [one.verdict for one in made.verdicts] == ["allowed", "refused"]
        assert bytes(site.heard) == seen
        assert b"evil" not in site.heard


async def test_a_request_hidden_in_a_body_stays_a_body(tmp_path: Path) -> None:
    site = Site()
    hidden = b"0\r\n\r\nGET /evil HTTP/1.1\r\nHost: evil.example\r\n\r\n"
    chunked = b"POST /a HTTP/1.1\r\nHost: good.example\r\nTransfer-Encoding: CHUNKED\r\n\r\n"
    async with bed(tmp_path, site) as made:
        channel = made.open(
            80, said=chunked + b"%x;x=y\r\n%s\r\n0\r\nHost: evil.example\r\n\r\n" % (len(hidden), hidden)
        )
        await channel.heard(b"/a")
        channel.end()
        await made.only()
    assert bytes(site.heard).count(b"HTTP/1.1") == 2
    assert site.heard.endswith(b"0\r\n\r\n")
    assert b"x=y" not in site.heard


async def test_the_first_request_is_checked_before_anything_is_connected(tmp_path: Path) -> None:
    async with bed(tmp_path, Site()) as made:
        text = await refused(made, b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n")
        assert b"'evil.example', but the connection is to good.example:80" in text
        assert (made.accepted, made.looked_up) == (0, [])


async def test_a_websocket_becomes_a_pipe_and_http2_does_not(tmp_path: Path) -> None:
    site = Site(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhi")
    upgrade = b"GET / HTTP/1.1\r\nHost: good.example\r\nConnection: Upgrade, keep-alive\r\nUpgrade: %s\r\n\r\n"
    async with bed(tmp_path, site) as made:
        channel = made.open(80, said=upgrade % b"websocket" + b"early")
        await channel.heard(b"hi")
        channel.say(b"\0frame")
        await channel.heard(b"early\0frame")
        channel.end()
        await made.only()
        assert channel.orderly
    site = Site()
    async with bed(tmp_path / "other", site) as made:
        channel = made.open(80, said=upgrade % b"h2c")
        await channel.heard(b"200")
        channel.end()
        await made.only()
    assert b"pgrade" not in site.heard
    assert b"Connection: keep-alive" in site.heard


async def test_a_host_that_leaves_an_idle_connection_ends_it_in_the_guest(tmp_path: Path) -> None:
    leave = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody")
        await leave.wait()

    async with bed(tmp_path, serve) as made:
        channel = made.open(80, said=GET)
        await channel.heard(b"body")
        assert not channel.eof
        leave.set()
        await channel.ended()
        assert not channel.closed
        channel.end()
        await made.only()
        assert channel.orderly


async def test_a_host_whose_answer_ends_with_the_connection_ends_it_in_the_guest(tmp_path: Path) -> None:
    async with bed(tmp_path, Site(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nbody")) as made:
        channel = made.open(80, said=GET)
        assert (await channel.ended()).endswith(b"body\r\n0\r\n\r\n")
        channel.end()
        await made.only()
        assert channel.orderly


async def test_a_large_body_passes_both_ways_unchanged(tmp_path: Path) -> None:
    body = bytes(range(256)) * 4096

    async def mirror(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
        writer.write(await reader.readexactly(len(body)))
        await writer.drain()

    async with bed(tmp_path, mirror) as made:
        head = b"PUT /a HTTP/1.1\r\nHost: good.example\r\nContent-Length: %d\r\n\r\n" % len(body)
        channel = made.open(80, said=head)
        for at in range(0, len(body), 65536):
            channel.say(body[at : at + 65536])
        text = await channel.heard(b"\r\n\r\n")
        while len(text.partition(b"\r\n\r\n")[2]) < len(body):
            channel.changed.clear()
            await asyncio.wait_for(channel.changed.wait(), 20)
            text = bytes(channel.to_guest)
        assert text.partition(b"\r\n\r\n")[2] == body
        channel.end()
        await made.only()


async def test_a_host_that_answers_garbage_is_a_bad_gateway(tmp_path: Path) -> None:
    async with bed(tmp_path, Site(b"garbage\r\n\r\n")) as made:
        channel = made.open(80, said=GET)
        assert b"HTTP/1.1 502" in await channel.ended()
        channel.end()
        assert "HTTP/1.1" in (await made.only()).reason


async def test_an_endless_head_is_refused(tmp_path: Path) -> None:
    async with bed(tmp_path, Site()) as made:
        assert b" 403 " in await refused(made, b"GET /" + b"a" * 100_000)
    async with bed(tmp_path / "slow", Site(), first_words=0.05) as made:
        assert b"in time" in await refused(made, b"GET / HTTP/1.1\r\nHost:")


@given(st.binary(max_size=200), st.sampled_from([b"", b"GET / HTTP/1.1\r\nHost: ", b"POST http://"]))
def test_what_passes_the_check_names_the_decided_host_to_any_reader(tail: bytes, head: bytes) -> None:
    guest = h11.Connection(h11.SERVER)
    guest.receive_data(head + tail + b"\r\n\r\n")
    try:
        event = guest.next_event()
        if not isinstance(event, h11.Request):
            return
        request = checked(event, NAME, 80)
    except (h11.RemoteProtocolError, HttpRefusedError):
        return
    wire = h11.Connection(h11.CLIENT).send(request)
    assert wire is not None
    assert wire.lower().count(b"\r\nhost:") == 1


@given(st.binary(min_size=1, max_size=300))
def test_any_first_words_are_recognized_or_waited_for(words: bytes) -> None:
    assert recognize(words) in {None, *Protocol}


@pytest.mark.parametrize("line", [b"GET / HTTP/1.1\r\n", b"\r\n\r\nget\t/ http/1.0\n", b"FOO bar HTTP/1.1\n",
                                  b" GET / HTTP/1.1\r\n", b"PRI * HTTP/2.0\r\n",
                                  b"GET /" + b"a" * 17_000])  # fmt: skip
def test_what_a_lenient_server_takes_for_http_is_http_however_it_is_split(line: bytes) -> None:
    seen = [recognize(line[: end + 1]) for end in range(len(line))]
    assert set(seen) == {None, Protocol.HTTP}
    assert seen[-1] is Protocol.HTTP


@given(st.binary(max_size=100))
def test_a_git_packet_of_any_content_is_refused_or_taken(content: bytes) -> None:
    packet = b"%04xgit-upload-pack " % (len(content) + 20) + content
    try:
        assert check_git(packet, NAME)
    except SpeechError:
        assert b"\0host=" in content
