"""Which folders a lease's VM may share, and when it has one; over fake VMs."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from audited import audited_soon
from fake_hypervisor import FakeHypervisor
from supervisor_bed import Leased, leased

from agentvm_kernel.errors import ApiError
from agentvm_kernel.magics import rollback, workspace
from agentvm_kernel.magics.call import UsageError
from agentvm_kernel.magics.registry import Registry
from agentvm_kernel.reproduce.permits import Permits, PermittedMagics, RefusedError
from agentvm_kernel.supervisor.snapshot_messages import SnapshotRequest
from agentvm_kernel.supervisor.workspace_messages import WorkspaceInfo, WorkspaceRequest


@dataclass
class Bed(Leased):
    """A lease, and a folder to share."""

    folder: Path

    async def shared(self) -> WorkspaceInfo:
        return await self.client.workspace(self.id)

    async def share(self, folder: Path | str, *, writable: bool = False) -> WorkspaceInfo:
        wanted = WorkspaceRequest(folder=str(folder), writable=writable)
        return await self.client.set_workspace(self.id, wanted)

    async def refused(self, folder: Path | str) -> ApiError:
        before = list(self.machine.calls)
        with pytest.raises(ApiError) as refused:
            await self.share(folder)
        assert self.machine.calls == before, "QEMU was not even asked"
        return refused.value

    def audited(self, count: int) -> list[str]:
        return [record["what"] for record in audited_soon(self.supervisor.paths.state, count, "configuration_changed")]


@pytest.fixture
async def bed(short_tmp: Path) -> AsyncIterator[Bed]:
    folder = short_tmp / "mine"
    folder.mkdir()
    async with leased(short_tmp, FakeHypervisor()) as ours:
        yield Bed(**vars(ours), folder=folder)


async def test_a_folder_is_shared_and_taken_back(bed: Bed) -> None:
    assert await bed.shared() == WorkspaceInfo()
    (bed.folder.parent / "link").symlink_to("mine")
    info = await bed.share(bed.folder.parent / "link")
    assert (info.folder, info.writable, info.is_there) == (str(bed.folder.resolve()), False, True)
    assert await bed.shared() == info
    assert bed.machine.calls == ["plug mine"]
    assert bed.machine.ops[-1] == {
        "id": bed.machine.ops[-1]["id"], "op": "mount", "tag": "agentvmshared", "writable": False,
    }  # fmt: skip
    assert (await bed.share(bed.folder, writable=True)).writable
    assert bed.machine.calls == ["plug mine", "unplug folder", "plug mine rw"]
    assert await bed.share("") == WorkspaceInfo()
    assert bed.machine.calls[-1] == "unplug folder"
    folder = bed.folder.resolve()
    assert bed.audited(3) == [
        f"workspace: {folder}, read-only", f"workspace: {folder}, read and write", "workspace: nothing",
    ]  # fmt: skip


async def test_what_is_no_folder_of_the_users_own_is_not_shared(
    bed: Bed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = bed.folder / "file"
    file.touch()
    (bed.folder / "sub").mkdir()
    state = bed.supervisor.paths.state.resolve()
    for folder in ("/", "/proc", "/proc/self", "/sys/kernel", "/dev/shm", state, state / "run", state.parent):
        refusal = await bed.refused(folder)
        assert (refusal.code, " is not shared: " in refusal.message) == ("share", True), folder
    (bed.folder / "sly").symlink_to(state)
    assert "is not shared" in (await bed.refused(bed.folder / "sly")).message
    assert "is not an absolute path" in (await bed.refused("mine")).message
    assert "is not a folder" in (await bed.refused(file)).message
    for missing in (bed.folder / "missing", file / "below", "/\0", "/" + "a" * 300):
        assert "There is no folder" in (await bed.refused(missing)).message
    monkeypatch.setenv("HOME", str(bed.folder))
    assert "your whole home folder" in (await bed.refused(bed.folder)).message
    await bed.share(bed.folder / "sub")
    assert bed.audited(1) == [f"workspace: {(bed.folder / 'sub').resolve()}, read-only"], "and nothing before it"


async def test_a_snapshot_is_taken_without_the_folder(bed: Bed) -> None:
    await bed.share(bed.folder, writable=True)
    bed.machine.calls.clear()
    await bed.client.snapshot(bed.id, SnapshotRequest(label="with"))
    calls = [call for call in bed.machine.calls if not call.startswith("prepare")]
    assert calls == ["unplug folder", "pause", "dump", "resume", "plug mine rw"]
    assert (await bed.shared()).is_there


async def test_a_folder_in_use_is_told_and_stays(bed: Bed) -> None:
    await bed.share(bed.folder)
    bed.machine.calls.clear()
    bed.machine.lies = {"outcome": "busy", "by": ["python3 (12)", "tail\x1b (13)"]}
    for attempt in (
        bed.client.snapshot(bed.id, SnapshotRequest()),
        bed.share(""),
        bed.share(bed.folder.parent / "b"),
    ):
        (bed.folder.parent / "b").mkdir(exist_ok=True)
        with pytest.raises(ApiError, match=r"in use in the VM: by python3 \(12\), tail\ufffd \(13\), as the VM says"):
            await attempt
    assert bed.machine.calls == []
    assert (await bed.shared()).folder == str(bed.folder.resolve())


async def test_a_guest_that_clings_to_the_device_is_told_of(bed: Bed) -> None:
    await bed.share(bed.folder)
    bed.machine.clings = True
    with pytest.raises(ApiError, match="does not let go") as refused:
        await bed.share("")
    assert refused.value.code == "share"
    with pytest.raises(ApiError, match="does not let go"):
        await bed.client.snapshot(bed.id, SnapshotRequest())
    assert "pause" not in bed.machine.calls
    bed.machine.clings = False
    assert await bed.share("") == WorkspaceInfo()


@pytest.mark.parametrize(
    ("lies", "said"),
    [
        ({"outcome": "no_9p"}, 'no 9p file system.*image = "standard"'),
        ({"outcome": "occupied"}, "Something is in /workspace/shared"),
        ({"outcome": "x" * 100_000}, "answered nothing sensible|length"),
        ({"outcome": None, "by": [[]]}, "answered nothing sensible"),
        ({"by": ["a"] * 6}, "answered nothing sensible"),
        ({"by": ["a" * 61]}, "answered nothing sensible"),
        ({"ok": False, "error": "\x1b[2J no"}, r"did not mount the shared folder: .*no"),
    ],
)
async def test_a_guest_that_does_not_mount_it_has_no_device(bed: Bed, lies: dict[str, Any], said: str) -> None:
    bed.machine.lies = lies
    with pytest.raises(ApiError) as refused:
        await bed.share(bed.folder)
    error = refused.value
    assert re.search(said, f"{error.message} {error.hint}"), error
    assert "\x1b" not in str(error)
    if "length" not in said:
        assert bed.machine.calls == ["plug mine", "unplug folder"]
        assert await bed.shared() == WorkspaceInfo()


async def test_what_qemu_cannot_open_is_told(bed: Bed) -> None:
    bed.machine.unshareable = True
    with pytest.raises(ApiError, match=r"QEMU cannot share /.*mine: QEMU: device_add: cannot open it"):
        await bed.share(bed.folder)
    assert await bed.shared() == WorkspaceInfo()
    assert all(op["op"] != "mount" for op in bed.machine.ops)


async def test_what_only_qemu_holds_is_told_and_audited(bed: Bed) -> None:
    bed.machine.weakness = "Operation not permitted"
    assert (await bed.share(bed.folder)).weakness == "Operation not permitted"
    assert bed.audited(1) == [f"workspace: {bed.folder.resolve()}, read-only, by QEMU alone"]


async def test_a_rollback_gives_the_folder_to_the_new_vm(bed: Bed) -> None:
    await bed.client.snapshot(bed.id, SnapshotRequest(label="base"))
    await bed.share(bed.folder)
    await bed.client.rollback(bed.id, "base")
    assert (await bed.shared()).is_there
    await bed.share("")
    await bed.client.rollback(bed.id, "base")
    assert await bed.shared() == WorkspaceInfo()


async def test_a_vm_that_cannot_take_the_folder_goes_on_without_and_that_is_told(bed: Bed) -> None:
    await bed.client.snapshot(bed.id, SnapshotRequest(label="base"))
    await bed.share(bed.folder)
    assert (await bed.client.rollback(bed.id, "base")).unshared == ""
    bed.folder.rmdir()
    replaced = await bed.client.rollback(bed.id, "base")
    assert "cannot share" in replaced.unshared
    line = rollback.unshared(replaced.model_copy(update={"unshared": "x\x1b[2J" + "y" * 1000}))
    assert ("\x1b" in line, len(line) < 500, "%workspace PATH shares it again" in line) == (False, True, True)
    assert rollback.unshared(replaced.model_copy(update={"unshared": ""})) == ""


def test_it_is_said_what_is_shared() -> None:
    info = WorkspaceInfo(folder="/home/a/data", place="/workspace/shared", is_there=True, owner=1001)
    assert workspace.said(info) == "/home/a/data is shared read-only; in the VM it is /workspace/shared."
    writable = workspace.said(info.model_copy(update={"writable": True}))
    assert "to read and write" in writable
    assert "It belongs to user 1001" in writable
    assert "belongs" not in workspace.said(info.model_copy(update={"writable": True, "owner": 1000}))
    weak = workspace.said(info.model_copy(update={"weakness": "\x1b no"}))
    assert ("root in the VM can make files there empty" in weak, "\x1b" in weak) == (True, False)
    assert "has lost it" in workspace.said(info.model_copy(update={"is_there": False}))


@pytest.mark.parametrize("code", ["%workspace a b", "%workspace --rw", "%workspace off --rw", "%workspace a --ro"])
async def test_a_wrong_call_says_what_is_valid(code: str) -> None:
    magic = Registry().find(code)
    assert magic is not None
    with pytest.raises(UsageError, match="valid is %workspace, %workspace PATH"):
        await magic.run(None)  # type: ignore[arg-type]


async def test_a_notebook_that_is_reproduced_shares_nothing(tmp_path: Path) -> None:
    for code in ("%workspace /", "%workspace data --rw", "%workspace"):
        magic = PermittedMagics(Permits(files=tmp_path)).find(code)
        assert magic is not None
        with pytest.raises(RefusedError, match="is not carried out when a notebook is reproduced"):
            await magic.run(None)  # type: ignore[arg-type]
