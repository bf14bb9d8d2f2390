"""Inspected hosts: TLS on both sides, secrets in requests and in nothing else, recordings that are replayed."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import keyring
import keyring.backends.fail
import pytest
from aiohttp import web
from inspection_bed import NAME, Bed, SocketChannel, inspecting

from agentvm_kernel.egress.cassette import Cassette
from agentvm_kernel.egress.guest_tls import GuestTls, GuestTlsError
from agentvm_kernel.egress.http1 import HttpRefusedError
from agentvm_kernel.egress.inspector import HostTlsError
from agentvm_kernel.egress.names import Pattern
from agentvm_kernel.egress.policy import Decision, Rule
from agentvm_kernel.egress.room import Room
from agentvm_kernel.errors import CassetteError, HostError, SecretError

VALUE = "sk-live-0123456789abcdef"
PLACEHOLDER = "agentvm-secret-API_KEY"
MASK = (PLACEHOLDER + "*" * len(VALUE))[: len(VALUE)]


@pytest.fixture(autouse=True)
def _no_keyring() -> Iterator[None]:
    before = keyring.get_keyring()
    keyring.set_keyring(keyring.backends.fail.Keyring())
    yield
    keyring.set_keyring(before)


def keep(bed: Bed, header: str = "Authorization") -> dict[str, str]:
    bed.secrets.put("API_KEY", NAME, bed.port, header, VALUE)
    return {header: f"Bearer {PLACEHOLDER}"}


async def echo(request: web.Request) -> web.Response:
    """Send back all that came, as httpbin does."""
    seen = {"headers": dict(request.headers), "body": (await request.read()).decode()}
    return web.json_response(seen, headers={"X-Seen": request.headers.get("Authorization", "")})


async def hello(request: web.Request) -> web.Response:
    await request.read()
    return web.Response(text="hello")


async def test_requests_on_one_connection_reach_a_verified_host_and_come_back(tmp_path: Path) -> None:
    async with inspecting(tmp_path, echo) as bed, bed.program() as program:
        for number in range(3):
            async with program.post(f"/{number}?q=1", data=b"x" * 100_000) as answer:
                assert (await answer.json())["body"] == "x" * 100_000
    assert [path for path, _ in bed.hits] == ["/0?q=1", "/1?q=1", "/2?q=1"]
    assert bed.connected == 1
    assert bed.errors == []


async def test_the_host_gets_the_secret_and_the_guest_never_does(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with (
        inspecting(tmp_path, echo) as bed,
        bed.program() as program,
        program.get("/", headers=keep(bed)) as answer,
    ):
        text = await answer.text()
        seen = json.loads(text)["headers"]["Authorization"]
        header = answer.headers["X-Seen"]
    assert bed.hits[0][1]["Authorization"] == f"Bearer {VALUE}"
    assert seen == header == f"Bearer {MASK}"
    assert VALUE not in text
    assert VALUE not in caplog.text
    assert bed.errors == []


async def test_the_placeholder_stays_in_other_headers_the_path_and_the_body(tmp_path: Path) -> None:
    async with inspecting(tmp_path, echo) as bed, bed.program() as program:
        keep(bed, "X-Key")
        headers = {"Authorization": PLACEHOLDER, "X-Other": PLACEHOLDER}
        async with program.post(f"/?key={PLACEHOLDER}", data=PLACEHOLDER, headers=headers) as answer:
            assert (await answer.json())["body"] == PLACEHOLDER
    path, sent = bed.hits[0]
    assert path == f"/?key={PLACEHOLDER}"
    assert sent["Authorization"] == sent["X-Other"] == PLACEHOLDER


async def test_another_notebooks_secret_is_not_put_in(tmp_path: Path) -> None:
    async with inspecting(tmp_path, echo) as bed, bed.program() as program:
        for notebook, sent in (("other", PLACEHOLDER), (bed.access.notebook, VALUE)):
            bed.secrets.put("API_KEY", NAME, bed.port, "Authorization", VALUE, notebooks=[notebook])
            async with program.get("/", headers={"Authorization": PLACEHOLDER, "Connection": "close"}) as answer:
                await answer.read()
            assert bed.hits[-1][1]["Authorization"] == sent


async def test_another_hosts_secret_is_not_put_in(tmp_path: Path) -> None:
    async with inspecting(tmp_path, echo) as bed, bed.program() as program:
        bed.secrets.put("API_KEY", "other.example.org", bed.port, "Authorization", VALUE)
        async with program.get("/", headers={"Authorization": PLACEHOLDER}) as answer:
            await answer.read()
    assert bed.hits[0][1]["Authorization"] == PLACEHOLDER


async def test_an_answer_is_asked_for_in_a_form_in_which_a_secret_can_be_seen(tmp_path: Path) -> None:
    async def compressing(request: web.Request) -> web.Response:
        answer = web.Response(text=request.headers["Authorization"] * 100)
        answer.enable_compression()
        return answer

    async with (
        inspecting(tmp_path, compressing) as bed,
        bed.program() as program,
        program.get("/", headers=keep(bed)) as answer,
    ):
        assert await answer.text() == f"Bearer {MASK}" * 100
    assert bed.hits[0][1]["Accept-Encoding"] == "identity"


async def test_a_secret_that_comes_back_in_pieces_is_found_and_what_cannot_be_one_is_not_held_back(
    tmp_path: Path,
) -> None:
    go_on = asyncio.Event()

    async def trickle(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        await answer.write(b"data: first\n\n")
        await go_on.wait()
        for letter in request.headers["Authorization"]:
            await answer.write(letter.encode())
        await answer.write_eof()
        return answer

    async with (
        inspecting(tmp_path, trickle) as bed,
        bed.program() as program,
        program.get("/", headers=keep(bed)) as answer,
    ):
        assert await answer.content.readany() == b"data: first\n\n"
        go_on.set()
        assert await answer.text() == f"Bearer {MASK}"


async def test_an_answer_that_ends_as_a_secret_begins_is_whole(tmp_path: Path) -> None:
    async def begin(request: web.Request) -> web.Response:
        return web.Response(text=f"it begins with {VALUE[:7]}")

    async with (
        inspecting(tmp_path, begin) as bed,
        bed.program() as program,
        program.get("/", headers=keep(bed)) as answer,
    ):
        assert await answer.text() == f"it begins with {VALUE[:7]}"


async def test_basic_credentials_are_put_in_and_blotted_out_of_answers(tmp_path: Path) -> None:
    async with inspecting(tmp_path, echo) as bed, bed.program() as program:
        keep(bed)
        ours = base64.b64encode(f"x:{PLACEHOLDER}".encode()).decode()
        async with program.get("/", headers={"Authorization": f"Basic {ours}"}) as answer:
            text = await answer.text()
    real = base64.b64encode(f"x:{VALUE}".encode()).decode()
    assert bed.hits[0][1]["Authorization"] == f"Basic {real}"
    assert real not in text


async def test_a_websocket_carries_messages_and_no_secret(tmp_path: Path) -> None:
    async def chat(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(f"{message.data}, {request.headers['Authorization']}")
        return socket

    async with (
        inspecting(tmp_path, chat) as bed,
        bed.program() as program,
        program.ws_connect("/", headers=keep(bed), compress=15) as socket,
    ):
        for word in ("one", "two"):
            await socket.send_str(word)
            assert await socket.receive_str() == f"{word}, Bearer {MASK}"
    assert "Sec-WebSocket-Extensions" not in bed.hits[0][1]


async def test_a_host_that_cannot_prove_its_name_gets_nothing_and_the_program_is_told(tmp_path: Path) -> None:
    for more in ({"certified": "other.example.org"}, {"trusted": False}):
        async with (
            inspecting(tmp_path, echo, **more) as bed,
            bed.program() as program,
            program.get("/", headers=keep(bed)) as answer,
        ):  # type: ignore[arg-type]
            assert answer.status == 502
            assert "cannot prove" in await answer.text()
        assert bed.hits == []
        assert isinstance(bed.errors[0], HostTlsError)


async def test_a_host_that_speaks_no_tls_is_said(tmp_path: Path) -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hello\r\n" * 10)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(babble, "127.0.0.1", 0)
    async with server, inspecting(tmp_path, echo) as bed, bed.program() as program:
        bed.host_port = server.sockets[0].getsockname()[1]
        async with program.get("/", headers=keep(bed)) as answer:
            assert answer.status == 502
            assert "do not agree on TLS" in await answer.text()
    assert isinstance(bed.errors[0], HostTlsError)


async def test_a_request_for_another_host_inside_of_tls_is_refused(tmp_path: Path) -> None:
    async with (
        inspecting(tmp_path, echo) as bed,
        bed.program() as program,
        program.get("/", headers=keep(bed) | {"Host": "evil.example.org"}) as answer,
    ):
        assert answer.status == 403
        assert "evil.example.org" in await answer.text()
    assert bed.connected == 0
    assert isinstance(bed.errors[0], HttpRefusedError)


async def test_a_program_that_does_not_trust_the_gateway_is_named_as_the_cause(tmp_path: Path) -> None:
    async with inspecting(tmp_path, echo) as bed:
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.open_connection("127.0.0.1", bed.port, ssl=ssl.create_default_context(), server_hostname=NAME)
    assert isinstance(bed.errors[0], GuestTlsError)
    assert "trust" in bed.errors[0].hint
    assert bed.connected == 0


async def test_garbage_for_tls_ends_the_connection(tmp_path: Path) -> None:
    async with inspecting(tmp_path, echo) as bed:
        reader, writer = await asyncio.open_connection("127.0.0.1", bed.port)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        await reader.read()
        writer.close()
    assert isinstance(bed.errors[0], GuestTlsError)


async def test_a_silent_program_does_not_hold_a_connection(tmp_path: Path) -> None:
    async with inspecting(tmp_path, echo) as bed:
        reader, writer = await asyncio.open_connection("127.0.0.1", bed.port)
        ours, theirs = asyncio.StreamReader(), writer
        tls = GuestTls(SocketChannel(ours, theirs), bed.inspection._authority.context(NAME), NAME)
        with pytest.raises(GuestTlsError, match="in time"):
            await tls.shake_hands(0.01)
        writer.close()
        await reader.read()


async def test_without_its_keyring_a_secret_is_not_sent_and_the_program_is_told(tmp_path: Path) -> None:
    async with inspecting(tmp_path, echo) as bed, bed.program() as program:
        headers = keep(bed)
        listing = tmp_path / "secrets.json"
        values = json.loads(listing.read_text())
        values["secrets"][0] |= {"kept": "keyring", "value": None}
        listing.write_text(json.dumps(values))
        async with program.get("/", headers=headers) as answer:
            assert answer.status == 502
            assert "keyring" in await answer.text()
    assert bed.hits == []
    assert isinstance(bed.errors[0], SecretError)


async def test_hosts_with_a_secret_and_hosts_whose_rule_says_so_are_wanted(tmp_path: Path) -> None:
    async with inspecting(tmp_path, echo) as bed:
        pattern = Pattern.parse("b.example")
        bed.secrets.put("API_KEY", "a.example", 443, "Authorization", VALUE)
        for name, port, inspect, wanted in [
            ("a.example", 443, False, True),
            ("a.example", 80, False, False),
            ("b.example", 443, False, False),
            ("b.example", 443, True, True),
            (None, 443, True, False),
        ]:
            decision = Decision(name, port, True, Rule(pattern, inspect=inspect), "")
            assert bed.inspection.wants(bed.access, decision) is wanted
        assert not bed.inspection.wants(bed.access, Decision("b.example", 443, True, None, ""))
        (tmp_path / "secrets.json").chmod(0o644)
        with pytest.raises(HostError):
            bed.inspection.wants(bed.access, Decision("b.example", 443, True, None, ""))


async def test_what_was_recorded_is_replayed_without_the_host_and_without_secrets(tmp_path: Path) -> None:
    async with inspecting(tmp_path, echo) as bed:
        headers = keep(bed)
        cassette = bed.access.cassette = Cassette.record(tmp_path, "demo")
        answers = []
        async with bed.program() as program:
            for number in range(2):
                async with program.post(f"/{number}", data=b"ask", headers=headers) as answer:
                    answers.append(await answer.text())
        cassette.close()
        text = cassette.path.read_text()
        assert cassette.exchanges == 2
        assert VALUE not in text
        assert PLACEHOLDER not in json.loads(text.splitlines()[1])["request"]["headers"]
        before = bed.connected
        bed.access.cassette = Cassette.replay(tmp_path, "demo")
        async with bed.program() as program:
            for number in range(2):
                async with program.post(f"/{number}", data=b"ask", headers=headers) as answer:
                    assert answer.status == 200
                    assert await answer.text() == answers[number]
        assert bed.connected == before
    assert bed.errors == []


async def test_plain_http_is_recorded_and_replayed_and_gets_no_secret(tmp_path: Path) -> None:
    async with inspecting(tmp_path, echo, plain=True) as bed:
        headers = keep(bed)
        bed.access.cassette = Cassette.record(tmp_path, "demo")
        async with bed.program() as program, program.get("/", headers=headers) as answer:
            first = await answer.text()
        assert bed.hits[0][1]["Authorization"] == f"Bearer {PLACEHOLDER}"
        bed.access.cassette.close()
        bed.access.cassette = Cassette.replay(tmp_path, "demo")
        async with bed.program() as program:
            async with program.get("/") as answer:
                assert await answer.text() == first
            async with program.get("/other") as answer:
                assert answer.status == 502
    assert len(bed.hits) == 1
    assert isinstance(bed.errors[0], CassetteError)


async def test_a_request_that_was_not_recorded_fails_loudly(tmp_path: Path) -> None:
    async with inspecting(tmp_path, hello) as bed:
        bed.access.cassette = Cassette.record(tmp_path, "demo")
        bed.access.cassette.close()
        bed.access.cassette = Cassette.replay(tmp_path, "demo")
        async with bed.program() as program, program.get("/new") as answer:
            assert answer.status == 502
            assert "/new was not recorded" in await answer.text()
    assert bed.connected == 0
    assert isinstance(bed.errors[0], CassetteError)


async def test_a_connection_kept_from_before_does_not_slip_past_a_recording_or_a_replay(tmp_path: Path) -> None:
    async def ask(program: aiohttp.ClientSession) -> tuple[int, str]:
        async with program.get("/") as answer:
            return answer.status, await answer.text()

    async with inspecting(tmp_path, hello) as bed, bed.program() as program:
        assert await ask(program) == (200, "hello")
        bed.access.cassette = Cassette.record(tmp_path, "demo")
        status, text = await ask(program)
        assert status == 502
        assert "new connection" in text
        assert [await ask(program) for _ in range(2)] == [(200, "hello")] * 2
        assert bed.access.cassette.exchanges == 2
        bed.access.cassette.close()
        bed.access.cassette = Cassette.replay(tmp_path, "demo")
        assert (await ask(program))[0] == 502
        assert await ask(program) == (200, "hello")
        bed.access.cassette = None
        assert "new connection" in (await ask(program))[1]
    assert len(bed.hits) == 3


async def test_heads_and_waiting_bodies_are_replayed_too(tmp_path: Path) -> None:
    async with inspecting(tmp_path, hello) as bed:
        bed.access.cassette = Cassette.record(tmp_path, "demo")
        for _ in range(2):
            async with bed.program() as program:
                async with program.head("/") as answer:
                    assert answer.headers["Content-Length"] == "5"
                async with program.put("/", data=b"x" * 70_000, expect100=True) as answer:
                    assert await answer.text() == "hello"
            if bed.access.cassette.recording:
                bed.access.cassette.close()
                bed.access.cassette = Cassette.replay(tmp_path, "demo")
    assert len(bed.hits) == 2
    assert bed.errors == []


async def test_a_websocket_is_not_recorded_silently(tmp_path: Path) -> None:
    async def chat(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.receive()
        return socket

    async with inspecting(tmp_path, chat) as bed, bed.program() as program:
        bed.access.cassette = Cassette.record(tmp_path, "demo")
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await program.ws_connect("/")
        bed.access.cassette.close()
    assert isinstance(bed.errors[0], CassetteError)


async def test_a_body_that_is_too_long_for_a_recording_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentvm_kernel.egress.exchange.LARGEST_BODY", 1000)
    async with inspecting(tmp_path, hello) as bed, bed.program() as program:
        bed.access.cassette = Cassette.record(tmp_path, "demo")
        async with program.post("/", data=b"x" * 1001) as answer:
            assert answer.status == 502
            assert "takes no request" in await answer.text()
        bed.access.cassette.close()
    assert isinstance(bed.errors[0], CassetteError)


@pytest.mark.parametrize("mode", ["record", "replay"])
async def test_all_connections_of_a_lease_together_hold_so_much_memory(tmp_path: Path, mode: str) -> None:
    """Else a guest with 512 of them, each in the middle of a long request, could fill the host's memory."""
    go = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield b"x" * 600
        await go.wait()

    async with inspecting(tmp_path, hello) as bed:
        bed.access.cassette = Cassette.record(tmp_path, "demo")
        async with bed.program() as program, program.post("/", data=b"x" * 600) as answer:
            assert answer.status == 200
        if mode == "replay":
            bed.access.cassette.close()
            bed.access.cassette = Cassette.replay(tmp_path, "demo")
        room = bed.access.room = Room(1000)
        async with bed.program() as first, bed.program() as second:
            waiting = asyncio.create_task(first.post("/", data=slowly()))
            while room._left > 400:  # noqa: ASYNC110 - nobody tells when the gateway has it
                await asyncio.sleep(0.001)
            async with second.post("/", data=b"x" * 600) as answer:
                assert answer.status == 502
                assert "Exchanges that are recorded or replayed hold" in await answer.text()
            go.set()
            async with await waiting as answer:
                assert answer.status == 200
        await asyncio.gather(*bed.serving, return_exceptions=True)
        assert room._left == 1000
        bed.access.cassette.close()
    assert isinstance(bed.errors[0], CassetteError)
