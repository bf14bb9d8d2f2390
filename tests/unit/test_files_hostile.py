"""Guests that send anything where files are expected."""

from __future__ import annotations

import asyncio
import io
import tempfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies

from agentvm_kernel.errors import AgentVMError, LinkClosedError, TransferError
from agentvm_kernel.run import unpack
from agentvm_kernel.run.carrier import PART, Part, Receiver, RefusedError, line
from agentvm_kernel.run.files import Bounds, get, put

pytestmark = pytest.mark.timeout(120)


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


Change = dict[str, object]


def sending(*members: tuple[str, Change | bytes], check: object = None) -> bytes:
    """What a guest sends of members: a path and content, or what makes the member something else."""
    total = [len(what) for _, what in members if isinstance(what, bytes)]
    out = [line(size=sum(total), count=len(members))]
    for path, what in members:
        about: Change = {"path": path, "mode": 0o644, "mtime": 10**18}
        if isinstance(what, bytes):
            out += [line(**about | {"kind": "file", "size": len(what), "offset": 0}), what]
        else:
            out.append(line(**about | what))
    content = b"".join(what for _, what in members if isinstance(what, bytes))
    return b"".join([*out, line(check=zlib.crc32(content) if check is None else check)])


FOLDER: Change = {"kind": "folder"}
DEVICE: Change = {"kind": "other"}


def link_to(target: str) -> Change:
    return {"kind": "link", "target": target}


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
async def test_what_is_sent_is_read_however_it_is_cut(tmp_path: Path, piece: int) -> None:
    long = "n" * 120
    made = sending(("", FOLDER), (long, b"content"), ("e", b""), ("./l", link_to(long)), ("i/j", b"y"))
    out = await take(tmp_path, Sender(made, piece=piece))
    assert (out / "l").read_text() == "content"
    assert (out / "e").read_bytes() == b""
    assert (out / "i" / "j").read_text() == "y"


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        pytest.param([("/a", b"1")], "another place", id="absolute"),
        pytest.param([("../a", b"1")], "another place", id="dots"),
        pytest.param([("b/../../a", b"1")], "another place", id="dots-inside"),
        pytest.param([("..", FOLDER)], "another place", id="up"),
        pytest.param([("a\0b", b"1")], "another place", id="nul"),
        pytest.param([("a", b"1"), ("a", b"2")], "same name", id="twice"),
        pytest.param([("a", b"1"), ("./a", b"2")], "same name", id="twice-in-disguise"),
        pytest.param([("a", b"1"), ("a/b", b"2")], "same name", id="file-as-folder"),
        pytest.param([("a", link_to("b")), ("a", link_to("c"))], "same name", id="link-twice"),
        pytest.param([("a", link_to("b")), ("a/b", b"1")], "same name", id="through-a-link"),
        pytest.param([("a/b", b"1"), ("a", link_to("c"))], "same name", id="link-over-a-folder"),
        pytest.param([("", b"1"), ("a", b"2")], "same name", id="file-as-root"),
        pytest.param([("a", {"kind": "file", "size": 5, "offset": 5})], "does not begin where", id="continued"),
        pytest.param([("a" * 256, b"1")], "long a path", id="long-name"),
        pytest.param([("/".join("a" * 102), b"1")], "long a path", id="deep"),
        pytest.param([("a" + "/" * 5000 + "a", b"1")], "long a path", id="long-path"),
        pytest.param([("a" * 70_000, b"1")], "long a path", id="long-line"),
        pytest.param([(str(n), b"") for n in range(101)], "more than 100 files", id="many"),
        pytest.param([(f"{n}" + "/d" * 20, b"") for n in range(6)], "more than 100 files", id="many-folders"),
        pytest.param([("a", bytes(600_000)), ("b", bytes(600_000))], "more than 1 MiB", id="large"),
    ],
)
async def test_what_no_honest_guest_sends_leaves_nothing(
    tmp_path: Path, members: list[tuple[str, Change | bytes]], reason: str
) -> None:
    with pytest.raises(TransferError, match=reason):
        await take(tmp_path, Sender(sending(*members)))


async def test_more_than_was_announced_is_refused_as_well(tmp_path: Path) -> None:
    members = [("a", bytes(600_000)), ("b", bytes(600_000))]
    announced, _, rest = sending(*members).partition(b"\n")
    assert b"1200000" in announced
    with pytest.raises(TransferError, match="more than 1 MiB"):
        await take(tmp_path, Sender(line(size=5, count=1) + rest))


PLAIN = sending(("a", b"content"))


