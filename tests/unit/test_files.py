"""Files into a VM and out of it: the real guest agent as a process of this host."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import os
import shutil
import stat
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from local_guest import LocalGuest, local_guest

from agentvm_kernel.errors import LinkError, TransferError
from agentvm_kernel.link.connection import Link, connect
from agentvm_kernel.run.carrier import PART, PART_SECONDS, Part
from agentvm_kernel.run.files import Bounds, get, get_changed, get_named, mark, put
from agentvm_kernel.run.unpack import OnProgress, _Writer, no_progress

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guest() -> AsyncIterator[LocalGuest]:
    async with local_guest() as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def link(guest: LocalGuest) -> AsyncIterator[Link]:
    dialled = await connect(guest.endpoint, key=guest.key, epoch=guest.epoch)
    yield dialled
    await dialled.close()


@pytest.fixture
def remote(guest: LocalGuest, request: pytest.FixtureRequest) -> Path:
    """A folder of the guest's, which is one of this host's, too."""
    folder = guest.folder / hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]
    folder.mkdir()
    return folder


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "sub" / "deeper").mkdir(parents=True)
    (root / "empty").mkdir(mode=0o750)
    (root / "sub" / "program.sh").write_text("#!/bin/sh\n")
    (root / "sub" / "program.sh").chmod(0o755)
    (root / "-n").write_text("a name like an option")
    (root / "s p a c e \u00e9 '\"$(x)").write_bytes(os.urandom(700_001))
    (root / "sub" / "deeper" / ("long" * 60)).write_text("a long name")
    (root / "sub" / "to-file").symlink_to("../-n")
    (root / "sub" / "to-folder").symlink_to("deeper")
    (root / "nothing").touch()
    os.utime(root / "nothing", (1_000_000_000, 1_000_000_000))
    return root


def describe(root: Path) -> dict[str, object]:
    """What is in a folder: modes, contents, targets."""
    found: dict[str, object] = {}
    for path in root.rglob("*"):
        mode = stat.S_IMODE(path.lstat().st_mode)
        if path.is_symlink():
            found[str(path.relative_to(root))] = str(path.readlink())
        elif path.is_dir():
            found[str(path.relative_to(root))] = mode
        else:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            found[str(path.relative_to(root))] = (mode, digest, int(path.stat().st_mtime))
    return found


async def test_a_folder_goes_in_and_out_as_it_is(link: Link, tree: Path, remote: Path, tmp_path: Path) -> None:
    (tree / "pipe").parent.mkdir(exist_ok=True)
    os.mkfifo(tree / "pipe")
    await put(link, tree, f"{remote.name}/in/there")
    (tree / "pipe").unlink()
    assert describe(remote / "in" / "there") == describe(tree)
    received = await get(link, f"{remote.name}/in/there", tmp_path / "new" / "back")
    assert describe(tmp_path / "new" / "back") == describe(tree)
    assert (received.count, received.left_out) == (len(describe(tree)) + 1, [])
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["back"]
    assert [path.name for path in (remote / "in").iterdir()] == ["there"]


async def test_a_file_takes_the_place_of_a_file(link: Link, remote: Path, tmp_path: Path) -> None:
    local = tmp_path / "local"
    local.write_bytes(os.urandom(3 << 20))
    local.chmod(0o4755)
    (remote / "file").write_text("old")
    await put(link, local, str(remote / "file"))
    assert (remote / "file").read_bytes() == local.read_bytes()
    assert stat.S_IMODE((remote / "file").stat().st_mode) == 0o755
    (remote / "file").chmod(0o6711)
    back = tmp_path / "back"
    back.write_text("old")
    assert (await get(link, str(remote / "file"), back)).size == 3 << 20
    assert back.read_bytes() == local.read_bytes()
    assert stat.S_IMODE(back.stat().st_mode) == 0o711
    await put(link, local, f"{remote}/new/")
    assert (remote / "new" / "local").exists()


async def test_what_is_in_the_way_stays(link: Link, tree: Path, remote: Path, tmp_path: Path) -> None:
    (remote / "folder").mkdir()
    (remote / "file").write_text("x")
    for what, where in ((tree, "folder"), (tree, "file"), (tree / "-n", "folder")):
        with pytest.raises(TransferError, match=rf"{what.name} cannot be copied.*there is .*{where} already"):
            await put(link, what, f"{remote}/{where}")
    assert sorted(path.name for path in remote.iterdir()) == ["file", "folder"]
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").write_text("x")
    for here in (full, full / "mine"):
        with pytest.raises(TransferError, match="cannot be copied out"):
            await get(link, str(remote / "folder"), here)
    assert (full / "mine").read_text() == "x"
    assert sorted(path.name for path in full.iterdir()) == ["mine"]


async def test_what_is_not_there_is_named(link: Link, remote: Path, tmp_path: Path) -> None:
    with pytest.raises(TransferError, match=r"none cannot be copied into the VM: No such file.*none\)"):
        await put(link, tmp_path / "none", f"{remote}/x")
    with pytest.raises(TransferError, match=r"cannot be copied out of the VM: there is no .*nowhere"):
        await get(link, f"{remote}/nowhere", tmp_path / "x")
    assert list(remote.iterdir()) == list(tmp_path.iterdir()) == []


async def test_a_file_that_shrinks_meanwhile_leaves_nothing(link: Link, remote: Path, tmp_path: Path) -> None:
    local = tmp_path / "local"
    local.write_bytes(bytes(20 << 20))
    with pytest.raises(TransferError, match="became shorter"):
        await put(link, local, f"{remote}/x", on_progress=lambda _done, _total: os.truncate(local, 0))
    assert list(remote.iterdir()) == []


async def test_a_file_that_cannot_be_read_leaves_nothing_although_others_were_sent(
    link: Link, tree: Path, remote: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = os.open

    def refused(path: Any, *arguments: Any, **options: Any) -> int:
        if str(path).endswith("program.sh"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return honest(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refused)
        with pytest.raises(TransferError, match=r"tree cannot be copied.*: Permission denied .*program\.sh\)"):
            await put(link, tree, f"{remote}/x")
    assert list(remote.iterdir()) == []


async def test_modes_and_times_are_kept_in_both_directions(link: Link, remote: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    modes = {"a": 0o444, "b": 0o4777, "sub/c": 0o200, "sub/d": 0o2711}
    for number, (name, mode) in enumerate(modes.items()):
        (folder / name).write_text(name)
        (folder / name).chmod(mode)
        os.utime(folder / name, (1, 1_000_000_000 + number))
    (folder / "link").symlink_to("a")
    os.utime(folder / "link", (1, 77), follow_symlinks=False)
    (folder / "sub").chmod(0o555)
    os.utime(folder / "sub", (1, 1_200_000_000))
    os.utime(folder, (1, 1_300_000_000))
    await put(link, folder, f"{remote}/there")
    (remote / "there" / "b").chmod(0o4777)
    await get(link, f"{remote}/there", tmp_path / "back")
    for here in (remote / "there", tmp_path / "back"):
        for number, (name, mode) in enumerate(modes.items()):
            status = (here / name).stat()
            expected = mode & 0o755 if here == tmp_path / "back" else 0o4777 if name == "b" else mode & 0o777
            assert (stat.S_IMODE(status.st_mode), status.st_mtime) == (expected, 10**9 + number)
        assert (here / "link").lstat().st_mtime == 77
        assert (stat.S_IMODE((here / "sub").stat().st_mode), (here / "sub").stat().st_mtime) == (0o755, 1_200_000_000)
        assert here.stat().st_mtime == 1_300_000_000


async def test_what_comes_out_is_not_for_others_to_write_to(link: Link, remote: Path, tmp_path: Path) -> None:
    (remote / "folder" / "sub").mkdir(parents=True)
    (remote / "folder" / "file").write_text("x")
    for path in (remote / "folder", remote / "folder" / "sub", remote / "folder" / "file"):
        path.chmod(0o777)
    await get(link, f"{remote}/folder", tmp_path / "back")
    await get(link, f"{remote}/folder/file", tmp_path / "file")
    found = [tmp_path / "file", tmp_path / "back", *(tmp_path / "back").iterdir()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in found} == {0o755}
    assert len(found) == 4


@pytest.mark.parametrize("swapped", ["folder", "file"])
async def test_what_becomes_a_link_while_it_is_copied_leads_nowhere(
    link: Link, remote: Path, tmp_path: Path, swapped: str
) -> None:
    outside = tmp_path / "outside"
    (outside / "sub").mkdir(parents=True)
    (outside / "sub" / "secret").write_text("secret")
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "first").write_bytes(bytes(4 << 20))
    (folder / "sub" / "secret").write_text("mine")

    def swap(_done: int, _total: int) -> None:
        place, target = (
            (folder / "sub", outside / "sub")
            if swapped == "folder"
            else (folder / "sub" / "secret", outside / "sub" / "secret")
        )
        if not place.is_symlink():
            place.rename(folder / "moved")
            place.symlink_to(target)

    with pytest.raises(TransferError, match=r"folder cannot be copied.*secret\)"):
        await put(link, folder, f"{remote}/x", on_progress=swap)
    assert list(remote.iterdir()) == []


async def test_what_is_copied_is_told_with_the_digest_that_standard_tools_give(
    link: Link, tree: Path, remote: Path, tmp_path: Path
) -> None:
    (tree / "a\\b\nc").write_text("a name that sha256sum writes in another way")
    os.mkfifo(tree / "pipe")
    sent = await put(link, tree, f"{remote}/there")
    command = "find . -type f -print0 | LC_ALL=C sort -z | xargs -0r sha256sum | sha256sum"
    expected = subprocess.run(["sh", "-c", command], cwd=tree, capture_output=True, check=True).stdout.split()[0]
    assert sent.digest == expected.decode()
    assert (sent.count, sent.left_out) == (len(describe(remote / "there")) + 1, ("pipe",))
    (tree / "a\\b\nc").unlink()
    received = await get(link, f"{remote}/there", tmp_path / "back")
    expected = subprocess.run(["sh", "-c", command], cwd=tree, capture_output=True, check=True).stdout.split()[0]
    assert (received.digest, received.left_out_count) == (expected.decode(), 1)
    file = await get(link, f"{remote}/there/-n", tmp_path / "file")
    assert file.digest == hashlib.sha256(b"a name like an option").hexdigest()


@pytest.mark.parametrize(("bounds", "reason"), [(Bounds(size=1000), "has 0.6.* MiB"), (Bounds(count=5), "more than 5")])
async def test_too_much_is_not_sent(link: Link, tree: Path, remote: Path, bounds: Bounds, reason: str) -> None:
    with pytest.raises(TransferError, match=rf"{reason}.*most that is copied") as caught:
        await put(link, tree, f"{remote}/work", bounds=bounds)
    assert caught.value.hint
    assert list(remote.iterdir()) == []


async def test_folders_that_are_nested_very_deeply_are_refused_on_either_side(
    link: Link, remote: Path, tmp_path: Path
) -> None:
    (tmp_path / "deep").mkdir()
    at = os.open(tmp_path / "deep", os.O_RDONLY)
    for _ in range(150):
        os.mkdir("d", dir_fd=at)
        inner = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = inner
    os.close(at)
    with pytest.raises(TransferError, match="nested too deeply"):
        await put(link, tmp_path / "deep", f"{remote}/x")
    with pytest.raises(TransferError, match="nested too deeply"):
        await get(link, str(tmp_path / "deep"), tmp_path / "back")


async def test_into_a_folder_that_is_there(link: Link, tree: Path, remote: Path) -> None:
    (remote / "there").mkdir()
    await put(link, tree / "-n", f"{remote}/there", into=True)
    await put(link, tree / "-n", f"{remote}/new", into=True)
    assert (remote / "there" / "-n").read_text() == (remote / "new").read_text() == "a name like an option"
    (remote / "there" / "tree").touch()
    with pytest.raises(TransferError, match=r"there is .*/there/tree already"):
        await put(link, tree, f"{remote}/there", into=True)


# Interrupted, and gone on with.

SIZE = 12 << 20


class Interruption:
    """Cancels a copy, as an interrupted cell does, when so much of it is done; keeps what progress was told."""

    def __init__(self, after: int = SIZE // 2) -> None:
        self.told: list[tuple[int, int]] = []
        self._after = after
        self._task = asyncio.current_task()

    def __call__(self, done: int, total: int) -> None:
        self.told.append((done, total))
        if done >= self._after and self._task is not None:
            self._task.cancel()
            self._task = None


async def interrupted(copy: Callable[[Interruption], Awaitable[object]]) -> None:
    async def work() -> None:
        await copy(Interruption())

    task = asyncio.create_task(work())
    with pytest.raises(asyncio.CancelledError):
        await task


def parts(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.startswith(PART)]


async def settled(folder: Path) -> None:
    """Wait until the guest's end of an interrupted copy is gone, which is killed with its stream."""
    async with asyncio.timeout(20):
        while parts(folder):
            held = os.open(parts(folder)[0], os.O_RDONLY)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                await asyncio.sleep(0.02)
            finally:
                os.close(held)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "large"
    path.write_bytes(os.urandom(SIZE))
    path.chmod(0o640)
    return path


