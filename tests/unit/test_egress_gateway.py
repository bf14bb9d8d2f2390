"""A guest's connection through the gateway to a real server: what is let through, what is refused, what is noted."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from pathlib import Path

import pytest
import trustme
from gateway_bed import NAME, POLICY, Bed, GuestChannel, bed
from inspection_bed import SocketChannel
from test_egress_tls import message, real_hello, records, server_hello, server_name

from agentvm_kernel.egress.access import Access, AccessLimits
from agentvm_kernel.egress.authority import Authority
from agentvm_kernel.egress.channel import Channel, Opening
from agentvm_kernel.egress.inspection import Inspection
from agentvm_kernel.egress.inspector import Connect
from agentvm_kernel.egress.names import Pattern
from agentvm_kernel.egress.policy import Decision, Mode, Policy, Rule
from agentvm_kernel.egress.secrets import SecretStore

HELLO = real_hello(NAME)
RETRY = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


async def banner(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-server\r\n")
    await echo(reader, writer)


async def refused(made: Bed, channel: GuestChannel) -> str:
    """Return why, after checking that nothing reached the server and that it was noted once."""
    async with asyncio.timeout(20):
        await made.tasks[-1]
    assert channel.closed
    connection = made.verdicts[-1]
    assert (connection.verdict, connection.bytes_sent, connection.bytes_received) == ("refused", 0, 0)
    assert made.accepted == 0
    assert len(made.verdicts) == len(made.tasks) == made.access.counters.refused
    return connection.reason


async def test_tls_for_the_decided_name_passes_both_ways_and_is_noted(tmp_path: Path) -> None:
    async with bed(tmp_path, echo) as made:
        channel = made.open(443, "GOOD.example.", HELLO)
        await channel.heard(HELLO)
        channel.say(b"more")
        await channel.heard(b"more")
        (live,) = made.log.of("session")
        assert live.duration is None
        channel.end()
        connection = await made.only()
        assert channel.orderly
        assert (connection.name, connection.verdict, connection.protocol) == (NAME, "allowed", "tls")
        assert connection.bytes_sent == connection.bytes_received == len(HELLO) + 4
        assert connection.address == "127.0.0.1"
        assert made.looked_up == [NAME]
        assert [one.verdict for one in made.verdicts] == ["allowed"]


async def test_a_hello_byte_by_byte_passes(tmp_path: Path) -> None:
    async with bed(tmp_path, echo) as made:
        channel = made.open(443)
        for at in range(len(HELLO)):
            channel.say(HELLO[at : at + 1])
        assert await channel.heard(HELLO) == HELLO


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (real_hello("evil.example"), "names 'evil.example'"),
        (real_hello(None), "names no host"),
        (records(message(server_name(b"good.example"), b"\xfe\x0d\0\1x")), "hides a name"),
        (records(message(server_name(b"good.example\0.evil.example"))), "letters, digits"),
        (b"\x16\3\1\xff\xff", "length"),
        (b"SSH-2.0-x\r\n", "only http or tls"),
        (b"\0\1\2", "only http or tls"),
    ],
)
async def test_on_443_only_tls_for_the_decided_name_passes(tmp_path: Path, said: bytes, reason: str) -> None:
    async with bed(tmp_path, echo) as made:
        assert reason in await refused(made, made.open(443, said=said))


async def test_another_name_is_refused_on_every_port(tmp_path: Path) -> None:
    async with bed(tmp_path, echo) as made:
        made.access.policy = POLICY
        for port in (80, 443, 9418):
            assert "evil.example" in await refused(made, made.open(port, said=real_hello("evil.example")))
        for port in (22, 5000):
            channel = made.open(port, said=real_hello("evil.example"))
            await made.done()
            assert "evil.example" in made.verdicts[-1].reason
            assert not channel.to_guest


async def test_a_rule_may_let_hidden_names_pass_but_never_wrong_ones(tmp_path: Path) -> None:
    async with bed(tmp_path, echo) as made:
        made.access.policy = Policy().plus([Rule(Pattern.parse(NAME), tls_name_required=False)])
        assert "evil.example" in await refused(made, made.open(443, said=real_hello("evil.example")))
        hello = real_hello(None)
        assert await made.open(443, said=hello).heard(hello) == hello


async def test_the_second_hello_of_a_retry_is_checked_too(tmp_path: Path) -> None:
    heard: list[bytes] = []

    async def retry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readexactly(len(HELLO)))
        writer.write(server_hello(RETRY, b"\3\4"))
        heard.append(await reader.read(65536))

    async with bed(tmp_path, retry) as made:
        channel = made.open(443, said=HELLO)
        await channel.heard(RETRY)
        channel.say(b"\x14\3\3\0\1\1" + real_hello("evil.example"))
        connection = await made.only()
        assert connection.verdict == "refused"
        assert connection.tls_version == "1.3"
        assert channel.closed
        assert not channel.eof
    assert heard in ([HELLO], [HELLO, b""])


async def test_a_hello_that_never_ends_is_given_up(tmp_path: Path) -> None:
    async with bed(tmp_path, echo, first_words=0.05) as made:
        assert "within" in await refused(made, made.open(443, said=HELLO[:20]))


@pytest.mark.parametrize("port", [22, 443, 9418, 25])
async def test_what_is_not_allowed_is_reset_at_once(tmp_path: Path, port: int) -> None:
    async with bed(tmp_path, echo) as made:
        channel = made.open(port, "evil.example", said=b"\0binary")
        assert await refused(made, channel) == "evil.example is not allowed."
        assert not channel.to_guest
        assert not channel.eof
        assert made.looked_up == []


@pytest.mark.parametrize("name", ["evil.example", None, "good.example\0.evil.example", "0x7f.1", "a" * 300, ""])
async def test_a_refused_request_is_answered_in_words(tmp_path: Path, name: str | None) -> None:
    async with bed(tmp_path, echo) as made:
        channel = made.open(80, name, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", address="169.254.169.254")
        text = await channel.ended()
        channel.end()
        reason = await refused(made, channel)
        assert text.startswith(b"HTTP/1.1 403 Forbidden\r\n")
        assert reason.encode() in text
        assert b"%net allow evil.example" in text or name != "evil.example"
        assert channel.orderly
        assert made.looked_up == []


async def test_isolated_refuses_even_what_rules_allow(tmp_path: Path) -> None:
    async with bed(tmp_path, echo) as made:
        made.access.policy = Policy(Mode.ISOLATED, POLICY.rules)
        assert await refused(made, made.open(443, said=HELLO)) == "The network is off."
        assert made.looked_up == []


async def test_a_name_that_leads_to_the_host_is_refused_and_never_connected_to(tmp_path: Path) -> None:
    async with bed(tmp_path, echo, reachable=()) as made:
        for _ in range(2):
            assert "the host's own" in await refused(made, made.open(443, said=HELLO))
        made.addresses = [("::ffff:127.0.0.1", made.addresses[0][1])]
        assert "the host's own" in await refused(made, made.open(443, said=HELLO))
        assert made.verdicts[-1].address == "::ffff:127.0.0.1"


async def test_a_name_that_changes_its_address_is_checked_each_time_and_looked_up_once_each(tmp_path: Path) -> None:
    async with bed(tmp_path, echo) as made:
        await made.open(443, said=HELLO).heard(HELLO)
        made.addresses = [("169.254.169.254", 80)]
        made.open(443, said=HELLO)
        await made.tasks[-1]
        assert [one.verdict for one in made.verdicts] == ["allowed", "refused"]
        assert made.looked_up == [NAME, NAME]


async def test_an_unknown_name_fails_in_words(tmp_path: Path) -> None:
    async with bed(tmp_path, echo) as made:
        made.addresses = []
        channel = made.open(80, said=b"GET / HTTP/1.1\r\nHost: good.example\r\n\r\n")
        assert (await channel.ended()).startswith(b"HTTP/1.1 502 ")
        channel.end()
        assert (await made.only()).verdict == "failed"
        assert made.access.counters.failed == 1


async def test_ssh_where_the_server_speaks_first_passes_and_nothing_else_does(tmp_path: Path) -> None:
    async with bed(tmp_path, banner) as made:
        channel = made.open(22)
        await channel.heard(b"SSH-2.0-server")
        channel.say(b"SSH-2.0-client\r\n")
        await channel.heard(b"SSH-2.0-client\r\n")
        channel.end()
        await made.done()
        assert channel.orderly
        other = made.open(22)
        await other.heard(b"SSH-2.0-server")
        other.say(b"\0tunnel")
        await made.tasks[-1]
        assert made.verdicts[-1].reason == "On port 22 only ssh is let through, and this is tcp."


async def test_gits_own_protocol_passes_for_the_decided_host(tmp_path: Path) -> None:
    def packet(host: bytes) -> bytes:
        body = b"git-upload-pack /a.git\0host=" + host + b"\0\0version=2\0"
        return b"%04x" % (len(body) + 4) + body

    async with bed(tmp_path, echo) as made:
        assert "evil.example" in await refused(made, made.open(9418, said=packet(b"evil.example")))
        assert "only git" in await refused(made, made.open(9418, said=b"hello\n"))
        good = packet(b"good.example:9418")
        channel = made.open(9418)
        for at in range(len(good)):
            channel.say(good[at : at + 1])
        assert await channel.heard(good) == good


async def test_a_plain_protocol_passes_on_a_port_that_a_rule_names(tmp_path: Path) -> None:
    async with bed(tmp_path, echo) as made:
        channel = made.open(5000, said=b"PING\r\n")
        await channel.heard(b"PING\r\n")
        channel.end()
        assert (await made.only()).protocol == "tcp"
        assert channel.orderly


async def test_resets_go_through_in_both_directions(tmp_path: Path) -> None:
    gone = asyncio.Event()

    async def wait_for_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read(65536))[:1])
        try:
            await reader.read()
        finally:
            gone.set()

    async def slam(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65536)
        writer.transport.abort()

    async with bed(tmp_path, wait_for_end) as made:
        channel = made.open(5000, said=b"\0")
        await channel.heard(b"\0")
        channel.reset()
        await made.done()
        await asyncio.wait_for(gone.wait(), 20)
    async with bed(tmp_path / "other", slam) as made:
        channel = made.open(5000, said=b"\0")
        await channel.ended()
        channel.end()
        await made.done()
        assert channel.closed


async def test_one_guests_connections_are_bounded_and_a_flood_is_one_line(tmp_path: Path) -> None:
    async with bed(tmp_path, echo) as made:
        made.access.limits = AccessLimits(connections=5, connections_per_second=1e6)
        reached: list[str] = []
        made.access.on_limit = reached.append
        kept = [made.open(443, said=HELLO) for _ in range(5)]
        for channel in kept:
            await channel.heard(HELLO)
        flood = [made.open(443, said=HELLO) for _ in range(10_000)]
        await asyncio.gather(*made.tasks[5:])
        assert all(channel.closed and not channel.to_guest for channel in flood)
        assert made.access.open == made.gateway.open == 5
        assert made.access.counters.refused == made.access.own.refused == 10_000
        assert reached == ["connections"] * 10_000
        for channel in kept:
            channel.end()
        connections = await made.done()
        assert len(connections) < 100
        assert sum(one.count for one in connections if one.verdict == "refused") == 10_000
        assert made.access.open == made.gateway.open == 0
        assert made.accepted == 5


async def test_another_guest_is_served_beside_a_greedy_one(tmp_path: Path) -> None:
    async with bed(tmp_path, echo) as made:
        made.access.limits = AccessLimits(connections=3)
        for _ in range(10):
            made.open(443)
        made.access = Access("other", "book", "vm-2", POLICY)
        channel = made.open(443, said=HELLO)
        assert await channel.heard(HELLO) == HELLO


async def test_a_spent_budget_cuts_the_connection_and_refuses_the_next(tmp_path: Path) -> None:
    async with bed(tmp_path, echo) as made:
        made.access.policy = Policy().plus([Rule(Pattern.parse(f"{NAME}:5000"), max_bytes=100)])
        channel = made.open(5000, said=b"\0" * 40)
        await channel.heard(b"\0" * 40)
        channel.say(b"\0" * 40)
        connection = await made.only()
        assert channel.closed
        assert not channel.eof
        assert connection.verdict == "allowed"
        assert "budget" in connection.reason
        made.access.spent[made.access.policy.rules[0]] = 100
        made.open(5000)
        await made.tasks[-1]
        assert made.verdicts[-1].verdict == "refused"
        assert made.accepted == 1


@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_of_an_inspected_connection_the_hosts_tls_is_noted_and_one_that_proves_nothing_has_failed(
    tmp_path: Path, version: ssl.TLSVersion, *, trusted: bool
) -> None:
    authority = trustme.CA()
    host, gateway = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    host.minimum_version = host.maximum_version = version
    authority.issue_cert(NAME).configure_cert(host)
    if trusted:
        authority.configure_trust(gateway)
    secrets = SecretStore(tmp_path, "tag")
    inspection = Inspection(Authority.of(tmp_path), secrets, gateway)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ssl.SSLError):  # the gateway does not trust it
            await writer.start_tls(host)
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
            await writer.drain()

    async with bed(tmp_path, answer) as made:
        made.gateway.inspector = inspection
        made.access.policy = Policy().plus([Rule(Pattern.parse(NAME), inspect=True)])
        opening, over = Opening(NAME, "198.18.0.7", 443), asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await made.gateway.serve(made.access, opening, SocketChannel(reader, writer))
            over.set()

        ours = ssl.create_default_context(cadata=Authority.of(tmp_path).pem)
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as guests:
            port = guests.sockets[0].getsockname()[1]
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=ours, server_hostname=NAME)
            writer.write(f"GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
            heard = await reader.read()
            writer.close()
            await over.wait()
        (connection,) = made.log.of("session")
    assert heard.startswith(b"HTTP/1.1 204" if trusted else b"HTTP/1.1 502")
    assert connection.verdict == ("allowed" if trusted else "failed")
    assert connection.tls_version == (version.name.removeprefix("TLSv").replace("_", ".") if trusted else "")
    assert (made.access.counters.refused, made.access.counters.failed) == (0, int(not trusted))


async def test_a_change_of_policy_cuts_nothing_that_was_allowed(tmp_path: Path) -> None:
    async with bed(tmp_path, echo) as made:
        channel = made.open(443, said=HELLO)
        await channel.heard(HELLO)
        made.access.policy = POLICY.deny(Pattern.parse(NAME))
        channel.say(b"still")
        await channel.heard(b"still")
        made.open(443, said=HELLO)
        await made.tasks[-1]
        assert made.verdicts[-1].verdict == "refused"


async def test_an_inspector_gets_the_connection_from_its_first_byte(tmp_path: Path) -> None:
    class Taker:
        def wants(self, access: Access, decision: Decision) -> bool:
            return decision.name == NAME

        async def serve(self, access: Access, decision: Decision, channel: Channel, connect: Connect) -> None:
            assert await channel.receive() == HELLO
            _, writer = await connect()
            writer.write(b"inspected")
            await channel.send(b"by me")
            await channel.send_eof()

    async with bed(tmp_path, echo) as made:
        made.gateway.inspector = Taker()
        channel = made.open(443, said=HELLO)
        await channel.heard(b"by me")
        connection = await made.only()
        assert (connection.bytes_sent, connection.bytes_received) == (len(HELLO), 5)
