"""Forks in real VMs: clones of the present that cannot disturb one another, by code and from the notebook."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

import pytest

from agentvm_kernel.config import Paths
from agentvm_kernel.errors import ApiError
from agentvm_kernel.experiment import AsyncSession, ForkResult

pytestmark = pytest.mark.timeout(300)

RANDOM = (
    "import os, random, uuid, socket; (random.random(), os.urandom(8).hex(), str(uuid.uuid4()), socket.gethostname())"
)


@pytest.fixture
async def session(
    vm_paths: Paths, vm_environment: Mapping[str, str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> AsyncIterator[AsyncSession]:
    """A session in a VM of its own, with a tree of its own."""
    for name, value in vm_environment.items():
        monkeypatch.setenv(name, value)
    async with AsyncSession(paths=vm_paths, notebook=request.node.name) as session:
        yield session


def values(results: list[ForkResult]) -> list[str]:
    assert [one.cell.status for one in results] == ["ok"] * len(results), results
    return [one.cell.result for one in results]


async def test_forks_of_forks_are_independent(session: AsyncSession) -> None:
    await session.run("path = ['root']; open('file', 'w').write('root')")
    step = "path.append(f'{len(path)}'); open('file', 'a').write(path[-1]); (path, open('file').read())"
    for depth in (1, 2, 3):
        results = await session.fork(2, step)
        expected = ["root", *map(str, range(1, depth + 1))]
        assert values(results) == [repr((expected, "".join(expected)))] * 2
        await session.adopt(results[-1].fork)
    assert (await session.run("len(path)")).result == "4"


async def test_diverging_forks_differ_in_everything_random(session: AsyncSession) -> None:
    await session.run("import random; random.seed(1)")
    drawn = [eval(text) for text in values(await session.fork(4, RANDOM))]
    for kind in range(4):
        assert len({one[kind] for one in drawn}) == 4


async def test_common_forks_agree_in_user_space_only(session: AsyncSession) -> None:
    await session.run("import random")
    drawn = [eval(text) for text in values(await session.fork(3, RANDOM, randomness="common"))]
    assert len({one[0] for one in drawn}) == 1
    for kind in (1, 2, 3):
        assert len({one[kind] for one in drawn}) == 3
    again = [eval(text) for text in values(await session.fork(2, RANDOM, randomness="common"))]
    assert again[0][0] != drawn[0][0], "another request, another seed"


@pytest.mark.parametrize(
    ("harm", "status", "timeout"),
    [
        ("os._exit(7)", "died", 60),
        ("subprocess.run(['sudo', 'poweroff', '-f'])", "died", 60),
        ("time.sleep(600)", "timeout", 4),
        ("\n  while True: print('x' * 100_000); time.sleep(0.02)", "flood", 120),
        ("1 / 0", "error", 60),
    ],
)
async def test_a_fork_that_misbehaves_costs_only_itself(
    session: AsyncSession, harm: str, status: str, timeout: float
) -> None:
    await session.run("import os, socket, subprocess, time; state = 'kept'")
    # Some forks do harm, by their host names, which are random; of four nearly always some do and some do not.
    code = f"if int(socket.gethostname()[-1], 16) % 2: {harm}\nstate"
    for _ in range(6):
        results = await session.fork(4, code, timeout=timeout)
        bad = [one for one in results if one.cell.status != "ok"]
        if 0 < len(bad) < 4:
            break
    assert {one.cell.status for one in bad} == {status}, [one.cell.reason for one in bad]
    good = [one for one in results if one.cell.status == "ok"]
    assert {one.cell.result for one in good} == {"'kept'"}
    assert all(one.kept for one in good)
    assert (await session.run("state")).result == "'kept'", "the VM itself did not notice"
    await session.adopt(good[0].fork)
    assert (await session.run("state")).result == "'kept'"
    if status in {"died", "timeout", "flood"}:
        with pytest.raises(ApiError, match="no fork"):
            await session.adopt(bad[0].fork)


async def test_an_adopted_fork_goes_on_with_its_processes_and_connections(session: AsyncSession) -> None:
    await session.run(
        "import socket, subprocess\n"
        "server = socket.create_server(('127.0.0.1', 0))\n"
        "client = socket.create_connection(server.getsockname()); peer, _ = server.accept()\n"
        "child = subprocess.Popen(['cat'], stdin=subprocess.PIPE, stdout=subprocess.PIPE)"
    )
    results = await session.fork(
        2, "client.sendall(b'sent in the fork'); child.stdin.write(b'asked\\n'); child.stdin.flush()"
    )
    assert [one.cell.status for one in results] == ["ok", "ok"]
    await session.adopt(1)
    answer = await session.run("peer.recv(100), child.stdout.readline()")
    assert answer.result == "(b'sent in the fork', b'asked\\n')"


async def test_numpys_generator_differs_or_agrees_as_the_forks_do(
    vm_paths: Paths, vm_environment: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in vm_environment.items():
        monkeypatch.setenv(name, value)
    draw = "(np.random.random(), np.random.default_rng().random())"
    async with AsyncSession(paths=vm_paths, image="standard", notebook="numpy") as session:
        await session.run("import numpy as np; np.random.seed(3)")
        apart = [eval(text) for text in values(await session.fork(3, draw))]
        alike = [eval(text) for text in values(await session.fork(3, draw, randomness="common"))]
    assert len({one[0] for one in apart}) == 3
    assert len({one[0] for one in alike}) == 1
    assert len({one[1] for one in apart + alike}) == 6, "what draws its seed from the kernel always differs"