async def test_an_interrupted_push_goes_on_where_it_stopped(link: Link, large: Path, remote: Path) -> None:
    await interrupted(lambda stop: put(link, large, f"{remote}/x", on_progress=stop))
    assert not (remote / "x").exists()
    await settled(remote)
    told: list[tuple[int, int]] = []
    sent = await put(link, large, f"{remote}/x", on_progress=lambda *said: told.append(said))
    assert sent.saved >= SIZE // 2 - (1 << 20)
    assert (remote / "x").read_bytes() == large.read_bytes()
    assert stat.S_IMODE((remote / "x").stat().st_mode) == 0o640
    assert sent.digest == hashlib.sha256(large.read_bytes()).hexdigest()
    assert told[0][0] >= sent.saved
    assert told[-1] == (SIZE, SIZE)
    assert [path.name for path in remote.iterdir()] == ["x"]


async def test_an_interrupted_pull_goes_on_where_it_stopped(
    link: Link, large: Path, remote: Path, tmp_path: Path
) -> None:
    shutil.copy(large, remote / "x")
    place = tmp_path / "place"
    await interrupted(lambda stop: get(link, str(remote / "x"), place / "x", on_progress=stop))
    assert [path.name[: len(PART)] for path in place.iterdir()] == [PART]
    received = await get(link, str(remote / "x"), place / "x")
    assert SIZE // 2 <= received.saved < SIZE
    assert (place / "x").read_bytes() == large.read_bytes()
    assert stat.S_IMODE((place / "x").stat().st_mode) == 0o640
    assert received.digest == hashlib.sha256(large.read_bytes()).hexdigest()
    assert [path.name for path in place.iterdir()] == ["x"]


