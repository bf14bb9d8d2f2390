"""Unmodified programs in a VM, through the policy that ships, to servers that play the internet."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from egress_bed import Visitor, visitor
from internet import SITES, Internet, internet
from kernel_client import wait_until
from wares import BIG, WHEEL, digest_of

from agentvm_kernel.config import Paths

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]

AUTHORITY = "/tmp/authority.pem"
TRUST = dict.fromkeys(("CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "PIP_CERT", "SSL_CERT_FILE"), AUTHORITY)
PIP = ("/opt/agentvm/venv/bin/python", "-m", "pip", "install", "--quiet", "--no-cache-dir")
SSH = "ssh -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o BatchMode=yes"
SOURCES = "deb [trusted=yes] http://deb.debian.org/debian tiny main"
WEBSOCKET = """
import ssl
import tornado.httpclient, tornado.websocket
trust = ssl.create_default_context(cafile="/tmp/authority.pem")
for url in ("ws://good.example.org/socket", "wss://good.example.org/socket"):
    request = tornado.httpclient.HTTPRequest(url, ssl_options=trust if url.startswith("wss") else None)
    socket_there = await tornado.websocket.websocket_connect(request)
    for word in ("one", "two"):
        await socket_there.write_message(word)
        print(await socket_there.read_message())
    socket_there.close()
"""


@pytest.fixture(scope="module")
def world() -> Iterator[Internet]:
    with internet() as ours:
        yield ours


@pytest.fixture(scope="module")
def paths(world: Internet) -> Iterator[Paths]:
    with world.supervised("[network]\nconnections_per_second = 1000\n") as ours:
        yield ours


@pytest.fixture(scope="module")
def leased(paths: Paths, world: Internet) -> Iterator[Visitor]:
    with visitor(paths) as ours:
        ours.do(f"open({AUTHORITY!r}, 'w').write({world.authority!r})")
        yield ours


@pytest.fixture
def vm(leased: Visitor, world: Internet) -> Iterator[Visitor]:
    leased.use()
    world.forget()
    yield leased
    assert world.trespasses == []


def through(vm: Visitor, name: str, port: int) -> int:
    """All that was written down is of connections to one name and port, and allowed; return how many there were."""
    wait_until(lambda: all(one.duration is not None for one in vm.connections), "their end")
    found = vm.connections
    assert {(one.name, one.port, one.verdict, one.address) for one in found} == {(name, port, "allowed", SITES[name])}
    assert all(one.bytes_sent and one.bytes_received for one in found)
    return len(found)


def test_curl(vm: Visitor, world: Internet) -> None:
    said = vm.program("curl", "-sS", "--fail", "http://good.example.org/a", "http://good.example.org/b")
    assert said == "reached good.example.org/a with 0 bytes\nreached good.example.org/b with 0 bytes\n"
    assert through(vm, "good.example.org", 80) == 1
    vm.use()
    command = ("curl", "-sS", "--fail", "--data-binary", "@/usr/bin/git", "https://good.example.org/")
    said = vm.program(*command, **TRUST)
    size = int(vm.program("stat", "--format=%s", "--dereference", "/usr/bin/git"))
    assert said == f"reached good.example.org/ with {size} bytes\n"
    assert through(vm, "good.example.org", 443) == 1
    (seen,) = vm.connections
    assert (seen.protocol, seen.tls_version) == ("tls", "1.3")
    assert seen.bytes_sent > size
    assert seen.bytes_received > 0
    assert world.web.names == ["good.example.org"]


def test_pip_installs_a_wheel(vm: Visitor, world: Internet) -> None:
    vm.program(*PIP, "tinywheel", **TRUST)
    assert vm.value("__import__('tinywheel').ANSWER") == 42
    assert {one.name for one in vm.connections} == {"pypi.org", "files.pythonhosted.org"}
    assert {one.verdict for one in vm.connections} == {"allowed"}
    assert [one.path for one in world.requests() if one.host == "files.pythonhosted.org"] == [f"/packages/{WHEEL}"]


@pytest.mark.parametrize(
    ("url", "port"),
    [
        ("https://github.com/acme/tiny.git", 443),
        ("ssh://git@github.com/acme/tiny.git", 22),
        ("git://github.com/acme/tiny.git", 9418),
    ],
)
def test_git_clones(vm: Visitor, url: str, port: int) -> None:
    vm.program("git", "clone", "--quiet", url, f"/tmp/clone-{port}", GIT_SSH_COMMAND=SSH, **TRUST)
    assert vm.program("cat", f"/tmp/clone-{port}/README") == "tiny\n"
    assert through(vm, "github.com", port) >= 1


def test_apt_updates(vm: Visitor) -> None:
    options = ("Dir::Etc::SourceList=/tmp/tiny.list", "Dir::Etc::SourceParts=-", "Dir::State::Lists=/tmp/lists")
    vm.do(f"os.makedirs('/tmp/lists/partial')\nopen('/tmp/tiny.list', 'w').write({SOURCES!r})")
    chosen = [word for option in options for word in ("-o", option)]
    vm.program("sudo", "apt-get", "update", "--quiet", "--error-on=any", *chosen)
    assert "tiny" in vm.program("apt-cache", *chosen, "show", "tiny")
    assert through(vm, "deb.debian.org", 80) >= 1


def test_a_websocket(vm: Visitor) -> None:
    assert vm.do(WEBSOCKET).split("\n")[:-1] == ["echo one", "echo two"] * 2


def test_a_large_download(vm: Visitor) -> None:
    said = vm.program("sh", "-c", f"curl -sS --fail http://good.example.org/bytes/{BIG} | sha256sum")
    assert said.split()[0] == digest_of(BIG)
    (seen,) = vm.connections
    assert seen.bytes_received >= BIG


def test_two_hundred_connections_at_once(vm: Visitor, world: Internet) -> None:
    said = vm.value("together(look_up(b'good.example.org'), 80, 200, get('good.example.org', '/bytes/100000'))")
    assert said == {"connected": 200, "HTTP/1.1 200 OK": 200}
    assert len(world.requests()) == 200
    assert through(vm, "good.example.org", 80) == 200


def test_npm_installs(paths: Paths, world: Internet) -> None:
    with visitor(paths, image="standard") as vm:
        world.forget()
        vm.do(f"open({AUTHORITY!r}, 'w').write({world.authority!r})")
        command = ("npm", "install", "--no-audit", "--no-fund", "--prefix", "/tmp/there", "tinypackage")
        vm.program(*command, NODE_EXTRA_CA_CERTS=AUTHORITY)
        assert vm.program("node", "-p", "require('/tmp/there/node_modules/tinypackage')") == "42\n"
        assert {(one.name, one.verdict) for one in vm.connections} == {("registry.npmjs.org", "allowed")}
    assert world.trespasses == []
