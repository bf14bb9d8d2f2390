"""Files into a VM and out of it: the real guest agent as a process of this host, and guests that send anything."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import io
import os
import stat
import tarfile
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from local_guest import LocalGuest, local_guest

from agentvm_kernel.errors import AgentVMError, LinkClosedError, TransferError
from agentvm_kernel.link.connection import Link, connect
from agentvm_kernel.run.files import Bounds, get, get_changed, get_named, mark, put

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


async def test_a_file_that_shrinks_meanwhile_leaves_nothing(
    link: Link, tree: Path, remote: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Path.stat

    def larger(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        found = honest(path, follow_symlinks=follow_symlinks)
        return os.stat_result((*found[:6], found.st_size + 5, *found[7:]))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", larger)
        with pytest.raises(TransferError, match="became shorter"):
            await put(link, tree / "-n", f"{remote}/x")
    assert list(remote.iterdir()) == []


async def test_a_file_that_cannot_be_read_leaves_nothing_although_others_were_sent(
    link: Link, tree: Path, remote: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Path.open

    def refused(path: Path, *arguments: Any) -> Any:
        if path.name == "program.sh":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return honest(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refused)
        with pytest.raises(TransferError, match=r"tree cannot be copied.*: Permission denied .*program\.sh\)"):
            await put(link, tree, f"{remote}/x")
    assert list(remote.iterdir()) == []


async def test_only_what_is_new_or_changed_comes_back(link: Link, tree: Path, remote: Path, tmp_path: Path) -> None:
    work = remote / "work"
    await put(link, tree, str(work))
    since = await mark(link)
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
    assert received.left_out_count == 1
    assert "strange" in received.left_out[0]


async def test_nothing_new_is_an_empty_folder(link: Link, tree: Path, remote: Path, tmp_path: Path) -> None:
    await put(link, tree, f"{remote}/work")
    await get_changed(link, f"{remote}/work", await mark(link), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


async def test_paths_that_are_named_come_back(link: Link, tree: Path, remote: Path, tmp_path: Path) -> None:
    await put(link, tree, f"{remote}/work")
    await get_named(link, f"{remote}/work", ["-n", "sub/deeper"], tmp_path / "out")
    assert sorted(describe(tmp_path / "out")) == ["-n", "sub", "sub/deeper", "sub/deeper/" + "long" * 60]
    with pytest.raises(TransferError, match=r"there is no \./x"):
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
    with pytest.raises(TransferError, match=r"which is the most that is taken") as caught:
        await get(link, f"{remote}/work", tmp_path / "out", bounds)
    assert caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]


# Guests that send anything.


class Sender:
    """A link whose guest sends an archive, in pieces of some size, and then says how its tar ended."""

    def __init__(self, archive: bytes, *, piece: int = 10_000, code: int = 0, ends: bool = True) -> None:
        pieces = [archive[start : start + piece] for start in range(0, len(archive), piece)]
        self.messages = [[b"started", b"1"], *([b"stdout", data] for data in pieces)]
        if ends:
            self.messages.append([b"exit", b'{"code": %d}' % code])

    async def open(self, service: str) -> Sender:
        return self

    async def send(self, parts: Sequence[bytes]) -> None:
        pass

    async def receive(self) -> list[bytes]:
        if not self.messages:
            raise LinkClosedError("The guest closed stream exec.")
        return self.messages.pop(0)

    def close(self) -> None:
        pass


Change = Callable[[tarfile.TarInfo], None]


def archive(*members: tuple[str, Change | bytes]) -> bytes:
    """An archive of members: a name and content, or what makes the member something else."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, what in members:
            info = tarfile.TarInfo(name)
            if isinstance(what, bytes):
                info.size = len(what)
                tar.addfile(info, io.BytesIO(what))
            else:
                what(info)
                tar.addfile(info)
    return out.getvalue()


def of(kind: bytes, target: str = "") -> Change:
    def change(info: tarfile.TarInfo) -> None:
        info.type, info.linkname = kind, target

    return change


FOLDER, LINK, HARD, DEVICE = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE


