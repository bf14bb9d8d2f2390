"""Every clone is a machine of its own at the right time, and goes on with what user space had."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

import pytest
from kernel_client import Notebook, notebook, wait_until
from travel import back, named, ok, saved, value

pytestmark = pytest.mark.timeout(300)

CLONES = 5
IDENTITY = {
    "host name": "socket.gethostname()",
    "machine id": "open('/etc/machine-id').read()",
    "os.urandom": "os.urandom(16).hex()",
    "uuid4": "str(uuid.uuid4())",
    "secrets": "secrets.token_hex()",
    "OpenSSL": "ssl.RAND_bytes(16).hex()",
    "another process": "subprocess.run(['cat', '/proc/sys/kernel/random/uuid'], capture_output=True, text=True).stdout",
    "random in another process": "subprocess.run([sys.executable, '-c', 'import random; print(random.random())'],"
    " capture_output=True, text=True).stdout",
}


@pytest.fixture(scope="module")
def nb(vm_environment: Mapping[str, str]) -> Iterator[Notebook]:
    with notebook(named(vm_environment, "/tests/identity.ipynb")) as running:
        ok(running, "import os, random, secrets, socket, ssl, subprocess, sys, time, uuid")
        yield running


def clock_error(nb: Notebook) -> float:
    """Seconds by which the guest's clock is certainly wrong."""
    before = time.time()
    guest = float(value(nb, "time.time()"))
    after = time.time()
    return max(0.0, before - guest, guest - after)


def test_no_two_clones_are_alike_and_every_clock_is_right(nb: Notebook) -> None:
    saved(nb, "alike")
    old = time.time() + 3
    seen: dict[str, list[str]] = {name: [] for name in IDENTITY}
    wait_until(lambda: time.time() > old, "the snapshot's own time is certainly wrong")
    for _ in range(CLONES):
        back(nb, "alike")
        assert clock_error(nb) < 1
        for name, found in value(
            nb, f"{{{', '.join(f'{name!r}: {code}' for name, code in IDENTITY.items())}}}"
        ).items():
            assert found
            seen[name].append(found)
    assert {name: len(set(found)) for name, found in seen.items()} == dict.fromkeys(IDENTITY, CLONES)


def test_the_host_name_is_known_to_all_of_the_clone(nb: Notebook) -> None:
    saved(nb, "name")
    vm = back(nb, "name").metadata["agentvm"]["vm"]
    assert value(nb, "(socket.gethostname(), open('/etc/hostname').read().strip())") == (vm, vm)
    assert value(nb, "socket.gethostbyname(socket.gethostname())").startswith("127.")


def test_random_goes_on_as_it_was(nb: Notebook) -> None:
    ok(nb, "random.seed(7)\nown = random.Random(8)\nrandom.random()")
    saved(nb, "random")
    expected = value(nb, "[random.random(), random.gauss(0, 1), own.random()]")
    for _ in range(2):
        back(nb, "random")
        assert value(nb, "[random.random(), random.gauss(0, 1), own.random()]") == expected


def test_numpy_goes_on_as_it_was(vm_environment: Mapping[str, str]) -> None:
    environment = {**named(vm_environment, "/tests/numpy.ipynb"), "AGENTVM_IMAGE": "standard"}
    draw = "[numpy.random.random(), numpy.random.standard_normal(), own.random()]"
    with notebook(environment) as nb:
        ok(nb, "import numpy\nown = numpy.random.default_rng(9)")
        saved(nb, "numpy")
        expected = value(nb, f"[float(one) for one in {draw}]")
        back(nb, "numpy")
        assert value(nb, f"[float(one) for one in {draw}]") == expected
