"""The guest's half of the network, in a real VM: unmodified programs, errors instead of hangs, ends that are clean."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from guest_network import GuestNetwork, guest_network

from agentvm_kernel.egress.channel import Opening
from agentvm_kernel.egress.tunnel import NetworkSettings

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

PYTHON = "import socket, sys\n"
MANY = (
    PYTHON
    + """
connections = [socket.create_connection(("many.example", 80)) for _ in range(200)]
for connection in connections:
    connection.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
answers = []
for connection in connections:
    answer = b""
    while data := connection.recv(1000):
        answer += data
    answers.append(answer.endswith(b"hello many.example\\n"))
print(answers.count(True))
"""
)
DIGEST = (
    PYTHON
    + """
connection = socket.create_connection(("upload.example", 9000))
connection.sendall(bytes(range(256)) * 20_000)
connection.shutdown(socket.SHUT_WR)
print(connection.recv(100).decode())
"""
)


def python(code: str, *, root: bool = False) -> str:
    return f"{'sudo ' if root else ''}python3 - <<'END' 2>&1\n{code}\nEND"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def network() -> AsyncIterator[GuestNetwork]:
    async with guest_network() as made:
        yield made


async def test_an_unmodified_program_reaches_a_host_by_name(network: GuestNetwork) -> None:
    network.openings.clear()
    assert await network.shell("curl -sS http://PyPI.example/") == "hello pypi.example\n0"
    (opening,) = network.openings
    assert (opening.name, opening.port) == ("pypi.example", 80)
    assert opening.address.startswith("198.18.")


async def test_a_raw_address_arrives_without_a_name(network: GuestNetwork) -> None:
    network.openings.clear()
    said = await network.shell("curl -sS telnet://93.184.216.34:443 </dev/null")
    # The reset may come before curl has looked at its new connection.
    assert "reset by peer" in said or "Could not connect" in said
    assert network.openings == [Opening(None, "93.184.216.34", 443)]


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b'x', ('8.8.8.8', 53))", "PermissionError"),
        (
            "s = socket.socket(socket.AF_INET, socket.SOCK_RAW, 1); s.sendto(bytes(8), ('8.8.8.8', 0))",
            "PermissionError",
        ),
        ("s = socket.socket(socket.AF_INET6); s.connect(('2606:4700::1111', 443))", "Network is unreachable"),
        ("s = socket.create_connection(('127.0.0.1', 1018)); s.recv(1)", "ConnectionResetError"),
    ],
    ids=["udp", "icmp", "ipv6", "the forwarder itself"],
)
async def test_what_is_not_carried_ends_with_an_error(network: GuestNetwork, code: str, error: str) -> None:
    network.openings.clear()
    assert error in await network.shell(python(PYTHON + code, root=True))
    assert network.openings == []


async def test_programs_of_the_guests_own_reach_each_other(network: GuestNetwork) -> None:
    code = """
server = socket.create_server(("0.0.0.0", 8080))
for address in ("127.0.0.1", "198.18.0.1"):
    client = socket.create_connection((address, 8080))
    server.accept()[0].sendall(b"own")
    print(client.recv(3))
"""
    network.openings.clear()
    assert (await network.shell(python(PYTHON + code))).count("b'own'") == 2
    assert network.openings == []


async def test_a_download_and_an_upload_arrive_whole(network: GuestNetwork) -> None:
    wanted = hashlib.sha256(bytes(range(256)) * 40_000).hexdigest()
    inbox = network.vm.machine.spec.inbox
    assert not inbox.stat().st_blocks, "what is short goes another way"
    assert wanted in await network.shell("curl -sS http://big.example/ | sha256sum")
    assert inbox.stat().st_blocks
    assert hashlib.sha256(bytes(range(256)) * 20_000).hexdigest() in await network.shell(python(DIGEST))


async def test_the_disk_of_the_inbox_is_read_by_root_alone_and_written_by_nobody(network: GuestNetwork) -> None:
    disk = "/dev/$(basename $(dirname $(grep -l agentvm-inbox /sys/block/*/serial)))"
    assert "Permission denied" in await network.shell(f"head -c 1 {disk} 2>&1")
    inbox = network.vm.machine.spec.inbox
    before = inbox.read_bytes()
    write = f"blockdev --setrw {disk}; echo changed | dd of={disk} conv=fsync"
    said = await network.shell(f"sudo sh -c 'head -c 1 {disk} | wc -c; {write}' 2>&1")
    assert said.startswith("1\n")
    assert not said.endswith("\n0"), "it cannot be written"
    assert inbox.read_bytes() == before


async def test_two_hundred_connections_at_once(network: GuestNetwork) -> None:
    assert await network.shell(python(MANY)) == "200\n0"


async def test_settings_reach_programs_and_trust_stores(network: GuestNetwork) -> None:
    assert network.tunnel is not None
    pem = "-----BEGIN CERTIFICATE-----\nMIIBagentvm\n-----END CERTIFICATE-----"
    await network.tunnel.configure(NetworkSettings(pem, {"API_KEY": "agentvm-secret-API_KEY"}))
    shown = await network.shell("echo $API_KEY; grep -c MIIBagentvm $SSL_CERT_FILE $NODE_EXTRA_CA_CERTS | cut -d: -f2")
    assert shown == "agentvm-secret-API_KEY\n1\n1\n0"
    kernel = await network.shell("sudo cat /proc/$(pgrep -f '[l]auncher.py' | head -1)/status | grep -c Name")
    assert kernel == "1\n0"
    await network.tunnel.configure(NetworkSettings())
    assert await network.shell(
        "echo $API_KEY$SSL_CERT_FILE; grep -c MIIBagentvm /etc/ssl/certs/ca-certificates.crt"
    ) == ("\n0\n1")


async def test_a_new_identity_ends_downloads_and_new_ones_work(network: GuestNetwork) -> None:
    old = network.tunnel
    assert old is not None
    # A process that outlives the link to the agent, as a cell's does.
    await network.shell("curl -sS -o /dev/null http://endless.example/ 2>/tmp/error >&2 & echo $! >/tmp/pid")
    await network.stuck.wait()
    await network.renew()
    await network.hang_up()
    assert old.lost.done()
    await network.dial()
    assert await network.shell("tail --pid=$(cat /tmp/pid) -f /dev/null; grep -c reset /tmp/error") == "1\n0"
    assert await network.shell("curl -sS http://again.example/") == "hello again.example\n0"


async def test_a_killed_forwarder_costs_the_guest_its_network_until_it_is_dialled_again(network: GuestNetwork) -> None:
    assert network.tunnel is not None
    assert await network.shell("sudo pkill -KILL -f '[f]orwarder.py'; echo killed") == "killed\n0"
    await network.tunnel.lost
    await network.hang_up()
    await network.dial()
    assert await network.shell("curl -sS http://back.example/") == "hello back.example\n0"


async def test_without_a_network_everything_is_refused_at_once(network: GuestNetwork) -> None:
    await network.vm.restrict("none")
    refused = await network.shell("getent hosts pypi.example; curl -sS http://198.18.0.2/ 2>&1")
    assert "reset" in refused or "Could not connect" in refused
    await network.vm.restrict("filtered")
    assert await network.shell("curl -sS http://pypi.example/") == "hello pypi.example\n0"
