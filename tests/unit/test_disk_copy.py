"""A copy of a VM's disk: frozen for its beginning, thawed whatever happens; over fake VMs."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pytest
from audited import audited_soon
from fake_hypervisor import FakeHypervisor
from supervisor_bed import Leased, leased

from agentvm_kernel.errors import ApiError, HypervisorError
from agentvm_kernel.supervisor.operator_messages import DiskCopied, DiskRequest


@dataclass
class Bed(Leased):
    """A lease, and where its VM's disk is copied to."""

    folder: Path

    @property
    def target(self) -> Path:
        return self.folder / "disk.qcow2"

    async def copy(self, vm: str = "", target: Path | str = "") -> DiskCopied:
        vm = vm or self.machine.spec.folder.name
        return await self.client.copy_disk(vm, DiskRequest(file=str(target or self.target)))

    @property
    def ops(self) -> list[object]:
        return [op["op"] for op in self.machine.ops if op["op"] in {"freeze", "thaw"}]


@pytest.fixture
async def bed(short_tmp: Path) -> AsyncIterator[Bed]:
    async with leased(short_tmp, FakeHypervisor()) as ours:
        yield Bed(**vars(ours), folder=short_tmp)


async def test_the_file_systems_are_frozen_only_while_it_begins(bed: Bed) -> None:
    assert await bed.copy() == DiskCopied(size=8)
    assert bed.machine.calls == ["copy disk after freeze", "copied after thaw"]
    assert bed.ops == ["freeze", "thaw"]
    assert (bed.target.read_bytes(), bed.target.stat().st_mode & 0o777) == (b"the disk", 0o600)
    (record,) = audited_soon(bed.folder / "s", 1, "configuration_changed")
    assert record["what"] == f"disk: copied to {bed.target}"
    assert [path.name for path in bed.machine.spec.folder.glob("copy*")] == []


async def test_a_guest_that_does_not_freeze_is_copied_and_told_of(bed: Bed) -> None:
    bed.machine.lies = {"ok": False, "error": "qemu-ga is not \x1binstalled"}
    copied = await bed.copy()
    assert copied.unfrozen.startswith("The guest agent refused 'freeze': qemu-ga is not ")
    assert "\x1b" not in copied.unfrozen
    assert bed.ops == ["freeze", "thaw"], "it is thawed all the same: it may lie"


async def test_nobody_else_can_open_it_before_it_is_written(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def watch(source: BinaryIO, out: BinaryIO, _length: int = 0) -> None:
        seen.append(os.fstat(out.fileno()).st_mode & 0o777)
        out.write(source.read())

    monkeypatch.setattr(Path, "chmod", lambda *_: None)  # it would come after somebody has opened it
    monkeypatch.setattr(shutil, "copyfileobj", watch)
    await bed.copy()
    assert seen == [0o600]


async def test_it_is_thawed_when_qemu_fails(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: object) -> None:
        raise HypervisorError("QEMU: blockdev-backup: no")

    monkeypatch.setattr(bed.machine, "copy_disk", refuse)
    with pytest.raises(ApiError, match="blockdev-backup: no"):
        await bed.copy()
    assert bed.ops == ["freeze", "thaw"]
    assert not bed.target.exists()
    assert list(bed.machine.spec.folder.glob("copy*")) == []


async def test_what_comes_meanwhile_stays(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    async def copy(target: Path, begun: Callable[[], Awaitable[None]]) -> None:
        target.write_bytes(b"the disk")
        bed.target.write_text("mine")
        await begun()

    monkeypatch.setattr(bed.machine, "copy_disk", copy)
    with pytest.raises(ApiError, match="is there already"):
        await bed.copy()
    assert bed.target.read_text() == "mine"


@pytest.mark.parametrize("kind", ["link", "hard link", "pipe"])
async def test_what_a_hostile_qemu_puts_in_its_place_is_not_read(
    bed: Bed, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    secret = bed.folder / "secret"
    secret.write_text("of this user")
    secret.chmod(0o640)

    async def copy(target: Path, begun: Callable[[], Awaitable[None]]) -> None:
        target.unlink()
        {"link": target.symlink_to, "hard link": target.hardlink_to, "pipe": lambda _: os.mkfifo(target)}[kind](secret)
        await begun()

    monkeypatch.setattr(bed.machine, "copy_disk", copy)
    with pytest.raises(ApiError, match=r"no ordinary file|Too many levels of symbolic links"):
        await bed.copy()
    assert not bed.target.exists()
    assert (secret.read_text(), secret.stat().st_mode & 0o777) == ("of this user", 0o640)


async def test_what_is_there_stays(bed: Bed) -> None:
    bed.target.write_text("mine")
    with pytest.raises(ApiError, match="no absolute path of a file to create"):
        await bed.copy()
    with pytest.raises(ApiError, match="no absolute path of a file to create"):
        await bed.copy(target="disk.qcow2")
    with pytest.raises(ApiError, match="no absolute path of a file to create"):
        await bed.copy(target=bed.folder / "missing" / "disk.qcow2")
    with pytest.raises(ApiError, match="There is no VM"):
        await bed.copy(vm="vm-none")
    assert bed.target.read_text() == "mine"