async def test_a_changed_source_begins_anew(link: Link, large: Path, remote: Path, tmp_path: Path) -> None:
    await interrupted(lambda stop: put(link, large, f"{remote}/x", on_progress=stop))
    await settled(remote)
    large.write_bytes(b"y" + large.read_bytes()[1:])
    assert (await put(link, large, f"{remote}/x")).saved == 0
    assert (remote / "x").read_bytes() == large.read_bytes()
    place = tmp_path / "place"
    await interrupted(lambda stop: get(link, str(remote / "x"), place / "x", on_progress=stop))
    (remote / "x").write_bytes(b"short")
    assert (await get(link, str(remote / "x"), place / "x")).saved == 0
    assert (place / "x").read_bytes() == b"short"
    assert [path.name for path in place.iterdir()] == ["x"]


@pytest.mark.parametrize("direction", ["in", "out"])
async def test_what_is_there_is_not_trusted(
    link: Link, large: Path, remote: Path, tmp_path: Path, direction: str
) -> None:
    place = tmp_path / "place"
    source, target = (large, remote / "x") if direction == "in" else (remote / "x", place / "x")

    async def copy(on_progress: OnProgress = no_progress) -> int:
        if direction == "in":
            return (await put(link, source, str(target), on_progress=on_progress)).saved
        return (await get(link, str(source), target, on_progress=on_progress)).saved

    if direction == "out":
        shutil.copy(large, source)
    await interrupted(copy)
    await settled(target.parent)
    (begun,) = (path for path in parts(target.parent)[0].rglob("*") if path.is_file())
    with begun.open("r+b") as file:
        file.seek(1000)
        file.write(b"something else")
    assert await copy() == 0
    assert target.read_bytes() == large.read_bytes()


