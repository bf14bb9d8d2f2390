"""What a snapshot's memory holds, between any two snapshots of a tree and as a complete file."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest
from fake_snapshots import HARDWARE, golden_of, make_store, take
from hypothesis import given, settings
from hypothesis import strategies as st

from agentvm_kernel.errors import DiskFullError, SnapshotError
from agentvm_kernel.vm import complete
from agentvm_kernel.vm.complete import distance, make_complete
from agentvm_kernel.vm.content import Content, changed_blocks
from agentvm_kernel.vm.delta import BLOCK, PAGE, merge_runs, write_delta
from agentvm_kernel.vm.snapshot import Manifest, Snapshot

PAGES = 48
SIZE = PAGES * PAGE
MANIFEST = Manifest(image="d" * 64, hypervisor="QEMU 10", hardware=HARDWARE, created=1.0)


def make_golden(folder: Path) -> tuple[Snapshot, bytes]:
    content = random.Random(2).randbytes(SIZE // 2) + bytes(SIZE // 2)
    folder.mkdir()
    (folder / "memory").write_bytes(content)
    return Snapshot("golden", folder, MANIFEST), content


def descend(parent: Snapshot, old: bytes, writes: list[tuple[int, bytes]]) -> tuple[Snapshot, bytes]:
    """Make a child as ``Capturer`` does: whole pages were written, whatever they hold."""
    new = bytearray(old)
    touched = []
    for place, long in writes:
        data = long[: SIZE - place]
        new[place : place + len(data)] = data
        touched.append((place // PAGE, (place + len(data) - 1) // PAGE - place // PAGE + 1))
    runs = merge_runs(touched)
    pages = b"".join(new[first * PAGE : (first + count) * PAGE] for first, count in runs)
    folder = parent.golden.folder.with_name(os.urandom(8).hex())
    folder.mkdir()
    changed, parts = changed_blocks(Content(parent), runs, memoryview(pages))
    write_delta(folder / "memory.delta", changed, parts)
    check_least(changed, runs, old, bytes(new))
    return Snapshot(folder.name, folder, MANIFEST, parent), bytes(new)


def check_least(changed: list[tuple[int, int]], runs: list[tuple[int, int]], old: bytes, new: bytes) -> None:
    """Check that no block was kept that is the same, but those of a changed page in a long stretch."""
    long = {page for first, count in runs if count >= 16 for page in range(first, first + count)}
    for block in (block for first, count in changed for block in range(first, first + count)):
        page = block * BLOCK // PAGE
        span = slice(page * PAGE, (page + 1) * PAGE) if page in long else slice(block * BLOCK, (block + 1) * BLOCK)
        assert old[span] != new[span]


writes = st.lists(
    st.tuples(
        st.integers(0, SIZE - 1),
        st.one_of(
            st.binary(min_size=1, max_size=600),
            st.builds(lambda byte, count: bytes([byte]) * count, st.integers(0, 255), st.integers(1, 20 * PAGE)),
        ),
    ),
    max_size=4,
)
trees = st.lists(st.tuples(st.integers(0, 9), writes), max_size=6)


@settings(deadline=None)
@given(trees)
def test_any_snapshot_is_reached_from_any_other(tmp_path_factory: pytest.TempPathFactory, plan) -> None:
    made = [make_golden(tmp_path_factory.mktemp("tree") / "golden")]
    for parent, what in plan:
        made.append(descend(*made[parent % len(made)], what))
    for target, expected in made:
        content = Content(target)
        assert bytes(content.read(0, PAGES)) == expected
        for base, start in made:
            memory, end = bytearray(start), 0
            for place, data in content.pieces(base):
                assert place >= end
                end = place + len(data)
                memory[place:end] = data
            assert memory == expected


@settings(deadline=None, max_examples=50)
@given(st.lists(writes, min_size=1, max_size=4))
def test_content_that_advances_is_its_childs(tmp_path_factory: pytest.TempPathFactory, many) -> None:
    snapshot, expected = make_golden(tmp_path_factory.mktemp("line") / "golden")
    content = Content(snapshot)
    for what in many:
        snapshot, expected = descend(snapshot, expected, what)
        content.advance(snapshot)
        (snapshot.delta.with_name("moved")).hardlink_to(snapshot.delta)
    for older in snapshot.lineage[1:]:
        older.delta.unlink()
    assert bytes(content.read(0, PAGES)) == expected  # though the files are gone
    for page in (0, 7, PAGES - 1):
        assert bytes(content.read(page, 1)) == expected[page * PAGE : (page + 1) * PAGE]


def test_what_was_written_as_it_was_is_not_kept(tmp_path: Path) -> None:
    golden, content = make_golden(tmp_path / "golden")
    child, _ = descend(golden, content, [(0, content[: 3 * PAGE]), (20 * PAGE + 300, b"\1")])
    assert list(Content(child).layers.pieces()) == [(20 * PAGE // BLOCK + 1, 1, child.delta, 40)]


def test_damaged_delta_is_refused(tmp_path: Path) -> None:
    child, _ = descend(*make_golden(tmp_path / "golden"), [(0, b"x")])
    child.delta.write_bytes(b"no delta")
    with pytest.raises(SnapshotError, match="damaged"):
        Content(child)


@pytest.fixture
def line(tmp_path: Path) -> tuple[Snapshot, bytes]:
    """The third of three snapshots in a row, and its content."""
    golden, content = make_golden(tmp_path / "golden")
    child, content = descend(golden, content, [(0, b"a" * PAGE), (30 * PAGE, b"b" * 5 * PAGE)])
    return descend(child, content, [(2000, b"c" * 3000), (31 * PAGE, bytes(PAGE))])


@pytest.mark.parametrize("at_once", [1 << 30, 100])
def test_complete_file_is_the_content(
    line: tuple[Snapshot, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, place: pwrite(fd, data[:at_once], place))
    snapshot, expected = line
    make_complete(snapshot, tmp_path / "x.memory", None)
    assert (tmp_path / "x.memory").read_bytes() == expected
    assert (tmp_path / "x.memory").stat().st_mode & 0o777 == 0o400
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's QEMU runs under another user")
def test_complete_file_can_be_read_by_qemus_group(line: tuple[Snapshot, bytes], tmp_path: Path) -> None:
    make_complete(line[0], tmp_path / "x.memory", (1234, 4321))
    status = (tmp_path / "x.memory").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (0, 4321, 0o440)


def test_complete_file_without_room_leaves_nothing(
    line: tuple[Snapshot, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(DiskFullError, match="No space left"):
        make_complete(line[0], tmp_path / "x.memory", None)
    monkeypatch.undo()
    with pytest.raises(DiskFullError, match="No such file"):
        make_complete(line[0], tmp_path / "missing" / "x.memory", None)
    assert not list(tmp_path.glob("x.*"))
    make_complete(line[0], tmp_path / "x.memory", None)


def test_complete_file_of_a_golden_snapshot_is_a_copy(tmp_path: Path) -> None:
    golden, content = make_golden(tmp_path / "golden")
    make_complete(golden, tmp_path / "x.memory", None)
    assert (tmp_path / "x.memory").read_bytes() == content
    assert complete.distance(golden, golden) == 0


def test_distance_counts_what_is_not_shared(tmp_path: Path) -> None:
    tree = make_store(tmp_path).tree("n")
    golden = golden_of(tmp_path)
    root = take(tree, golden, blocks=dict.fromkeys(range(10), 1)).snapshot
    left = take(tree, root, blocks=dict.fromkeys(range(100), 2)).snapshot
    right = take(tree, root, blocks=dict.fromkeys(range(7), 3)).snapshot
    sizes = {one.id: one.delta.stat().st_size for one in (root, left, right)}
    assert distance(golden, golden) == distance(left, left) == 0
    assert distance(golden, left) == distance(left, golden) == sizes[root.id] + sizes[left.id]
    assert distance(root, right) == sizes[right.id]
    assert distance(left, right) == sizes[left.id] + sizes[right.id]