def changed(**values: object) -> bytes:
    """What is sent, with something else in the line about its file."""
    about = {"path": "a", "kind": "file", "mode": 0o644, "mtime": 0, "size": 7, "offset": 0}
    rest = b"content" + line(check=zlib.crc32(b"content"))
    return line(size=7, count=1) + line(**about | values) + rest


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"nothing of the kind\n" * 100, id="garbage"),
        pytest.param(b"", id="nothing"),
        pytest.param(PLAIN[:-100], id="cut-off"),
        pytest.param(PLAIN[: PLAIN.index(b"content") + 3], id="cut-off-in-a-file"),
        pytest.param(PLAIN.replace(b"content", b"another"), id="other-content"),
        pytest.param(PLAIN + b"x", id="more-behind-it"),
        pytest.param(PLAIN + bytes(100_000), id="much-more-behind-it"),
        pytest.param(sending(("a", b"content"), check="0"), id="text-as-check"),
        pytest.param(sending(("a", b"content"), check=-1), id="negative-check"),
        pytest.param(sending(("a", b"content"), check=zlib.crc32(b"content") + (1 << 32)), id="long-check"),
        pytest.param(sending(("a", b"content"), check=0), id="another-check"),
        pytest.param(line(size=7, count=1) * 2, id="told-twice"),
        pytest.param(line(size=-1, count=1), id="negative-total"),
        pytest.param(changed(size=-7), id="negative"),
        pytest.param(changed(size=1 << 70), id="endless"),
        pytest.param(changed(size="7"), id="text-as-size"),
        pytest.param(changed(size=True), id="truth-as-size"),
        pytest.param(changed(offset=8), id="offset-behind-the-end"),
        pytest.param(changed(offset=-1), id="negative-offset"),
        pytest.param(changed(kind="hard link"), id="kind"),
        pytest.param(changed(kind="folder"), id="folder-with-content"),
        pytest.param(changed(mode=0o4755), id="setuid"),
        pytest.param(changed(mtime=1 << 70), id="time"),
        pytest.param(changed(path=5), id="number-as-path"),
        pytest.param(changed(path="\ud800"), id="no-name-at-all"),
        pytest.param(changed(owner="root"), id="unknown-field"),
        pytest.param(line(size=7, count=1) + b"[" * 60_000 + b"\n", id="nested"),
        pytest.param(line(size=7, count=1) + b"9" * 60_000 + b"\n", id="long-number"),
    ],
)
async def test_what_is_nothing_of_the_kind_leaves_nothing(tmp_path: Path, sent: bytes) -> None:
    with pytest.raises(TransferError):
        await take(tmp_path, Sender(sent))


async def test_the_cases_above_differ_from_what_is_taken(tmp_path: Path) -> None:
    assert (await take(tmp_path, Sender(changed()))).joinpath("a").read_bytes() == b"content"


HONEST = sending(
    ("", FOLDER),
    ("a", b"content"),
    ("sub", FOLDER),
    ("sub/b", bytes(3000)),
    ("sub/link", link_to("../a")),
    ("c", DEVICE),
)


WHERE = strategies.integers(0, len(HONEST) - 1)
CHANGE = strategies.tuples(WHERE, strategies.binary(max_size=5), strategies.integers(0, 9))


@settings(max_examples=300, deadline=None)
@given(changes=strategies.lists(CHANGE, max_size=4), piece=strategies.integers(1, 2000))
def test_whatever_is_sent_stays_in_its_place(changes: list[tuple[int, bytes, int]], piece: int) -> None:
    sent = bytearray(HONEST)
    for at, what, instead in changes:
        sent[at : at + instead] = what

    async def copy(root: Path) -> None:
        with suppress(AgentVMError):
            await get(Sender(bytes(sent), piece=piece), "x", root / "place" / "out", Bounds(size=1 << 20, count=100))

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        asyncio.run(copy(root))
        assert [path.name for path in root.iterdir()] == ["place"]
        assert [path.name for path in (root / "place").iterdir()] in ([], ["out"])
        for path in root.rglob("*"):
            assert path.resolve().is_relative_to(root.resolve())
            assert not path.lstat().st_mode & 0o7000


async def test_a_program_that_failed_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TransferError, match="it ended with 2"):
        await take(tmp_path, Sender(PLAIN, code=2))