async def test_a_folder_goes_on_with_the_files_that_are_not_there(link: Link, remote: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for number in range(12):
        (folder / str(number)).mkdir(parents=True)
        (folder / str(number) / "file").write_bytes(os.urandom(1 << 20))
        (folder / str(number) / "file").chmod(0o400)
    (folder / "link").symlink_to("1/file")
    await interrupted(lambda stop: put(link, folder, f"{remote}/x", on_progress=stop))
    await settled(remote)
    sent = await put(link, folder, f"{remote}/x")
    assert sent.saved >= 5 << 20
    assert describe(remote / "x") == describe(folder)
    place = tmp_path / "place"
    await interrupted(lambda stop: get(link, f"{remote}/x", place / "x", on_progress=stop))
    await interrupted(lambda stop: get(link, f"{remote}/x", place / "x", on_progress=stop))
    (remote / "x" / "0" / "file").unlink()
    received = await get(link, f"{remote}/x", place / "x")
    assert received.saved >= 4 << 20
    assert describe(place / "x") == describe(remote / "x")
    assert [path.name for path in place.iterdir()] == ["x"]


async def test_a_link_that_breaks_leaves_what_the_next_attempt_goes_on_with(
    guest: LocalGuest, large: Path, remote: Path, tmp_path: Path
) -> None:
    dialled = await connect(guest.endpoint, key=guest.key, epoch=guest.epoch)
    closing: list[asyncio.Task[None]] = []

    def break_it(done: int, _total: int) -> None:
        if done >= SIZE // 2 and not closing:
            closing.append(asyncio.create_task(dialled.close()))

    with pytest.raises(LinkError):
        await put(dialled, large, f"{remote}/x", on_progress=break_it)
    await asyncio.wait(closing)
    await settled(remote)
    again = await connect(guest.endpoint, key=guest.key, epoch=guest.epoch)
    assert (await put(again, large, f"{remote}/x")).saved > 0
    assert (remote / "x").read_bytes() == large.read_bytes()
    await again.close()


async def test_what_nobody_went_on_with_is_removed_after_a_week(
    link: Link, large: Path, remote: Path, tmp_path: Path
) -> None:
    shutil.copy(large, remote / "x")
    place = tmp_path / "place"
    await interrupted(lambda stop: get(link, str(remote / "x"), place / "old", on_progress=stop))
    await interrupted(lambda stop: get(link, str(remote / "x"), place / "new", on_progress=stop))
    old, new = parts(place)
    if not Part(str(place / "old")).content.startswith(str(old)):
        old, new = new, old
    week_ago = time.time() - PART_SECONDS - 10
    os.utime(old, (week_ago, week_ago))
    await get(link, str(remote / "x"), place / "other")
    assert parts(place) == [new]


async def test_one_place_is_copied_to_once_at_a_time(link: Link, large: Path, remote: Path, tmp_path: Path) -> None:
    shutil.copy(large, remote / "x")
    place = tmp_path / "place"
    reached, seen = asyncio.Event(), asyncio.Event()

    async def copy() -> None:
        await get(link, str(remote / "x"), place / "x", on_progress=lambda _done, _total: reached.set())

    first = asyncio.create_task(copy())
    await reached.wait()
    seen.set()
    with pytest.raises(TransferError, match="being copied there already"):
        await get(link, str(remote / "x"), place / "x")
    await first
    assert (place / "x").read_bytes() == large.read_bytes()


async def test_a_folder_that_others_can_write_to_is_not_gone_on_with(
    link: Link, remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (remote / "x").write_text("content")
    folder = Path(Part(str(tmp_path / "x")).content).parent
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(TransferError, match="others can write to"):
        await get(link, str(remote / "x"), tmp_path / "x")
    folder.chmod(0o700)
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 12345)
        with pytest.raises(TransferError, match="others can write to"):
            await get(link, str(remote / "x"), tmp_path / "x")
    await get(link, str(remote / "x"), tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


async def test_links_in_such_a_folder_lead_nowhere(link: Link, remote: Path, tmp_path: Path) -> None:
    (remote / "x").write_text("content")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "file").write_text("content")
    (mine / "file").chmod(0o644)
    for content, kept in ((mine / "file", mine), (mine, mine)):
        folder = Path(Part(str(tmp_path / "x")).content).parent
        folder.mkdir(0o700)
        (folder / "content").symlink_to(content)
        (folder / "kept").symlink_to(kept)
        assert (await get(link, str(remote / "x"), tmp_path / "x")).saved == 0
        assert not (tmp_path / "x").is_symlink()
        assert [(path.name, stat.S_IMODE(path.stat().st_mode)) for path in mine.iterdir()] == [("file", 0o644)]
    folder.mkdir(0o700)
    (folder / "kept").mkdir()
    (folder / "kept" / hashlib.sha256(b"").hexdigest()[:32]).symlink_to(mine / "file")
    assert (await get(link, str(remote / "x"), tmp_path / "x")).saved == 0
    assert (mine / "file").read_text() == "content"


async def test_a_full_disk_here_is_told_and_nothing_stays(
    link: Link, large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_writer: object, _data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(_Writer, "_work", full)
        with pytest.raises(TransferError, match="No space left on device") as caught:
            await get(link, str(large), tmp_path / "place" / "x")
    assert "Make room on this computer" in caught.value.hint
    assert list((tmp_path / "place").iterdir()) == []


async def test_parts_of_copies_are_not_copied(link: Link, large: Path, remote: Path, tmp_path: Path) -> None:
    shutil.copy(large, remote / "x")
    await interrupted(lambda stop: get(link, str(remote / "x"), tmp_path / "place" / "y", on_progress=stop))
    (tmp_path / "place" / "mine").touch()
    await put(link, tmp_path / "place", f"{remote}/place")
    assert [path.name for path in (remote / "place").iterdir()] == ["mine"]


async def test_only_what_is_new_or_changed_comes_back(
    link: Link, guest: LocalGuest, tree: Path, remote: Path, tmp_path: Path
) -> None:
    work = remote / "work"
    await put(link, tree, str(work))
    since = await mark(link)
    assert Path(since).is_relative_to(guest.folder), "it would outlast the guest"
    (work / "sub" / "new").write_text("new")
    (work / "-n").write_text("changed")
    os.utime(work / "-n", (5, 5))
    (work / "made" / "empty").mkdir(parents=True)
    (work / "sub" / "\u2028strange").touch()
    os.mkfifo(work / "pipe")
    received = await get_changed(link, str(work), since, tmp_path / "out")
    files = {path for path, what in describe(tmp_path / "out").items() if isinstance(what, tuple)}
    assert files == {"-n", "sub/new"}
    assert (tmp_path / "out" / "made" / "empty").is_dir()
    assert (tmp_path / "out" / "-n").read_text() == "changed"
    assert received.left_out_count == 2
    assert "pipe" in received.left_out[0]
    assert "strange" in received.left_out[1]


async def test_nothing_new_is_an_empty_folder(link: Link, tree: Path, remote: Path, tmp_path: Path) -> None:
    await put(link, tree, f"{remote}/work")
    await get_changed(link, f"{remote}/work", await mark(link), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


async def test_paths_that_are_named_come_back(link: Link, tree: Path, remote: Path, tmp_path: Path) -> None:
    await put(link, tree, f"{remote}/work")
    await get_named(link, f"{remote}/work", ["-n", "sub/deeper"], tmp_path / "out")
    assert sorted(describe(tmp_path / "out")) == ["-n", "sub", "sub/deeper", "sub/deeper/" + "long" * 60]
    (work := remote / "work").joinpath("latest").symlink_to("sub")
    await get_named(link, str(work), ["latest/deeper"], tmp_path / "linked")
    assert sorted(describe(tmp_path / "linked")) == ["latest", "latest/deeper", "latest/deeper/" + "long" * 60]
    with pytest.raises(TransferError, match=r"there is no x"):
        await get_named(link, f"{remote}/work", ["-n", "x"], tmp_path / "other")
    assert not (tmp_path / "other").exists()


async def test_links_that_lead_out_and_devices_are_left_out(link: Link, remote: Path, tmp_path: Path) -> None:
    folder = remote / "folder"
    (folder / "a" / "b").mkdir(parents=True)
    leading_out = ["/etc/passwd", "../..", "b/../../..", "..", "x/..", "\x1b"]
    for number, target in enumerate(leading_out):
        (folder / f"out{number}").symlink_to(target)
    for number, target in enumerate(["a", "a/b", ".", "gone"]):
        (folder / f"in{number}").symlink_to(target)
    (folder / "a" / "b" / "up").symlink_to("../../a")
    (folder / "a" / "b" / "over").symlink_to("../../../a")
    os.mkfifo(folder / "pipe")
    received = await get(link, str(folder), tmp_path / "out")
    here = {path for path, what in describe(tmp_path / "out").items() if isinstance(what, str)}
    assert here == {"in0", "in1", "in2", "in3", "a/b/up"}
    assert received.left_out_count == len(leading_out) + 2


@pytest.mark.parametrize("bounds", [Bounds(size=1000), Bounds(count=5)])
async def test_too_much_is_refused_whole(link: Link, tree: Path, remote: Path, tmp_path: Path, bounds: Bounds) -> None:
    await put(link, tree, f"{remote}/work")
    with pytest.raises(TransferError, match=r"which is the most that is (taken|copied)") as caught:
        await get(link, f"{remote}/work", tmp_path / "out", bounds)
    assert caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]


async def test_what_is_neither_file_nor_folder_is_refused(link: Link, remote: Path, tmp_path: Path) -> None:
    for make in (lambda: put(link, Path("/dev/null"), f"{remote}/x"), lambda: get(link, "/dev/null", tmp_path / "x")):
        with pytest.raises(TransferError, match="/dev/null is neither a file nor a folder"):
            await make()
    assert list(remote.iterdir()) == list(tmp_path.iterdir()) == []
