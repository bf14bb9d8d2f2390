"""The internet of the tests is there, and what nobody may reach in the tests could be reached from its host."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from internet import FORBIDDEN, HOST, METADATA, NEIGHBOUR, Internet, internet
from namespaces import Knock
from wares import BIG, digest_of

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

CONNECT = """
import json, socket, sys
for address in json.loads(sys.argv[1]):
    try:
        with socket.create_connection((address, 80), 5) as one:
            print(address, one.recv(100).decode().split()[-1])
    except OSError as error:
        print(address, type(error).__name__)
"""

# Machines need not have curl.
FETCH = """
import ssl, sys, urllib.request
context = ssl.create_default_context(cafile=sys.argv[1])
sys.stdout.buffer.write(urllib.request.urlopen(sys.argv[2], timeout=30, context=context).read())
"""


@pytest.fixture(scope="module")
def world() -> Iterator[Internet]:
    with internet() as ours:
        yield ours


def on_host(world: Internet, *argv: str) -> str:
    # The machine's own certificates and registries would go before those of the tests.
    clean = {name: os.environ[name] for name in ("PATH", "HOME")}
    command = world.command(*argv)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=clean)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def authority(world: Internet, tmp_path: Path) -> str:
    file = tmp_path / "ca.pem"
    file.write_text(world.authority)
    return str(file)


def test_what_is_forbidden_could_be_reached_and_every_try_is_seen(world: Internet) -> None:
    reachable = ["127.0.0.1", HOST, "10.99.0.1", NEIGHBOUR, "100.64.0.7", METADATA, "::1", "2600:55::1", "fd99::7",
                 "fd00:ec2::254"]  # fmt: skip
    world.forget()
    said = on_host(world, sys.executable, "-c", CONNECT, json.dumps(reachable))
    assert said.split("\n")[:-1] == [f"{address} CAUGHT" for address in reachable]
    assert sorted(one.address for one in world.trespasses) == sorted(reachable)
    assert Knock("metadata", "tcp", METADATA, 80) in world.trespasses
    assert {one.place for one in world.trespasses} == {"host", "neighbour", "metadata"}


def test_packets_to_nobody_are_seen_too(world: Internet) -> None:
    world.forget()
    script = (
        "import socket\n"
        "udp = socket.socket(type=socket.SOCK_DGRAM)\n"
        f"udp.sendto(b'x', ('{NEIGHBOUR}', 9)); udp.sendto(b'x', ('45.55.1.1', 53))\n"
        "udp.sendto(b'x', ('9.9.9.9', 53))\n"
        "raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)\n"
        f"raw.sendto(bytes([8, 0, 0xF7, 0xFF, 0, 0, 0, 0]), ('{METADATA}', 0))\n"
    )
    on_host(world, sys.executable, "-c", script)
    assert world.trespasses == [
        Knock("internet", "udp", "9.9.9.9", 53),
        Knock("neighbour", "udp", NEIGHBOUR, 9),
        Knock("metadata", "icmp", METADATA, 0),
    ]


def test_names_are_the_worlds_own(world: Internet) -> None:
    world.forget()
    script = (
        "import socket, sys\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n"
        "        print(name, *sorted({one[4][0] for one in socket.getaddrinfo(name, 80)}))\n"
        "    except socket.gaierror:\n"
        "        print(name, '-')\n"
    )
    names = ["pypi.org", "nobody.example.org", "rebound.example.org", "rebound.example.org"]
    names += [f"to-{name}.example.org" for name in FORBIDDEN]
    said = dict(line.split(" ", 1) for line in on_host(world, sys.executable, "-c", script, *names).splitlines())
    assert said["pypi.org"] == "45.55.0.10"
    assert said["nobody.example.org"] == "-"
    assert said["rebound.example.org"] == NEIGHBOUR
    for name, addresses in FORBIDDEN.items():
        assert said[f"to-{name}.example.org"].split() == sorted(addresses)
    assert "A pypi.org" in world.names.asked
    assert world.knocks == []


def test_the_sites_serve(world: Internet, authority: str) -> None:
    def fetch(url: str) -> str:
        return on_host(world, sys.executable, "-c", FETCH, authority, url)

    world.forget()
    assert "reached good.example.org/x with 0 bytes" in fetch("https://good.example.org/x")
    assert "tinywheel" in fetch("https://pypi.org/simple/tinywheel/")
    assert "Codename: tiny" in fetch("http://deb.debian.org/debian/dists/tiny/Release")
    assert world.web.names == ["good.example.org", "pypi.org"]
    assert [(one.address, one.host) for one in world.requests()][:1] == [("45.55.0.20", "good.example.org")]
    assert world.trespasses == []
    fetch("http://evil.example.net/")
    assert [one.address for one in world.trespasses] == ["45.55.0.66"]
    fetch("http://raw.example.org/x")
    first, *headers = world.raw.received.split(b"\r\n")
    assert first == b"GET /x HTTP/1.1"
    assert b"Host: raw.example.org" in headers
    file = Path(authority).with_name("big")
    download = FETCH.replace("sys.stdout.buffer", "open(sys.argv[3], 'wb')")
    on_host(world, sys.executable, "-c", download, authority, f"http://good.example.org/bytes/{BIG}", str(file))
    assert hashlib.sha256(file.read_bytes()).hexdigest() == digest_of(BIG)


@pytest.mark.parametrize(
    "url",
    [
        "https://github.com/acme/tiny.git",
        "git://github.com/acme/tiny.git",
        pytest.param(
            "ssh://git@github.com/acme/tiny.git",
            marks=pytest.mark.skipif(shutil.which("ssh") is None, reason="there is no ssh here"),
        ),
    ],
)
def test_git_clones(world: Internet, authority: str, tmp_path: Path, url: str) -> None:
    environment = {
        "GIT_SSL_CAINFO": authority,
        "GIT_SSH_COMMAND": "ssh -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o BatchMode=yes",
    }
    command = [*(f"{name}={value}" for name, value in environment.items()), "git", "clone", "-q", url, "copy"]
    on_host(world, "env", "-C", str(tmp_path), *command)
    assert (tmp_path / "copy" / "README").read_text() == "tiny\n"


@pytest.mark.skipif(shutil.which("npm") is None, reason="there is no npm here")
def test_npm_and_pip_install(world: Internet, authority: str, tmp_path: Path) -> None:
    npm = ("npm", "install", "--silent", "--no-audit", "--cache", str(tmp_path / "c"), "--cafile", authority)
    on_host(world, "env", "-C", str(tmp_path), *npm, "--registry", "https://registry.npmjs.org/", "tinypackage")
    assert (tmp_path / "node_modules" / "tinypackage" / "index.js").exists()
    pip = ("-m", "pip", "--isolated", "install", "--no-cache-dir", "-q", "--target", str(tmp_path / "t"))
    on_host(world, sys.executable, *pip, "--cert", authority, "tinywheel")
    assert (tmp_path / "t" / "tinywheel.py").exists()
