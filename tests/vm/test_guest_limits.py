"""The limits of the user's processes, in a real VM: whatever a cell or a program eats, the agent answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

import pytest
import pytest_asyncio

from agentvm_kernel import AsyncSession
from agentvm_kernel.config import Paths
from agentvm_kernel.experiment import ExecResult

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

# Forks until it may not any more, and says so; its children stay.
FORK_BOMB = """
import os, signal
pids = []
try:
    while True:
        pid = os.fork()
        if not pid:
            signal.pause()
        pids.append(pid)
except OSError as error:
    found = error
found.errno, len(pids)
"""
HOG = "hog = []\nwhile True:\n    hog.append(bytearray(4 << 20))"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def session(vm_paths: Paths, vm_environment: Mapping[str, str]) -> AsyncIterator[AsyncSession]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in vm_environment.items():
            patch.setenv(name, value)
        async with AsyncSession(paths=vm_paths, notebook="guest-limits") as leased:
            yield leased


async def shell(session: AsyncSession, script: str) -> ExecResult:
    return await session.exec(["sh", "-c", script], timeout=120)


async def read(session: AsyncSession, script: str) -> list[str]:
    result = await shell(session, script)
    assert result.code == 0, result.stderr
    return result.stdout.decode().split()


async def test_the_profiles_limits_hold_from_the_first_cell_on(session: AsyncSession) -> None:
    limits = await session.limits()
    cell = await session.run("import resource; resource.getrlimit(resource.RLIMIT_NOFILE)")
    assert cell.result == str((limits.open_files, limits.open_files))
    assert await read(session, "ulimit -n; ulimit -Hn") == [str(limits.open_files)] * 2
    assert await read(session, "cat /proc/self/cgroup /sys/fs/cgroup/user/pids.max") == [
        "0::/user",
        str(limits.processes),
    ]
    # Only the user's processes are in it, and nothing that protects the agent is left to them.
    assert await read(session, "cat /proc/$PPID/cgroup; cat /proc/self/oom_score_adj") == ["0::/", "0"]


async def test_limits_change_for_what_runs_and_for_what_comes(session: AsyncSession) -> None:
    await session.limits(open_files=100, processes=64, user_memory_mib=300)
    cell = await session.run("import resource; resource.getrlimit(resource.RLIMIT_NOFILE)")
    assert cell.result == "(100, 100)"
    files = "files = []\nwhile True:\n    files.append(open('/dev/null'))"
    too_many = await session.run(files)
    assert too_many.error is not None
    assert "Too many open files" in too_many.error.value
    await session.run("del files")
    assert await read(session, "ulimit -n; cat /sys/fs/cgroup/user/*.max | grep -x -e 64 -e 314572800 | sort") == [
        "100",
        "314572800",
        "64",
    ]


async def test_a_fork_bomb_is_stopped_and_the_agent_answers(session: AsyncSession) -> None:
    await session.limits(processes=64)
    cell = await session.run(FORK_BOMB)
    errno, count = cell.result.strip("()").split(", ")
    assert errno == "11"
    assert 20 < int(count) < 64
    # The host's own processes get in, but start nothing more.
    full = await shell(session, "echo alive; sleep 1 & wait")
    assert full.stdout == b"alive\n"
    assert b"fork" in full.stderr
    assert (await session.limits(processes=128)).processes == 128
    assert await read(session, "sleep 0 && echo room") == ["room"]
    assert (await session.run("for pid in pids: os.kill(pid, 9)")).status == "ok"


async def test_a_bomb_that_a_program_starts_is_in_the_group_from_its_first_moment(session: AsyncSession) -> None:
    await session.limits(processes=64)
    bomb = await shell(session, "b() { b | b & }; b; sleep 2; cat /sys/fs/cgroup/user/pids.current")
    assert (await session.exec(["cat", "/sys/fs/cgroup/user/pids.events"])).stdout.split()[1] != b"0", bomb
    outside = "grep -lv -x 0::/user /proc/[0-9]*/cgroup | cut -d/ -f3 | xargs -I X readlink /proc/X/exe | sort -u"
    await session.limits(processes=256)
    found = await read(session, f"sudo sh -c '{outside}'")
    assert all("python" in path for path in found), found


async def test_a_program_that_eats_all_memory_is_killed_alone(session: AsyncSession) -> None:
    await session.limits(user_memory_mib=300, processes=2048)
    await session.run("kept = 42")
    result = await session.exec(["python", "-c", HOG], timeout=120)
    assert result.code == 137
    assert (await session.run("kept")).result == "42"


async def test_a_cell_that_eats_all_memory_is_told_as_such(session: AsyncSession) -> None:
    died = await session.run(HOG, timeout=120)
    assert died.status == "died"
    assert "memory was used up" in died.reason
