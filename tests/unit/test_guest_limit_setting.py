"""The limits of the user's processes: what a request may say, and what the kernel is told."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from agentvm_guest import system
from agentvm_guest.identity import RequestError
from agentvm_guest.limits import START, UserLimits, parse_limits
from agentvm_guest.system import System
from local_guest import local_guest

from agentvm_kernel.errors import LinkError

LIMITS: dict[str, object] = {"processes": 99, "open_files": 64, "memory_mib": 300}
SPARE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") - (64 << 20)


def test_limits_are_read_field_by_field() -> None:
    assert parse_limits(LIMITS) == UserLimits(99, 64, 300)
    assert parse_limits(LIMITS | {"memory_mib": None}).memory_mib is None


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("processes", (None, "9", True, -1, (1 << 22) + 1, 1.5)),
        ("open_files", (None, (1 << 20) + 1)),
        ("memory_mib", ("300", -1, False)),
    ],
)
def test_what_no_limits_may_say_is_refused_by_name(field: str, values: tuple[object, ...]) -> None:
    for value in values:
        with pytest.raises(RequestError, match=f"^{field} is not"):
            parse_limits(LIMITS | {field: value})
    with pytest.raises(RequestError, match="limits is not an object"):
        parse_limits([])


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(system, "USER_CGROUP", tmp_path)
    (tmp_path / "cgroup.procs").write_text("")
    return tmp_path


@pytest.fixture
def child() -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process.pid


def test_present_processes_and_those_to_come_are_limited(group: Path, child: int) -> None:
    real = System()
    gone = subprocess.Popen(["true"])
    gone.wait()
    (group / "cgroup.procs").write_text(f"{gone.pid}\n{child}\n")
    real.set_limits(UserLimits(99, 64, 300))
    assert (group / "pids.max").read_text() == "99"
    assert (group / "memory.max").read_text() == str(300 << 20)
    assert resource.prlimit(child, resource.RLIMIT_NOFILE) == (64, 64)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) != (64, 64)
    resource.prlimit(child, resource.RLIMIT_NOFILE, (60, 64))
    real.confine(child)
    assert (group / "cgroup.procs").read_text() == str(child)
    assert resource.prlimit(child, resource.RLIMIT_NOFILE) == (64, 64)


def test_some_memory_is_always_left_to_the_agent(group: Path) -> None:
    for memory in (None, 1 << 30):
        real = System()
        real.set_limits(UserLimits(99, START.open_files, memory))
        assert (group / "memory.max").read_text() == str(SPARE)


def test_limits_that_hold_already_cost_nothing_and_those_that_failed_are_tried_again(group: Path) -> None:
    real = System()
    real.set_limits(START)
    assert not (group / "pids.max").exists()
    (group / "cgroup.procs").rename(group / "hidden")
    with pytest.raises(OSError, match=r"cgroup\.procs"):
        real.set_limits(UserLimits(99, 64, None))
    (group / "hidden").rename(group / "cgroup.procs")
    (group / "pids.max").unlink()
    real.set_limits(UserLimits(99, 64, None))
    assert (group / "pids.max").read_text() == "99"


async def test_limits_come_alone_or_with_the_clock_or_the_identity() -> None:
    async with local_guest() as guest:

        async def recorded() -> list[str]:
            calls = (await guest.control.request("facts", timeout=5))["recorded"]
            assert isinstance(calls, list)
            return [call for call in calls if call.startswith("set_limits")]

        rehearsed = len(await recorded())
        await guest.control.request("limits", timeout=5, **LIMITS)
        await guest.control.request("clock", timeout=5, time_ns=5, limits=LIMITS | {"memory_mib": None})
        await guest.identify(2, limits=LIMITS | {"processes": 1})
        await guest.identify(3)
        await guest.control.request("clock", timeout=5, time_ns=5)
        said = (await recorded())[rehearsed:]
        assert said == ["set_limits 99 64 300", "set_limits 99 64 None", "set_limits 1 64 300"]
        for op, fields in (("limits", {"processes": 1}), ("clock", {"time_ns": 5, "limits": 5})):
            with pytest.raises(LinkError, match="is not"):
                await guest.control.request(op, timeout=5, **fields)
        with pytest.raises(LinkError, match="processes is not"):
            await guest.identify(4, limits={})
