"""A secret that a VM uses is findable nowhere in it: in its memory, on its disk, in its environment, in answers."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from pathlib import Path

import keyring
import keyring.backends.fail
import pytest
from egress_bed import Visitor, visitor
from internet import GOOD, Internet, internet
from vms import qemus

from agentvm_kernel.config import Paths
from agentvm_kernel.egress.secrets import FILE, SecretStore

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]

VALUE = "sk-Jq7wZtPd0VhXyN4mUe2c"
PLACEHOLDER = "agentvm-secret-API_KEY"
URL = "https://good.example.org/headers"
FORMS = [VALUE.encode(), base64.b64encode(VALUE.encode()), VALUE.encode("utf-16-le")]
BLOCK = 16 << 20
ASK = f"""
import os, urllib.request
wanted = urllib.request.Request({URL!r}, headers={{"Authorization": "Bearer " + os.environ["API_KEY"]}})
print(urllib.request.urlopen(wanted).read().decode())
"""


@pytest.fixture(scope="module")
def world() -> Iterator[Internet]:
    with internet() as ours:
        yield ours


@pytest.fixture(scope="module")
def paths(world: Internet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Paths]:
    trusted = tmp_path_factory.mktemp("trust") / "authority.pem"
    trusted.write_text(world.authority)
    before = keyring.get_keyring()
    keyring.set_keyring(keyring.backends.fail.Keyring())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(trusted))
        with world.supervised() as ours:
            SecretStore(ours.state, ours.tag).put("API_KEY", "good.example.org", 443, "Authorization", VALUE)
            yield ours
    keyring.set_keyring(before)


@pytest.fixture(scope="module")
def vm(paths: Paths) -> Iterator[Visitor]:
    with visitor(paths) as ours:
        yield ours


def found_in(blocks: Iterator[bytes]) -> set[bytes]:
    """Return which forms of the secret, and whether the placeholder, are in a long text."""
    found, end = set(), b""
    for block in blocks:
        text = end + block
        found |= {form for form in (*FORMS, PLACEHOLDER.encode()) if form in text}
        end = block[-64:]
    return found


def memory_of(pid: int) -> Iterator[bytes]:
    """All that a process has in memory, the guest's among it."""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            places, mode, *_ = line.split()
            start, end = (int(place, 16) for place in places.split("-"))
            if "r" not in mode or line.endswith(("[vvar]", "[vsyscall]", "[vvar_vclock]")):
                continue
            for at in range(start, end, BLOCK):
                memory.seek(at)
                try:
                    yield memory.read(min(BLOCK, end - at))
                except OSError:
                    break  # such as a device's registers


def files_below(folder: Path) -> Iterator[bytes]:
    for path in folder.rglob("*"):
        if path.is_file() and path.name != FILE:
            with path.open("rb") as file:
                while block := file.read(BLOCK):
                    yield block


def test_a_secret_reaches_its_host_and_is_findable_nowhere_in_the_vm(
    vm: Visitor, world: Internet, paths: Paths
) -> None:
    world.forget()
    answers = [vm.do(ASK), vm.program("sh", "-c", f'curl -sS --fail -H "Authorization: Bearer $API_KEY" {URL}')]
    sent = [one.headers["authorization"] for one in world.requests(GOOD)]
    assert sent == [f"Bearer {VALUE}"] * 2
    assert all("agentvm-secret-" in answer and VALUE not in answer for answer in answers)

    placeholder = PLACEHOLDER.encode()
    (pid, *others) = [one for one in qemus(paths.tag) if found_in(memory_of(one)) & {placeholder}]
    assert not others
    assert found_in(memory_of(pid)) == {placeholder}
    everywhere = "cat /proc/[0-9]*/environ 2>/dev/null; env; cat /etc/environment; true"
    environments = vm.program("sudo", "sh", "-c", everywhere)
    assert PLACEHOLDER in environments
    assert VALUE not in environments

    vm.session.snapshot("all")
    assert found_in(files_below(paths.state)) == {placeholder}
    assert vm.session.connections()[-1].verdict == "allowed"


def test_another_host_gets_the_placeholder(vm: Visitor, world: Internet) -> None:
    world.forget()
    vm.program("sh", "-c", 'curl -sS --fail -H "Authorization: Bearer $API_KEY" http://good.example.org/headers')
    assert [one.headers["authorization"] for one in world.requests(GOOD)] == [f"Bearer {PLACEHOLDER}"]
    assert world.trespasses == []
