"""A blank that does not come to be leaves nothing behind, whatever went wrong, and whoever gave it up."""
# ruff: noqa: F811 - fixtures are imported by name

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path

import pytest
from capture_bed import golden, hypervisor  # noqa: F401
from guest_process import MemoryHypervisor, MemoryMachine

from agentvm_kernel.errors import HostError, HypervisorError
from agentvm_kernel.vm.blank import Blank, start_blank
from agentvm_kernel.vm.snapshot import Snapshot


class Unforeseen(Exception):  # noqa: N818 - as a mistake in the code would raise it
    """None of the errors that are expected."""


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """What the step after QEMU's start raises."""
    failures: list[BaseException] = []

    def reach(_: Blank) -> None:
        raise failures[-1]

    monkeypatch.setattr(Blank, "reach_memory", reach)
    return failures


@pytest.mark.parametrize(
    ("raised", "told"), [(Unforeseen("a mistake"), Unforeseen), (OSError(24, "too many open files"), HostError)]
)
async def test_a_failure_after_the_start_ends_qemu_and_is_told_as_it_is(
    hypervisor: MemoryHypervisor,
    golden: Snapshot,
    short_tmp: Path,
    fails: list[BaseException],
    raised: Exception,
    told: type[Exception],
) -> None:
    fails.append(raised)
    with pytest.raises(told):
        await start_blank(hypervisor, golden, short_tmp / "vm-1", "vm-1")
    assert hypervisor.machines
    assert hypervisor.running == []
    assert not (short_tmp / "vm-1").exists()


async def test_whoever_gives_up_waiting_leaves_no_qemu_running(
    hypervisor: MemoryHypervisor,
    golden: Snapshot,
    short_tmp: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop, begun, may_end = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def reach(_: Blank) -> None:
        loop.call_soon_threadsafe(begun.set)
        assert may_end.wait(60)

    monkeypatch.setattr(Blank, "reach_memory", reach)
    starting = asyncio.create_task(start_blank(hypervisor, golden, short_tmp / "vm-1", "vm-1"))
    try:
        await begun.wait()
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
    finally:
        may_end.set()
    assert hypervisor.running == []
    assert not (short_tmp / "vm-1").exists()


async def test_what_goes_wrong_at_the_end_does_not_hide_what_went_wrong_before(
    hypervisor: MemoryHypervisor,
    golden: Snapshot,
    short_tmp: Path,
    fails: list[BaseException],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ended = MemoryMachine.end

    async def end(machine: MemoryMachine) -> None:
        await ended(machine)
        raise HypervisorError("libvirt is gone")

    monkeypatch.setattr(MemoryMachine, "end", end)
    fails.append(Unforeseen("a mistake"))
    with caplog.at_level(logging.WARNING), pytest.raises(Unforeseen):
        await start_blank(hypervisor, golden, short_tmp / "vm-1", "vm-1")
    assert "libvirt is gone" in caplog.text
    assert not (short_tmp / "vm-1").exists()