async def test_a_guest_that_went_away_leaves_what_came_and_nothing_else(tmp_path: Path) -> None:
    with pytest.raises(LinkClosedError):
        await get(Sender(PLAIN[: PLAIN.index(b"tent")], ends=False), "x", tmp_path / "out")
    (begun,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert begun.read_bytes() == b"con"
    assert begun.relative_to(tmp_path).parts[0].startswith(PART)
    assert (await get(Sender(PLAIN), "x", tmp_path / "out")).saved == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


async def test_a_guest_cannot_go_on_with_more_than_is_here(tmp_path: Path) -> None:
    with pytest.raises(LinkClosedError):
        await get(Sender(PLAIN[: PLAIN.index(b"tent")], ends=False), "x", tmp_path / "out")
    sent = changed(offset=4).replace(b"content", b"ent")
    with pytest.raises(TransferError, match="does not begin where"):
        await get(Sender(sent), "x", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


async def test_a_guest_cannot_go_on_behind_a_files_end(tmp_path: Path) -> None:
    with pytest.raises(LinkClosedError):
        await get(Sender(PLAIN[: PLAIN.index(b"tent")], ends=False), "x", tmp_path / "out")
    with pytest.raises(TransferError, match="damaged"):
        await get(Sender(changed(size=2, offset=3)), "x", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


async def test_a_guest_that_breaks_off_again_and_again_fills_no_disk(tmp_path: Path) -> None:
    for number in range(6):
        sent = sending(("", FOLDER), (f"{number}", bytes(700)), ("last", b"content"))
        with pytest.raises(LinkClosedError):
            await get(Sender(sent[: sent.index(b"tent")], ends=False), "x", tmp_path / "out", Bounds(size=1000))
        here = [path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()]
        assert 700 <= sum(here) <= 2000


@pytest.mark.parametrize("what", [FOLDER, DEVICE, link_to("a"), b""])
async def test_names_are_kept_within_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: Change | bytes
) -> None:
    monkeypatch.setattr(unpack, "_MAX_NAMES", 4000)
    with pytest.raises(TransferError, match="too many long names"):
        await take(tmp_path, Sender(sending(*[(f"{number:0100}", what) for number in range(60)])))


async def test_a_copy_that_is_interrupted_before_anything_came_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(LinkClosedError):
        await get(Sender(PLAIN[:10], ends=False), "x", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sent", [b"content", b"another"])
async def test_the_guests_end_refuses_what_is_not_what_was_sent(tmp_path: Path, sent: bytes) -> None:
    part = Part(str(tmp_path / "x"))
    part.open()
    receiver, stream = Receiver(part), io.BytesIO(sending(("", b"content")).replace(b"content", sent))
    if sent == b"content":
        assert receiver.run(stream) == zlib.crc32(sent)
    else:
        with pytest.raises(RefusedError, match="what came is not what was sent"):
            receiver.run(stream)
    part.discard()


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"nothing of the kind\n", id="garbage"),
        pytest.param(b'{"x":[1,"' + b"0" * 64 + b'"]}\n', id="no-key"),
        pytest.param(b'{"' + b"0" * 32 + b'":[-1,"' + b"0" * 64 + b'"]}\n', id="negative"),
        pytest.param(b"[" * 100_000 + b"\n", id="nested"),
        pytest.param(b"{}\n" + line(check=0, path="x"), id="another-check"),
        pytest.param(b"{}\n{}", id="no-check"),
        pytest.param(b" " * (17 << 20), id="endless"),
    ],
)
async def test_a_guest_that_lies_about_what_it_has_is_an_error(tmp_path: Path, said: bytes) -> None:
    (tmp_path / "local").write_text("content")
    with pytest.raises(TransferError):
        # What it has comes before it is sent anything, so in a piece of its own.
        await put(Sender(said, piece=3 if said.startswith(b"{}") else 30_000), tmp_path / "local", "x")


async def test_what_a_program_says_is_shown_without_escape_sequences(tmp_path: Path) -> None:
    sender = Sender(b"", code=2)
    sender.messages.insert(1, [b"stderr", b"\n\x1b[31mfiles: no\n" + b"x" * 5000])
    with pytest.raises(TransferError) as caught:
        await take(tmp_path, sender)
    assert "\x1b" not in caught.value.message
    assert "files: no" in caught.value.message
    assert len(caught.value.message) < 2500


async def test_a_flood_on_stderr_is_stopped(tmp_path: Path) -> None:
    sender = Sender(b"")
    sender.messages[1:1] = [[b"stderr", bytes(10_000)] for _ in range(1000)]
    with pytest.raises(TransferError, match="too much"):
        await take(tmp_path, sender)


async def test_names_that_cannot_be_shown_and_devices_are_left_out(tmp_path: Path) -> None:
    made = sending(
        ("\x1b[2J", b"1"), ("\udcff", b"22"), ("a\nb/c", b"3"), ("null", DEVICE), (f"{PART}x/kept", b"5"), ("ok", b"4")
    )
    out = await take(tmp_path, Sender(made))
    assert [path.name for path in out.iterdir()] == ["ok"]