async def take(tmp_path: Path, sender: Sender) -> Path:
    """Let a folder come from a guest, and make sure that an error leaves nothing behind."""
    place = tmp_path / "place"
    place.mkdir()
    try:
        await get(sender, "x", place / "out", Bounds(size=1 << 20, count=100))
    except AgentVMError:
        assert list(place.iterdir()) == []
        assert list(tmp_path.iterdir()) == [place]
        raise
    assert [path.name for path in place.iterdir()] == ["out"]
    return place / "out"


@pytest.mark.parametrize("piece", [1, 100, 512, 10_000])
async def test_an_archive_is_read_however_it_is_cut(tmp_path: Path, piece: int) -> None:
    long = "n" * 120
    made = archive(
        ("x", of(FOLDER)), (f"x/{long}", b"content"), ("x/e", b""), ("./x/l", of(LINK, long)), ("x/i/j", b"y")
    )
    out = await take(tmp_path, Sender(made, piece=piece))
    assert (out / "l").read_text() == "content"
    assert (out / "e").read_bytes() == b""
    assert (out / "i" / "j").read_text() == "y"


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        pytest.param([("/x/a", b"1")], "another place", id="absolute"),
        pytest.param([("x/../../a", b"1")], "another place", id="dots"),
        pytest.param([("..", of(FOLDER))], "another place", id="up"),
        pytest.param([(".", of(FOLDER))], "another place", id="nowhere"),
        pytest.param([("x/a", b"1"), ("x/a", b"2")], "same name", id="twice"),
        pytest.param([("x/a", b"1"), ("x/a/b", b"2")], "same name", id="file-as-folder"),
        pytest.param([("x/a", of(LINK, "b")), ("x/a", of(LINK, "c"))], "same name", id="link-twice"),
        pytest.param([("x/a", of(LINK, "b")), ("x/a/b", b"1")], "same name", id="through-a-link"),
        pytest.param([("x/a/b", b"1"), ("x/a", of(LINK, "c"))], "same name", id="link-over-a-folder"),
        pytest.param([("x", b"1"), ("x/a", b"2")], "same name", id="file-as-root"),
        pytest.param([("x/a", b"1"), ("x/b", of(HARD, "x/a"))], "not known", id="hard-link"),
        pytest.param([("x/" + "a" * 256, b"1")], "long a path", id="long-name"),
        pytest.param([("x" + "/a" * 101, b"1")], "long a path", id="deep"),
        pytest.param([("x/" + "/" * 5000 + "a", b"1")], "long a path", id="long-path"),
        pytest.param([("x/" + "a" * 70_000, b"1")], "a header that is too long", id="long-header"),
        pytest.param([(f"x/{n}", b"") for n in range(101)], "more than 100 files", id="many"),
        pytest.param([(f"x/{n}" + "/d" * 20, b"") for n in range(6)], "more than 100 files", id="many-folders"),
        pytest.param([("x/a", bytes(600_000)), ("x/b", bytes(600_000))], "more than 1 MiB", id="large"),
    ],
)
async def test_what_no_honest_guest_sends_leaves_nothing(
    tmp_path: Path, members: list[tuple[str, Change | bytes]], reason: str
) -> None:
    with pytest.raises(TransferError, match=reason):
        await take(tmp_path, Sender(archive(*members)))


def with_header(made: bytes, **changes: bytes) -> bytes:
    """Change fields of the first header, and make its checksum right again."""
    places = {"size": (124, 12), "magic": (257, 8), "kind": (156, 1), "mtime": (136, 12)}
    block = bytearray(made[:512])
    for name, value in changes.items():
        start, length = places[name]
        block[start : start + length] = value.ljust(length, b"\0")
    block[148:156] = b"%06o\0 " % (sum(block) - sum(block[148:156]) + 8 * 32)
    return bytes(block) + made[512:]


PLAIN = archive(("x/a", b"content"))
LONG = archive(("x/" + "n" * 120, b"content"))


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"no archive" * 100, id="garbage"),
        pytest.param(b"", id="nothing"),
        pytest.param(PLAIN[:600], id="cut-off"),
        pytest.param(PLAIN[:100] + b"\xff" + PLAIN[101:], id="checksum"),
        pytest.param(with_header(PLAIN, magic=b"other"), id="magic"),
        pytest.param(with_header(PLAIN, size=b"x"), id="no-size"),
        pytest.param(with_header(PLAIN, size=b"\x80" + b"\xff" * 11), id="endless"),
        pytest.param(with_header(PLAIN, size=b"\xff" * 12), id="negative"),
        pytest.param(with_header(PLAIN, kind=b"S"), id="sparse"),
        pytest.param(with_header(PLAIN, kind=b"g"), id="global-header"),
        pytest.param(with_header(LONG, size=b"%o" % 70_000), id="extended-size"),
        pytest.param(LONG.replace(b"132 path=", b"134 path="), id="record-length"),
        pytest.param(LONG.replace(b"132 path=", b"999 path="), id="record-too-long"),
        pytest.param(LONG.replace(b"132 path=", b"000 path="), id="record-of-nothing"),
        pytest.param(LONG.replace(b"132 path=", b"132 path "), id="record-without-value"),
        pytest.param(LONG.replace(b"132 path=", b"xxx path="), id="record-without-length"),
        pytest.param(PLAIN + bytes(2 << 20), id="padding-without-end"),
    ],
)
async def test_what_is_no_archive_leaves_nothing(tmp_path: Path, sent: bytes) -> None:
    assert sent not in (PLAIN, LONG)
    with pytest.raises(TransferError):
        await take(tmp_path, Sender(sent))


async def test_a_tar_that_failed_or_a_guest_that_went_away_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TransferError, match="it ended with 2"):
        await take(tmp_path, Sender(PLAIN, code=2))
    (tmp_path / "place").rmdir()
    with pytest.raises(LinkClosedError):
        await take(tmp_path, Sender(PLAIN[:600], ends=False))


async def test_what_tar_says_is_shown_without_escape_sequences(tmp_path: Path) -> None:
    sender = Sender(b"", code=2)
    sender.messages.insert(1, [b"stderr", b"\n\x1b[31mtar: no\n" + b"x" * 5000])
    with pytest.raises(TransferError) as caught:
        await take(tmp_path, sender)
    assert "\x1b" not in caught.value.message
    assert "tar: no" in caught.value.message
    assert len(caught.value.message) < 2500


async def test_a_flood_on_stderr_is_stopped(tmp_path: Path) -> None:
    sender = Sender(b"")
    sender.messages[1:1] = [[b"stderr", bytes(10_000)] for _ in range(1000)]
    with pytest.raises(TransferError, match="too much"):
        await take(tmp_path, sender)


async def test_names_that_cannot_be_shown_and_devices_are_left_out(tmp_path: Path) -> None:
    made = archive(("x/\x1b[2J", b"1"), ("x/\udcff", b"22"), ("x/a\nb/c", b"3"), ("x/null", of(DEVICE)), ("x/ok", b"4"))
    out = await take(tmp_path, Sender(made))
    assert [path.name for path in out.iterdir()] == ["ok"]


async def test_a_time_out_of_reach_is_left_out(tmp_path: Path) -> None:
    sent = with_header(PLAIN, mtime=b"\x80" + b"\xff" * 11)
    assert (await take(tmp_path, Sender(sent))).joinpath("a").read_bytes() == b"content"


async def test_a_cancelled_copy_leaves_nothing_here(tmp_path: Path) -> None:
    sender = Sender(PLAIN[:600], ends=False)
    waiting = asyncio.Event()

    async def stall() -> list[bytes]:
        if sender.messages:
            return sender.messages.pop(0)
        waiting.set()
        return await asyncio.Event().wait()  # type: ignore[return-value]

    sender.receive = stall  # type: ignore[method-assign]
    task = asyncio.create_task(get(sender, "x", tmp_path / "out"))
    await waiting.wait()
    assert list(tmp_path.iterdir())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list(tmp_path.iterdir()) == []
